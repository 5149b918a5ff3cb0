"""Lies on rounds without an average and on ranks that no bank trains: each is named, though every hash is right."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_grid import only, with_delta
from flwr.app import Message
from keys import Consortium
from liar import Values, chain_of, edited, edited_lines, makes_right, rounds_in
from round_runs import Runs
from tiny_runs import rounds_of, write_rows

import server_app.rounds
import server_app.taking_in
from fedfinlora.commands.verify import verify
from fedfinlora.model.adapter import norm
from fedfinlora.model.loading import get_session
from fedfinlora.provenance.evidence import NO_DELTA
from fedfinlora.train.own_columns import foreign_rank
from server_app.replies import Replies
from server_app.strategies.strategy import ServerState, Strategy, take_step

Lie = Callable[[Path, list[Values]], object]
DRIFT = (
    "strategy.sync=drift", "strategy.weighting=equal", "train.holdout_max_rows=0", "strategy.drift_limit=1e9",
    "strategy.drift_ceiling=3",
)  # fmt: skip
MODEL = ("peft=lora", "model.quantization=none", "peft.target_modules=[q_proj,v_proj]")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def drifted(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Consortium]:
    """(a signed run of six rounds, of which the third and the sixth end with an average; its keys)."""
    folder = tmp_path_factory.mktemp("drift")
    consortium = Consortium(folder / "keys")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDFINLORA_WITNESS", str(folder / "witness"))
        consortium.serves(patch)
        return Runs(rows, folder, consortium=consortium).start("run", *DRIFT, rounds=6), consortium


def of_sync(number: int, **values: object) -> Lie:
    """A lie in the `sync` of a line of rounds.jsonl."""
    return lambda run, lines: edited_lines(
        run / "rounds.jsonl", lambda rounds: rounds[number - 1]["sync"].update(values)
    )


def of_line(number: int, edit: Callable[[Values], object]) -> Lie:
    """A lie in a line of rounds.jsonl."""
    return lambda run, lines: edited_lines(run / "rounds.jsonl", lambda rounds: edit(rounds[number - 1]))


def saves_more(run: Path, lines: list[Values]) -> None:
    of_sync(1, bytes_saved=10**9)(run, lines)
    total = sum(line["sync"]["bytes_saved"] for line in rounds_of(run))
    edited(run / "result.json", lambda result: result.update(bytes_saved=total))


def is_further(line: Values) -> None:
    """Twice as far, in all that says so."""
    for bank in line["banks"]:
        bank["delta_norm"] *= 2
    line["sync"]["drift"] *= 2


def asks_loudly(run: Path, lines: list[Values]) -> None:
    rounds_in(lines)[1]["request"].pop("silent")


def sends_nothing(run: Path, lines: list[Values]) -> None:
    first = rounds_in(lines)[0]
    first["request"].pop("adapter-sha256")
    for part in first["banks"].values():
        part["request"]["adapter-sha256"] = NO_DELTA


def moves_silently(run: Path, lines: list[Values]) -> None:
    rounds_in(lines)[1]["adapter_sha256"] = "a" * 64


DRIFT_LIES: dict[str, tuple[Lie, str]] = {
    "the drift": (of_sync(2, drift=0.5), "rounds.jsonl, line 2: sync.drift is 0.5, "),
    "the drift after an average": (of_sync(4, drift=0.5), "rounds.jsonl, line 4: sync.drift is 0.5, "),
    "a drift over the limit, and no average": (
        of_sync(1, drift=1e12),
        "round 2: the request to bank-0 asks for no update, and the rounds before it ask for one",
    ),
    "an average that was not made": (of_sync(2, averaged=True), "line 2: sync.averaged is true, "),
    "rounds since the average": (of_sync(2, rounds=1), "line 2: sync.rounds is 1, "),
    "no word of it": (of_line(2, lambda line: line.pop("sync")), "line 2: sync.averaged is absent, "),
    "bytes that were not saved": (saves_more, "line 1: sync.bytes_saved is 1000000000, "),
    "a bank's distance": (
        of_line(1, lambda line: line["banks"][0].update(delta_norm=0.125)), "line 1: delta_norm of bank-0 is 0.125, ",
    ),
    "distances and drift": (of_line(1, is_further), "line 1: delta_norm of bank-1 is "),
    "a step without an average": (of_line(1, lambda line: line.update(update_norm=5.0)), "line 1: update_norm is 5.0,"),
    "a request for updates": (asks_loudly, "round 2: the request to bank-0 asks for an update, and the rounds before"),
    "no adapter for a bank without one": (sends_nothing, "round 1: the request to bank-0 has no adapter, and the bank"),
    "an adapter moved without an average": (moves_silently, "round 2 ends without an average, and its adapter is "),
}  # fmt: skip


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_a_run_by_drift_is_computed_again(
    drifted: tuple[Path, Consortium], tmp_path: Path, capsys: pytest.CaptureFixture[str], signed: bool
) -> None:
    """So what the other tests find is the lie, and not how it is made right."""
    run, (_, consortium) = Path(shutil.copytree(drifted[0], tmp_path / "run")), drifted
    makes_right(run, chain_of(run), consortium.signer)
    assert verify(run, consortium.ca if signed else None) == 0, capsys.readouterr().out
    assert "the drift in 6, the banks' distances in 4" in capsys.readouterr().out


@pytest.mark.parametrize("lie", DRIFT_LIES)
def test_a_lie_on_a_run_by_drift_is_named(
    drifted: tuple[Path, Consortium], tmp_path: Path, capsys: pytest.CaptureFixture[str], lie: str
) -> None:
    tell, named = DRIFT_LIES[lie]
    run, (_, consortium) = Path(shutil.copytree(drifted[0], tmp_path / "run")), drifted
    lines = chain_of(run)
    tell(run, lines)
    makes_right(run, lines, consortium.signer)
    assert verify(run, consortium.ca) == 1
    said = capsys.readouterr().out
    assert named in said, said
    assert "Error)" not in said, "nothing but what is meant"


def test_a_drift_from_an_adapter_that_is_gone_is_not_proven(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Runs(rows, tmp_path).start("run", *DRIFT, "keep_rounds=1", rounds=3)
    assert verify(run) == 3
    assert "rounds.jsonl: the drift of 2 rounds, by which the next one ends with an average" in capsys.readouterr().out


@pytest.fixture(scope="module")
def frozen(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Settings of a run whose last two ranks are those of an earlier run, and v_proj with them."""
    one = Runs(rows, tmp_path_factory.mktemp("one")).start("one", *MODEL, "peft.rank=2", "peft.alpha=4", rounds=1)
    return (
        *MODEL, "peft.rank=4", "peft.alpha=8", "peft.frozen_rank=2", "peft.trained_modules=[q_proj]",
        f"start_adapter={one / 'adapters' / 'final'}",
    )  # fmt: skip


def further(message: Message, reply: Message) -> Message:
    """An update that moves every rank."""
    return Message(with_delta(reply, lambda delta: delta + 0.02), reply_to=message)


def test_frozen_ranks_without_the_start_are_not_proven(
    rows: Path, frozen: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With kept deltas the first adapter is there."""
    runs = Runs(rows, tmp_path)
    assert verify(runs.start("hashes", *frozen)) == 3
    said = capsys.readouterr().out
    assert "NOT PROVEN" in said
    assert "frozen ranks of round 1: nothing in this folder has those that the run starts from" in said
    assert "frozen ranks are unmoved in 1 adapter" in said
    assert verify(runs.start("kept", *frozen, "strategy.keep_deltas=true")) == 0, capsys.readouterr().out
    assert "frozen ranks are unmoved in 2 adapters" in capsys.readouterr().out


@pytest.mark.parametrize("at", ["frozen rank", "untrained layer"])
def test_a_server_that_moves_what_is_frozen_is_named(
    rows: Path, frozen: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, at: str,
) -> None:  # fmt: skip
    runs = Runs(rows, tmp_path)
    layout = get_session(runs.config("run", *frozen)).layout

    def moving(rule: Strategy, state: ServerState, replies: Replies) -> ServerState:
        following = take_step(rule, state, replies)
        adapter = following.adapter.copy()
        for layer in layout.layers:
            a, _ = layer.of(adapter)
            if at == "frozen rank":
                a[2:] += 0.01
            elif layer.layer.endswith("v_proj"):
                a[:2] += 0.01
        return replace(following, adapter=adapter, step_norm=norm(adapter.astype(np.float64) - state.adapter))

    monkeypatch.setattr(server_app.rounds, "take_step", moving)
    run = runs.start("run", *frozen)
    assert verify(run) == 1
    assert "adapters/round_002: it moves ranks that peft.frozen_rank=2" in capsys.readouterr().out


OWN_RANKS = (*MODEL, "peft.rank=4", "peft.alpha=8", "strategy=hetlora", "strategy.ranks=[bank-0:1]")


@pytest.mark.parametrize("kind", ["frozen", "announced"])
def test_an_update_with_foreign_ranks_is_named(
    rows: Path, frozen: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, kind: str,
) -> None:  # fmt: skip
    """The server has averaged it, and its deltas were kept."""
    monkeypatch.setattr(server_app.taking_in, foreign_rank.__name__, lambda *arguments: "")
    words, fault = {
        "frozen": (frozen, "moves the last 2 ranks, which no bank trains"),
        "announced": (OWN_RANKS, "has more than the 1 ranks that strategy.ranks announces for the bank"),
    }[kind]
    run = Runs(rows, tmp_path).start("run", *words, "strategy.keep_deltas=true", tamper=only("bank-0", further))
    assert verify(run) == 1
    assert f"round 1 averaged what its server had to refuse of bank-0: The update {fault}" in capsys.readouterr().out


def test_the_step_under_server_noise_is_that_of_its_adapters(
    rows: Path, frozen: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The noise on frozen ranks is taken away, and so is its part of update_norm."""
    monkeypatch.setenv("FEDFINLORA_WITNESS", str(tmp_path / "witness"))
    private = ("privacy=bank", "privacy.epsilon=8", "privacy.accept_noise=true", "strategy.weighting=equal")
    assert verify(Runs(rows, tmp_path).start("run", *frozen, *private)) == 3
    said = capsys.readouterr().out
    assert "WRONG" not in said, said
    assert "norms of the step in 1 of 2 rounds" in said
