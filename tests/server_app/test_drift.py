"""strategy.sync=drift: which rounds end with an average, what the banks keep meanwhile, and which bytes are saved."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_config
from fake_grid import with_delta
from flwr.app import Message
from round_runs import Runs
from tiny_runs import adapter_bytes, result_of, rounds_of, write_lines, write_rows

from client_app.local_rounds import LocalAdapter, begun_from
from fedfinlora.commands.verify import verify
from fedfinlora.config.privacy import PrivacyConfig
from fedfinlora.config.strategy import NOT_BY_DRIFT, StrategyConfig
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.files import write_json
from fedfinlora.run.records import BankEntry, RoundLine, Synchronisation, read_rounds
from fedfinlora.run.typed import to_json
from fedfinlora.wire.messages import BankError, TrainRequest
from server_app.drift import RoundPlan, drift_of, lost_in, note_lost, plan_of

DRIFT = ("strategy.sync=drift", "strategy.weighting=equal", "train.holdout_max_rows=0")
NEVER = (*DRIFT, "strategy.drift_limit=1e9", "strategy.drift_ceiling=3")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def runs(rows: Path, tmp_path: Path) -> Runs:
    return Runs(rows, tmp_path)


def test_without_a_limit_the_bytes_are_those_of_every_round(runs: Runs) -> None:
    plain = runs.start("plain", *DRIFT[1:])
    by_drift = runs.start("drift", *DRIFT)
    assert adapter_bytes(by_drift) == adapter_bytes(plain)
    for one, other in zip(rounds_of(plain), rounds_of(by_drift), strict=True):
        assert {**one, "timings": 0} == {key: value for key, value in {**other, "timings": 0}.items() if key != "sync"}
        assert other["sync"].items() >= {"averaged": True, "rounds": 1, "bytes_saved": 0}.items()


def test_up_to_the_ceiling_it_is_a_run_of_longer_rounds(runs: Runs) -> None:
    """Six rounds of two steps with an average after every third are two rounds of six steps, in a third of the bytes
    and one number a silent round.
    """
    long = runs.start("long", *DRIFT[1:], "train.steps_per_round=6", rounds=2)
    run = runs.start("run", *NEVER, rounds=6)
    assert adapter_bytes(run) == adapter_bytes(long)
    assert verify(run) != 1
    lines, [first, _] = read_rounds(run), read_rounds(long)
    assert [line.sync.averaged for line in lines if line.sync] == [False, False, True] * 2
    assert [line.sync.rounds for line in lines if line.sync] == [1, 2, 3] * 2
    assert [line.bytes_up for line in lines] == [8, 8, first.bytes_up] * 2
    assert [line.bytes_down for line in lines] == [first.bytes_down, 0, 0] * 2
    saved = 2 * (first.bytes_up + first.bytes_down) * 2 - 4 * 8
    assert result_of(run)["bytes_saved"] == sum(line.sync.bytes_saved for line in lines if line.sync) == saved
    assert [line.update_norm for line in lines[:2]] == [0.0, 0.0]
    assert [line.update_norm for line in lines[2::3]] == [line.update_norm for line in read_rounds(long)]
    distances = [line.sync.drift for line in lines[:3] if line.sync]
    assert distances == sorted(distances, key=lambda drift: drift or 0)


def test_at_the_limit_the_next_round_ends_with_an_average(runs: Runs) -> None:
    silent = runs.start("silent", *NEVER, rounds=3)
    [first, second, _] = [line.sync.drift for line in read_rounds(silent) if line.sync]
    assert first is not None
    assert second is not None
    limit = (first + second) / 2
    run = runs.start("run", *DRIFT, f"strategy.drift_limit={limit}", rounds=4)
    assert [line.sync.averaged for line in read_rounds(run) if line.sync] == [False, False, True, True]


@pytest.mark.parametrize("quorum", [1, 2])
def test_a_bank_that_lost_its_adapter_says_so_and_starts_again(runs: Runs, quorum: int) -> None:
    """Without the quorum the round fails; tried again, it sends the global adapter to that bank alone."""

    def loses(bank: str, message: Message, reply: Message) -> Message:
        if bank == "bank-0" and message.metadata.group_id == "1":
            for file in (runs.folder / "states").glob("*/bank-0/local_0001.safetensors"):
                file.write_bytes(b"cut off")
        return reply

    words = (*NEVER, f"strategy.quorum={quorum}")
    if quorum == 2:
        with pytest.raises(UserError, match="no longer has the adapter"):
            runs.start("run", *words, rounds=3, tamper=loses)
        run = runs.resume(runs.folder / "run")
    else:
        run = runs.start("run", *words, rounds=3, tamper=loses)
    line = read_rounds(run)[3 - quorum]
    down = {entry.bank: entry.bytes_down for entry in line.banks}
    assert down["bank-0"] > down["bank-1"] == 0
    codes = [[entry.code for entry in line.banks] for line in read_rounds(run)]
    assert codes == [["", ""], ["" if quorum == 2 else "local-adapter", ""], ["", ""]]
    assert verify(run) != 1


def test_a_distance_that_is_not_finite_or_an_update_is_rejected(runs: Runs) -> None:
    def tamper(bank: str, message: Message, reply: Message) -> Message:
        if message.metadata.group_id != "1" or bank == "bank-2":
            return reply
        makes = {
            "bank-0": lambda one: one * np.float32(np.nan),
            "bank-1": lambda one: np.tile(one, 2),
            "bank-3": np.negative,
        }
        return Message(with_delta(reply, makes[bank]), reply_to=message)

    run = runs.start("run", *NEVER, rounds=2, banks=4, tamper=tamper)
    assert [entry["code"] for entry in rounds_of(run)[0]["banks"]] == ["not-finite", "layout", "", "malformed"]


def line_of(number: int, averaged: bool, since: int, drift: float | None, *silent: str) -> RoundLine:
    banks = (BankEntry("north", "ok"), *(BankEntry(name, "late") for name in silent))
    return RoundLine(number, banks=banks, sync=Synchronisation(averaged, since, drift))


@pytest.mark.parametrize(
    ("line", "plan"),
    [
        (None, RoundPlan(False, 1, frozenset())),
        (line_of(4, True, 2, 5.0), RoundPlan(False, 1, frozenset())),
        (line_of(4, False, 2, 0.09, "south"), RoundPlan(False, 3, frozenset({"north"}))),
        (line_of(4, False, 2, 0.1), RoundPlan(True, 3, frozenset({"north"}))),
        (line_of(4, False, 3, 0.0), RoundPlan(True, 4, frozenset({"north"}))),
        (line_of(4, False, 1, None), RoundPlan(True, 2, frozenset({"north"}))),
        (line_of(3, False, 1, 0.2), RoundPlan(False, 1, frozenset())),
    ],
    ids=["first", "averaged", "below", "limit", "ceiling", "unknown", "another round's"],
)
def test_the_plan_of_round_5_follows_from_the_line_before(
    line: RoundLine | None, plan: RoundPlan, tmp_path: Path
) -> None:
    config = tiny_config(strategy=StrategyConfig(sync="drift", drift_limit=0.1, drift_ceiling=4))
    config = replace(config, num_server_rounds=9)
    if line:
        write_lines(tmp_path / "rounds.jsonl", [json.dumps(to_json(line))])
    assert plan_of(tmp_path, 5, config) == plan
    assert plan_of(tmp_path, 5, replace(config, num_server_rounds=5)).averaged, "the last round"


def test_lost_adapters_are_known_for_their_round_alone(tmp_path: Path) -> None:
    write_json(tmp_path / "lost.json", {"round": 1, "banks": ["west"]})
    note_lost(tmp_path, 2, [BankEntry("north", "error", "local-adapter"), BankEntry("south", "error", "memory")])
    assert [sorted(lost_in(tmp_path, number)) for number in (1, 2, 3)] == [[], ["north"], []]
    note_lost(tmp_path, 3, [BankEntry("north", "ok")])
    assert lost_in(tmp_path, 2) == {"north"}


def test_drift_bounds_the_divergence_of_the_banks_models() -> None:
    """Kamp et al. 2018: (1/N) sum |w_k - mean w|^2 is at most (1/N) sum |w_k - r|^2, for any r."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        models, reference = rng.normal(size=(4, 6)), rng.normal(size=6)
        divergence = ((models - models.mean(axis=0)) ** 2).sum(axis=1).mean()
        drift = drift_of(np.linalg.norm(models - reference, axis=1), float(np.linalg.norm(reference)))
        assert drift is not None
        assert math.sqrt(divergence) <= drift * np.linalg.norm(reference) + 1e-12


def test_a_bank_begins_where_it_was_unless_there_was_an_average() -> None:
    config = tiny_config(strategy=StrategyConfig(sync="drift"))
    old, own, new = (np.full(3, value, np.float32) for value in (1, 2, 3))
    kept, nothing = LocalAdapter(own, old), np.zeros(0, np.float32)

    def begun(received: np.ndarray, local: LocalAdapter | None) -> LocalAdapter:
        return begun_from(TrainRequest(config, "run", 2, "id", "sha", received), local, "north", 3)

    assert begun(nothing, kept) is kept
    assert begun(old, kept) is kept, "its reply came too late, and no average was made"
    assert begun(new, kept).adapter is new
    assert begun(new, None).reference is new
    with pytest.raises(BankError, match="no adapter of its own after round 1"):
        begun(nothing, None)
    with pytest.raises(BankError, match="an adapter of 4 numbers of its own, and the round's has 3") as other:
        begun(nothing, LocalAdapter(np.zeros(4, np.float32), np.zeros(4, np.float32)))
    assert other.value.code == "local-layout"


@pytest.mark.parametrize("code", ["local-adapter", "local-layout"])
def test_banks_without_an_own_adapter_are_noted_by_either_code(code: str, tmp_path: Path) -> None:
    note_lost(tmp_path, 2, [BankEntry("bank-0", "error", code), BankEntry("bank-1", "error", "internal")])
    assert lost_in(tmp_path, 2) == {"bank-0"}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        *((f"strategy={name}", {"name": name}) for name in NOT_BY_DRIFT if name != "fltrust"),
        ("strategy=fltrust", {"name": "fltrust", "root_bank": "root"}),
        ("strategy.keep_deltas=true", {"keep_deltas": True}),
        ("strategy.fraction_train=0.5", {"fraction_train": 0.5}),
    ],
)
def test_what_does_not_go_with_drift_is_refused_by_name(key: str, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"strategy.sync=drift does not go with {key}: "):
        StrategyConfig(sync="drift", **values)


def test_privacy_and_a_proximal_term_do_not_go_with_drift() -> None:
    config = tiny_config(strategy=StrategyConfig(sync="drift", weighting="equal"))
    example, pulled = PrivacyConfig(mode="example", epsilon=1.0), replace(config.train, proximal_mu=0.1)
    with pytest.raises(ConfigError, match=r"does not go with train.proximal_mu=0\.1"):
        replace(config, train=pulled)
    with pytest.raises(ConfigError, match="sync=drift does not go with privacy=example"):
        replace(config, privacy=example, train=replace(config.train, holdout_max_rows=0, share_prefix=False))
