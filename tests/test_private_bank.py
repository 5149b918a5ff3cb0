"""A bank under privacy=example: what it promises, books, refuses and says, and a whole run of several."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_grid import FakeGrid, simulated_banks
from tiny_runs import overrides, result_of, rounds_of, write_lines, write_rows

import client_app.bank
import client_app.promise
from client_app.bank import BankFacts, bank_facts, train_round
from fedfinlora.adapter import Vector
from fedfinlora.cli import main
from fedfinlora.compose import compose
from fedfinlora.config import Config
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.models import get_session, initial_adapter
from fedfinlora.privacy import ledger
from fedfinlora.privacy.accounting import Steps, epsilon
from fedfinlora.privacy.ledger import read_ledger
from fedfinlora.runfolder import source_fingerprint
from fedfinlora.wire import BankError, Figures, RejectedReply, TrainRequest, pack_reply, unpack_reply
from server_app.federated import run_federated

PRIVATE = ("privacy=example", "privacy.epsilon=8")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"), train=60)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Each test reads its rows and proves its gradients anew."""
    yield
    client_app.bank._rows.clear()
    client_app.bank._divided.cache_clear()
    client_app.promise._proven.clear()


def config_of(rows: Path, place: Path, *more: str, rounds: int = 4) -> Config:
    return compose(overrides(rows, place / "runs", *PRIVATE, *more, rounds=rounds))


def facts(place: Path, name: str = "north", banks: int = 2, **values: Any) -> BankFacts:
    return BankFacts(name, 0, banks, "", place / "state", place / "ledger", **values)


def ask(config: Config, at: BankFacts, round_number: int = 1, run: str = "run-1") -> tuple[Vector, str, Figures]:
    session = get_session(config)
    adapter = initial_adapter(session, config)
    return train_round(TrainRequest(config, run, round_number, session.layout.id, source_fingerprint(), adapter), at)


def booked(at: BankFacts) -> list[dict[str, Any]]:
    """All lines of all of a bank's ledgers."""
    files = sorted((at.ledger_folder / at.name).glob("*.jsonl"))
    return [line for file in files for line in read_ledger(file.parent, file.stem)]


class TestPromise:
    def test_calibrated_noise_spends_the_wanted_epsilon_over_all_rounds(self, rows: Path, tmp_path: Path) -> None:
        config, at = config_of(rows, tmp_path), facts(tmp_path)
        figures = [ask(config, at, number)[2] for number in (1, 2, 3, 4)]
        assert figures[0].epsilon_planned == figures[-1].epsilon_planned
        assert 7.5 < figures[-1].epsilon_planned <= 8.0
        assert [one.epsilon_spent for one in figures] == sorted(one.epsilon_spent for one in figures)
        assert figures[-1].epsilon_spent == pytest.approx(figures[-1].epsilon_planned)
        assert {one.delta for one in figures} == {0.01}, "thirty rows"

    def test_a_given_multiplier_gives_its_epsilon(self, rows: Path, tmp_path: Path) -> None:
        config = config_of(rows, tmp_path, "privacy.epsilon=0", "privacy.noise_multiplier=1.5", "privacy.delta=1e-5")
        figures = ask(config, facts(tmp_path))[2]
        assert figures.epsilon_planned == epsilon([Steps(4 / 30, 1.5, 8)], 1e-5)
        assert figures.epsilon_spent == epsilon([Steps(4 / 30, 1.5, 2)], 1e-5)

    def test_another_run_and_a_repeated_round_go_on_from_what_was_spent(self, rows: Path, tmp_path: Path) -> None:
        config, at = config_of(rows, tmp_path), facts(tmp_path)
        spent = [ask(config, at, 1, run)[2].epsilon_spent for run in ("one", "one", "two")]
        assert spent[0] < spent[1] < spent[2]
        assert [line["run"] for line in booked(at)] == ["one", "one", "two"]

    def test_another_seed_order_or_sample_is_the_same_data_to_a_bank_with_its_own_rows(
        self, rows: Path, tmp_path: Path
    ) -> None:
        """Neither max_rows, nor another seed, nor another choice of tasks begins a new account."""
        write_lines(tmp_path / "bank" / "train" / "fpb_train.jsonl", lines_of("fpb", 40))
        write_lines(tmp_path / "bank" / "train" / "tfns_train.jsonl", lines_of("tfns", 40))
        at = replace(facts(tmp_path, banks=0), data_path=str(tmp_path / "bank"))
        spent = []
        for more in (["seed=0"], ["seed=1"], ["train.max_rows=30"], ["dataset.max_rows_per_task=20"], ["dataset.tasks=[fpb]"]):
            spent.append(ask(config_of(rows, tmp_path, *more), at)[2].epsilon_spent)
        assert spent == sorted(spent)
        files = list((at.ledger_folder / at.name).glob("*.jsonl"))
        assert sorted(len(read_ledger(file.parent, file.stem)) for file in files) == [4, 5], "tfns and fpb"

    def test_noise_is_fresh_in_each_round_and_run_and_repeats_only_on_request(self, rows: Path, tmp_path: Path) -> None:
        config = config_of(rows, tmp_path)
        one, two = (ask(config, facts(tmp_path))[0] for _ in range(2))
        assert not np.array_equal(one, two)
        config = config_of(rows, tmp_path, "privacy.reproducible_noise=true")
        one, two = (ask(config, facts(tmp_path))[0] for _ in range(2))
        assert np.array_equal(one, two)
        assert [line["reproducible_noise"] for line in booked(facts(tmp_path))] == [False, False, True, True]

    def test_customers_are_drawn_and_clipped_as_one(self, tmp_path: Path) -> None:
        lines = [
            {"context": f"row {number} Answer:", "target": "x", "issuer": f"customer {number % 10}"} for number in range(40)
        ]
        write_lines(tmp_path / "bank" / "train" / "fpb_train.jsonl", [json.dumps(line) for line in lines])
        config = config_of(tmp_path / "bank", tmp_path, "privacy.unit=customer")
        at = replace(facts(tmp_path, banks=0), data_path=str(tmp_path / "bank"))
        figures = ask(config, at)[2]
        assert figures.delta == 0.1, "ten customers"
        session = get_session(config)
        units = client_app.bank.bank_rows(config, at, session.tokenizer).units
        assert sorted(map(len, units)) == [4] * 10
        assert booked(at)[0]["unit"] == "customer"


def lines_of(task: str, count: int) -> list[str]:
    return [json.dumps({"context": f"{task} {number} Answer:", "target": "positive"}) for number in range(count)]


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "reason"),
        [
            (("privacy=example", "privacy.epsilon=0"), r"needs privacy\.epsilon or"),
            (("privacy=example", "privacy.epsilon=-1"), r"privacy\.epsilon must be"),
            (("privacy=example", "privacy.epsilon=.inf"), r"privacy\.epsilon must be"),
            ((*PRIVATE, "privacy.noise_multiplier=1"), "both given"),
            ((*PRIVATE, "privacy.delta=1"), r"privacy\.delta must be"),
            ((*PRIVATE, "privacy.clip_norm=0"), r"privacy\.clip_norm must be"),
            ((*PRIVATE, "privacy.unit=branch"), "privacy.unit"),
            ((*PRIVATE, "train.share_prefix=true"), r"train\.share_prefix=true"),
            ((*PRIVATE, "train.gradient_checkpointing=true"), r"train\.gradient_checkpointing=true"),
            ((*PRIVATE, "train.holdout_max_rows=4"), r"train\.holdout_max_rows=4"),
            ((*PRIVATE, "strategy.weighting=rows"), r"strategy\.weighting=rows"),
            ((*PRIVATE, "dataset.equalize_tasks=true"), r"dataset\.equalize_tasks=true"),
            ((*PRIVATE, "peft=dora"), "peft=dora"),
            ((*PRIVATE, "train.epochs=1"), "would tell the row count"),
            (("privacy.epsilon=3",), "needs privacy=example"),
        ],
    )
    def test_settings_that_contradict_each_other_or_the_promise(
        self, rows: Path, tmp_path: Path, words: tuple[str, ...], reason: str
    ) -> None:
        with pytest.raises(ConfigError, match=reason):
            compose(overrides(rows, tmp_path, *words))

    @pytest.mark.parametrize(
        ("words", "reason"),
        [
            (("train.batch_rows=31",), r"train\.batch_rows=31 is more than the 30 rows"),
            (("privacy.delta=0.05",), "more than 1 / 30 units"),
            (("privacy.unit=customer",), "30 of 30 rows have no `issuer`"),
        ],
    )
    def test_settings_that_do_not_fit_the_banks_rows(
        self, rows: Path, tmp_path: Path, words: tuple[str, ...], reason: str
    ) -> None:
        with pytest.raises(BankError, match=reason) as caught:
            ask(config_of(rows, tmp_path, *words), facts(tmp_path))
        assert caught.value.code == "privacy"
        assert booked(facts(tmp_path)) == []

    def test_the_budget_of_the_run_and_the_banks_own(self, rows: Path, tmp_path: Path) -> None:
        config, at = config_of(rows, tmp_path), facts(tmp_path)
        first = ask(config, at)[2].epsilon_spent
        with pytest.raises(BankError) as caught:
            ask(config_of(rows, tmp_path, f"privacy.budget_epsilon={first * 1.01}"), at, 2)
        assert caught.value.code == "budget"
        with pytest.raises(BankError) as caught:
            ask(config_of(rows, tmp_path, "privacy.budget_epsilon=100"), replace(at, budget_epsilon=first * 1.01), 2)
        assert caught.value.code == "budget"
        assert len(booked(at)) == 1

    def test_a_ledger_that_was_edited(self, rows: Path, tmp_path: Path) -> None:
        config, at = config_of(rows, tmp_path), facts(tmp_path)
        ask(config, at)
        (file,) = (at.ledger_folder / at.name).glob("*.jsonl")
        file.write_bytes(file.read_bytes().replace(b'"steps": 2', b'"steps": 1'))
        with pytest.raises(BankError, match="cannot be believed") as caught:
            ask(config, at, 2)
        assert caught.value.code == "privacy"

    def test_nothing_is_trained_before_the_round_is_booked(
        self, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed anywhere after the booking, the bank has spent and sent nothing; killed before, it has neither."""

        def killed(*arguments: Any, **values: Any) -> None:
            assert len(booked(facts(tmp_path))) == 1
            raise KeyboardInterrupt

        monkeypatch.setattr(client_app.bank, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            ask(config_of(rows, tmp_path), facts(tmp_path))

    def test_a_round_that_cannot_be_booked_is_not_trained(
        self, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(*arguments: Any, **values: Any) -> None:
            raise AssertionError("trained")

        monkeypatch.setattr(client_app.bank, "train", never)
        monkeypatch.setattr(ledger.os, "write", lambda descriptor, content: 0)
        with pytest.raises(BankError, match="nothing private may leave"):
            ask(config_of(rows, tmp_path), facts(tmp_path))

    def test_a_budget_in_the_node_config(self) -> None:
        assert bank_facts({"budget-epsilon": 3.0, "ledger-dir": "/l"}).budget_epsilon == 3.0
        for wrong in ("much", -1.0, math.nan):
            with pytest.raises(BankError, match="budget-epsilon"):
                bank_facts({"budget-epsilon": wrong})


class TestWhatIsSaid:
    def test_nothing_that_the_rows_decide(self, rows: Path, tmp_path: Path) -> None:
        figures = ask(config_of(rows, tmp_path), facts(tmp_path))[2]
        known = {"steps", "load_s", "epsilon_planned", "epsilon_spent", "delta"}
        assert {
            name for name, value in vars(figures).items() if value and not (isinstance(value, float) and math.isnan(value))
        } <= known
        assert figures.steps == 2

    def test_the_server_forgets_what_a_talkative_bank_says(self, rows: Path, tmp_path: Path) -> None:
        delta, layout_id, figures = ask(config_of(rows, tmp_path), facts(tmp_path))
        talkative = replace(figures, rows=123, train_loss=1.0, bank_rows=30)
        layout = get_session(config_of(rows, tmp_path)).layout
        read = unpack_reply(pack_reply("north", layout_id, delta, talkative), layout, 0.0, private=True)
        assert (read.figures.rows, read.figures.bank_rows) == (0, 0)
        assert math.isnan(read.figures.train_loss)

    def test_a_reply_that_does_not_say_what_it_spent_is_not_averaged(self, rows: Path, tmp_path: Path) -> None:
        delta, layout_id, figures = ask(config_of(rows, tmp_path), facts(tmp_path))
        layout = get_session(config_of(rows, tmp_path)).layout
        for wrong in ({"epsilon_spent": math.nan}, {"delta": 0.0}, {"epsilon_planned": -1.0}, {"steps": 0}):
            with pytest.raises(RejectedReply, match="does not say"):
                unpack_reply(pack_reply("north", layout_id, delta, replace(figures, **wrong)), layout, 0.0, private=True)


@pytest.mark.parametrize("command", ["centralized", "local"])
def test_the_baselines_have_no_privacy_and_say_so(
    command: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *overrides(rows, tmp_path, *PRIVATE)]) == 2
    assert "privacy=example goes with simulate" in capsys.readouterr().err


KILLED_BANK = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import client_app.bank, client_app.promise
from test_private_bank import ask, config_of, facts

where, rows, place = {where!r}, Path({rows!r}), Path({place!r})

def wait(*arguments, **values):
    print("here", flush=True)
    time.sleep(600)

if where == "before the booking":
    client_app.promise.spend = wait
elif where == "before the training":
    client_app.bank.train = wait
else:
    client_app.bank.read_adapter = wait
ask(config_of(rows, place), facts(place))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "spent_rounds"), [("before the booking", 0), ("before the training", 1), ("before the reply", 1)]
)
def test_a_bank_killed_on_the_way_has_booked_all_that_could_have_left(
    rows: Path, tmp_path: Path, where: str, spent_rounds: int
) -> None:
    """A process of its own, ended by SIGKILL: a reply needs a booked round, and the next round's epsilon counts it."""
    program = KILLED_BANK.format(tests=str(Path(__file__).parent), where=where, rows=str(rows), place=str(tmp_path))
    root = Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, text=True) as bank:
        assert bank.stdout is not None
        assert bank.stdout.readline() == "here\n"
        bank.kill()
        assert bank.wait(timeout=30) == -signal.SIGKILL
    at = facts(tmp_path)
    assert len(booked(at)) == spent_rounds
    config = config_of(rows, tmp_path)
    spent = ask(config, at)[2].epsilon_spent
    alone = ask(config, facts(tmp_path / "elsewhere"))[2].epsilon_spent
    assert len(booked(at)) == spent_rounds + 1
    assert (spent > alone) == bool(spent_rounds)


@pytest.mark.slow
def test_a_real_run_has_a_card_and_a_second_one_stops_at_the_budget(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDFINLORA_LEDGER", str(tmp_path / "ledger"))
    words = overrides(rows, tmp_path / "runs", *PRIVATE)
    assert main(["simulate", *words]) == 0
    told = capsys.readouterr()
    assert "epsilon spent" in told.out + told.err
    run = tmp_path / "runs" / "run"
    card = json.loads((run / "privacy.json").read_text("utf-8"))
    assert card["epsilon"] <= 8.0
    assert card["void"] == ""
    assert {bank["rounds"] for bank in card["banks"].values()} == {2}
    result = result_of(run)
    assert result["privacy"]["epsilon"] == card["epsilon"]
    assert result["rows_trained"] is None
    lines = rounds_of(run)
    assert all(bank["rows"] == 0 and bank["train_loss"] is None for line in lines for bank in line["banks"])
    page = (run / "report.html").read_text("utf-8")
    assert "What else leaves a bank" in page
    assert f"ε = {card['epsilon']:.3g}" in page

    again = compose([*words, "run_name=again", f"privacy.budget_epsilon={card['epsilon'] * 1.001}"])
    with pytest.raises(UserError, match=r"The bank's privacy budget would be exceeded\."):
        run_federated(FakeGrid(simulated_banks(again.banks, tmp_path / "banks")), again)


@pytest.mark.slow
def test_bench_private_step_agrees_with_opacus_and_says_what_it_costs(rows: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    assert main(["bench", "private-step", *overrides(rows, tmp_path), "--json", str(file)]) == 0
    figures = json.loads(file.read_text("utf-8"))
    assert figures["bench"] == "private-step"
    assert figures["ratio"] > 0
    assert figures["differs"]["relative_difference_from_opacus"] < 1e-5
    assert set(figures["peak_growth_gib"]) == {"private", "plain", "plain, shared prefixes", "Opacus hooks"}
