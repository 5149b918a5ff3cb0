"""A bank under privacy=example: what it promises, books, refuses and says, and a whole run of several."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_grid import FakeGrid, simulated_banks
from hostile_server import BUDGET, Bank, code_of, write_bank
from private_bank import PRIVATE, ask, config_of, facts, lines_of, own_rows, refused
from reliability import OUTCOMES
from tiny_runs import overrides, result_of, rounds_of, write_lines, write_rows

import client_app.admission
import client_app.bank
import client_app.local_training
import client_app.own_rows
import client_app.prepared_rows
import client_app.privacy_plan
from client_app.bank import train_round
from client_app.facts import BankFacts, bank_facts
from client_app.own_rows import sampled_rows
from client_app.privacy_plan import PrivacyPlan
from data.rows import Row
from fedfinlora.cli import main
from fedfinlora.compose import compose
from fedfinlora.deployment.policy import Policy
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.loading import get_session
from fedfinlora.privacy.accounting import Steps, epsilon
from fedfinlora.privacy.history import Event
from fedfinlora.privacy.ledger import read_lines
from fedfinlora.privacy.ledger_repair import reconcile
from fedfinlora.privacy.mechanism import Mechanism
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.wire.messages import BankError, RejectedReply, TrainRequest, pack_reply, pack_request, unpack_reply
from server_app.federated import run_federated


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"), train=60)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Each test reads its rows and tests its gradients again."""
    yield
    client_app.prepared_rows._rows.clear()
    client_app.own_rows._divided.cache_clear()
    client_app.privacy_plan._tested.clear()


def booked(at: BankFacts) -> list[dict[str, Any]]:
    """All lines of a bank's ledger."""
    return read_lines(at.ledger_folder)


class TestGuarantee:
    def test_calibrated_noise_spends_the_wanted_epsilon_over_all_rounds(self, rows: Path, tmp_path: Path) -> None:
        config, at = config_of(rows, tmp_path), facts(tmp_path)
        figures = [ask(config, at, number).figures for number in (1, 2, 3, 4)]
        assert figures[0].epsilon_planned == figures[-1].epsilon_planned
        assert 7.5 < figures[-1].epsilon_planned <= 8.0
        assert [one.epsilon_spent for one in figures] == sorted(one.epsilon_spent for one in figures)
        assert figures[-1].epsilon_spent == pytest.approx(figures[-1].epsilon_planned)
        assert {one.delta for one in figures} == {1e-5}, "thirty rows"

    def test_a_given_multiplier_gives_its_epsilon(self, rows: Path, tmp_path: Path) -> None:
        config = config_of(rows, tmp_path, "privacy.epsilon=0", "privacy.noise_multiplier=1.5")
        figures = ask(config, facts(tmp_path)).figures
        assert figures.epsilon_planned == epsilon([Steps(4 / 30, 1.5, 8)], 1e-5)
        assert figures.epsilon_spent == epsilon([Steps(4 / 30, 1.5, 2)], 1e-5)

    def test_delta_is_the_banks_own_and_a_request_can_only_lower_it(self, rows: Path, tmp_path: Path) -> None:
        def delta(*words: str, **own: Any) -> float:
            noise = ("privacy.epsilon=0", "privacy.noise_multiplier=4")
            return ask(config_of(rows, tmp_path, *noise, *words), facts(tmp_path, **own)).figures.delta

        assert delta("privacy.delta=0.5") == 1e-5
        assert delta("privacy.delta=1e-7") == 1e-7
        assert delta("privacy.delta=1e-7", delta=1e-8) == 1e-8
        assert delta(delta=1e-6) == 1e-6
        assert delta("train.max_rows=50000", declared_rows=("fpb:100000",)) == pytest.approx(1e-6), (
            "of the whole data set"
        )

    def test_another_run_and_a_repeated_round_add_to_what_was_spent(self, rows: Path, tmp_path: Path) -> None:
        config, at = config_of(rows, tmp_path), facts(tmp_path)
        spent = [ask(config, at, 1, run).figures.epsilon_spent for run in ("one", "one", "two")]
        assert spent[0] < spent[1] < spent[2]
        assert [line["run"] for line in booked(at)] == ["one", "one", "two"]

    def test_seed_order_sample_or_name_do_not_change_a_banks_own_data_set(self, rows: Path, tmp_path: Path) -> None:
        """Neither max_rows, nor another seed, another choice of tasks, another order or name of the bank makes rows
        start again.
        """
        write_lines(tmp_path / "bank" / "train" / "fpb_train.jsonl", lines_of("fpb", 40))
        write_lines(tmp_path / "bank" / "train" / "tfns_train.jsonl", lines_of("tfns", 40))
        at = own_rows(tmp_path)
        spent, noise = [], ("privacy.epsilon=0", "privacy.noise_multiplier=4")
        for more in (
            ["seed=0"],
            ["seed=1"],
            ["train.max_rows=70"],
            ["dataset.max_rows_per_task=35"],
            ["dataset.tasks=[fpb]"],
        ):
            spent.append(ask(config_of(rows, tmp_path, *noise, *more), at).figures.epsilon_spent)
        write_lines(tmp_path / "bank" / "train" / "fpb_train.jsonl", lines_of("fpb", 41)[::-1])
        client_app.prepared_rows._rows.clear()
        spent.append(ask(config_of(rows, tmp_path, *noise), replace(at, name="south")).figures.epsilon_spent)
        assert spent == sorted(spent)
        assert len(set(spent)) == 6
        assert len(booked(at)) == 6

    def test_a_row_more_changes_the_sample_by_that_row_alone(self, tmp_path: Path) -> None:
        """Else one row more would move the sum of a step by other rows' gradients too, by far more than the clip
        norm.
        """
        config = config_of(tmp_path, tmp_path, "train.max_rows=30", "dataset.max_rows_per_task=45")
        declared = {"fpb": 60, "tfns": 60}
        own = [Row(f"{task}/{n}", task, f"{task} {n}", "up") for task in ("fpb", "tfns") for n in range(60)]
        at = own_rows(tmp_path)
        chosen = sampled_rows(own, config, at, declared)
        assert 15 < len(chosen) < 45
        for place in (0, 59, 60, 119):
            fewer = sampled_rows(own[:place] + own[place + 1 :], config, at, declared)
            assert fewer == [row for row in chosen if row != own[place]]
        assert sampled_rows(own, replace(config, seed=1), at, declared) == chosen, (
            "no server chooses the sample by its seed"
        )
        assert sampled_rows(own, config, replace(at, state_folder=tmp_path / "other"), declared) != chosen, (
            "the key is the bank's"
        )

    def test_noise_is_fresh_in_each_round_unless_the_bank_itself_repeats_it(
        self, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config, at = config_of(rows, tmp_path), facts(tmp_path)
        one, two = (ask(config, at).delta for _ in range(2))
        assert not np.array_equal(one, two)
        with pytest.raises(ConfigError, match="reproducible_noise"):
            config_of(rows, tmp_path, "privacy.reproducible_noise=true")
        one, two = (ask(config, replace(at, reproducible_noise=True)) for _ in range(2))
        assert np.array_equal(one.delta, two.delta)
        assert (two.figures.epsilon_planned, two.figures.epsilon_spent) == (math.inf, math.inf)
        assert [line["noise_multiplier"] > 0 for line in booked(at)] == [True, True, False, False]
        assert not bank_facts({}).reproducible_noise
        assert bank_facts({"reproducible-noise": "true"}).reproducible_noise
        monkeypatch.setenv("FEDFINLORA_REPRODUCIBLE_NOISE", "1")
        assert bank_facts({}).reproducible_noise

    def test_customers_are_drawn_and_clipped_as_one(self, tmp_path: Path) -> None:
        write_customers(tmp_path)
        config, at = config_of(tmp_path / "bank", tmp_path, "privacy.unit=customer"), own_rows(tmp_path)
        figures = ask(config, at).figures
        assert figures.delta == 1e-5
        session = get_session(config)
        units = client_app.prepared_rows.bank_rows(config, at, session.tokenizer).units
        assert sorted(map(len, units)) == [4] * 10
        assert booked(at)[0]["unit"] == "customer"

    def test_rows_whose_budget_is_exhausted_are_excluded_and_counted(
        self, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """New rows start at zero; the old ones take part no more, in none of the steps."""
        write_lines(tmp_path / "bank" / "train" / "fpb_train.jsonl", lines_of("fpb", 40))
        config = config_of(rows, tmp_path, "train.batch_rows=60")
        at = own_rows(tmp_path, declared_rows=("fpb:60",))
        first = ask(config, at).figures.epsilon_spent
        write_lines(tmp_path / "bank" / "train" / "fpb_train.jsonl", lines_of("fpb", 60))
        client_app.prepared_rows._rows.clear()
        plans = plans_made(monkeypatch)
        later = ask(config, replace(at, budget_epsilon=first * 1.01))
        assert plans[0].booked.left_out == 40
        assert isinstance(plans[0].mechanism, Mechanism)
        assert list(plans[0].mechanism.units) == [(place,) for place in range(40, 60)]
        assert plans[0].mechanism.expected_units == 60, "the denominator is declared"
        assert plans[0].booked.epsilon == pytest.approx(first)
        assert later.figures.epsilon_spent > first, "the reported epsilon adds up all lines, also those of other rows"


def write_customers(place: Path, rows: int = 40, customers: int = 10) -> None:
    lines = [
        {"context": f"row {number} Answer:", "target": "x", "issuer": f"customer {number % customers}"}
        for number in range(rows)
    ]
    write_lines(place / "bank" / "train" / "fpb_train.jsonl", [json.dumps(line) for line in lines])


def plans_made(monkeypatch: pytest.MonkeyPatch) -> list[PrivacyPlan]:
    """The plans of the rounds that follow."""
    made: list[PrivacyPlan] = []
    real = client_app.bank.make_plan

    def watched(*arguments: Any) -> PrivacyPlan:
        made.append(real(*arguments))
        return made[-1]

    monkeypatch.setattr(client_app.bank, "make_plan", watched)
    return made


class TestDeclaredSizes:
    """B2: what the server could read off a reply follows from public, rounded numbers."""

    @pytest.mark.parametrize(
        "more",
        [
            (),
            ("train.max_rows=50",),
            ("train.batch_rows=0", "train.epochs=1"),
            ("privacy=dp_lora", "privacy.noise_multiplier=9"),
        ],
    )
    @pytest.mark.parametrize("counts", [(60, 61), (60, 39)])
    def test_two_data_sets_that_differ_give_the_same_reply_but_for_the_noise(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], counts: tuple[int, int]
    ) -> None:
        plans = plans_made(monkeypatch)
        replies, lines = [], []
        for count in counts:
            bank = Bank(write_bank(tmp_path / str(count), rows=count, min_rows=1), tmp_path / str(count))
            noise = ("privacy=example", "privacy.epsilon=0", "privacy.noise_multiplier=4")
            content = bank.answers(pack_request(bank.request(*noise, *more)))
            assert code_of(content) == "ok", bank.history
            figures = {key: value for key, value in content.metric_records["figures"].items() if key != "load_s"}
            replies.append(
                (
                    set(content),
                    set(content.config_records["reply"]),
                    content.array_records["delta"]["vector"].shape,
                    figures,
                )
            )
            lines.append([bank.lines[0][key] for key in ("number", "sampling_rate", "noise_multiplier", "steps")])
        assert str(replies[0]) == str(replies[1]), "NaN is as NaN"
        assert lines[0] == lines[1]
        one, two = (plan.mechanism for plan in plans)
        assert (one.noise_multiplier, one.clip_norm) == (two.noise_multiplier, two.clip_norm)
        if isinstance(one, Mechanism) and isinstance(two, Mechanism):
            assert (one.sampling_rate, one.expected_units) == (two.sampling_rate, two.expected_units)

    def test_sampling_rate_and_denominator_follow_from_the_declared_rows(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plans = plans_made(monkeypatch)
        bank = Bank(
            write_bank(tmp_path, declared_rows=("fpb:80", "fiqa:20"), min_rows=1, min_units=1), tmp_path
        )  # a limit leaves a random sample
        for words in ((), ("dataset.tasks=[fpb]",), ("dataset.max_rows_per_task=50",), ("train.max_rows=40",)):
            noise = ("privacy.epsilon=0", "privacy.noise_multiplier=4")
            assert code_of(bank.asked_honestly(*noise, *words)) == "ok", bank.history
        mechanisms = [plan.mechanism for plan in plans]
        assert [one.sampling_rate for one in mechanisms if isinstance(one, Mechanism)] == [
            16 / 100,
            16 / 80,
            16 / 70,
            16 / 40,
        ]
        assert [one.expected_units for one in mechanisms if isinstance(one, Mechanism)] == [16] * 4

    def test_customers_must_be_declared(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_customers(tmp_path)
        config = config_of(tmp_path / "bank", tmp_path, "privacy.unit=customer")
        refused(config, own_rows(tmp_path, declared_rows=("fpb:40",)), "needs customers:NUMBER among the declared_rows")
        assert booked(facts(tmp_path)) == []
        plans = plans_made(monkeypatch)
        ask(config, own_rows(tmp_path, declared_rows=("fpb:40", "customers:20")))
        assert isinstance(plans[0].mechanism, Mechanism)
        assert plans[0].mechanism.expected_units == 4 / 40 * 20

    def test_a_task_that_is_not_declared(self, tmp_path: Path) -> None:
        write_lines(tmp_path / "bank" / "train" / "fpb_train.jsonl", lines_of("fpb", 40))
        config = config_of(tmp_path / "bank", tmp_path, "dataset.tasks=[fpb]")
        refused(config, own_rows(tmp_path, declared_rows=("fiqa:40",)), "name none of the tasks asked for")


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
            ((*PRIVATE, "train.epochs=1"), "would reveal the row count"),
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
            (("train.batch_rows=31",), r"train\.batch_rows=31 is more than the 30 declared rows"),
            (("privacy.unit=customer",), "30 of 30 rows have no `issuer`"),
            (("model.context_tokens=3",), "no usable train rows"),
            (("privacy.epsilon=1e-9",), "No noise gives epsilon"),
        ],
    )
    def test_settings_that_do_not_fit_the_banks_rows(
        self, rows: Path, tmp_path: Path, words: tuple[str, ...], reason: str
    ) -> None:
        refused(config_of(rows, tmp_path, *words), facts(tmp_path), reason)
        assert booked(facts(tmp_path)) == []

    def test_fewer_units_or_rows_than_the_bank_wants(self, rows: Path, tmp_path: Path) -> None:
        refused(
            config_of(rows, tmp_path), facts(tmp_path, min_units=31), "30 units for round 1, fewer than min_units=31"
        )
        refused(config_of(rows, tmp_path), facts(tmp_path, min_rows=31), "30 rows, fewer than min_rows=31")
        write_customers(tmp_path)
        customers = config_of(rows, tmp_path, "privacy.unit=customer")
        refused(customers, own_rows(tmp_path, min_units=11), "10 units")
        plain = compose(overrides(rows, tmp_path / "runs"))
        refused(plain, facts(tmp_path, min_rows=31), "fewer than min_rows=31")
        assert booked(facts(tmp_path)) == []

    def test_the_budget_of_the_run_and_the_banks_own(self, rows: Path, tmp_path: Path) -> None:
        config, at = config_of(rows, tmp_path), facts(tmp_path)
        first = ask(config, at).figures.epsilon_spent
        refused(
            config_of(rows, tmp_path, f"privacy.budget_epsilon={first * 1.01}"), at, "above privacy.budget_epsilon", 2
        )
        generous = config_of(rows, tmp_path, "privacy.budget_epsilon=100")
        refused(generous, replace(at, budget_epsilon=first * 1.01), "above privacy.budget_epsilon", 2)
        assert len(booked(at)) == 1

    def test_the_budget_is_tested_at_the_banks_delta(self, rows: Path, tmp_path: Path) -> None:
        """A3: at a large delta the same round would cost next to nothing."""
        words = ("privacy.epsilon=0", "privacy.noise_multiplier=0.4", "privacy.delta=0.99")
        assert epsilon([Steps(4 / 30, 0.4, 2)], 0.99) <= 0
        refused(
            config_of(rows, tmp_path, *words), facts(tmp_path, budget_epsilon=1.0), "above privacy.budget_epsilon=1"
        )
        assert booked(facts(tmp_path)) == []

    def test_what_a_run_may_spend_binds_all_its_rounds_together(self, tmp_path: Path) -> None:
        """B3: epsilon of one request did not bind a repeated one."""
        policy = Policy(models=("memory:tiny-random",), max_epsilon=6.0, privacy=("example",), max_rank=0)
        bank = Bank(write_bank(tmp_path, policy, budget_epsilon=100.0), tmp_path)
        words = ("privacy=example", "privacy.epsilon=6", "train.batch_rows=63")
        codes = [code_of(bank.answers(pack_request(bank.request(*words, run="run")))) for _ in range(6)]
        assert codes[0] == "ok"
        assert codes[-1] == "privacy"
        assert "more than the 6 that a run may spend" in bank.history[-1]["detail"]
        assert epsilon([Steps(1.0, line["noise_multiplier"], line["steps"]) for line in bank.lines], 1e-5) <= 6.0
        assert code_of(bank.answers(pack_request(bank.request(*words, run="another")))) == "ok"

    def test_a_ledger_that_was_edited(self, rows: Path, tmp_path: Path) -> None:
        config, at = config_of(rows, tmp_path), facts(tmp_path)
        ask(config, at)
        file = at.ledger_folder / "ledger.jsonl"
        file.write_bytes(file.read_bytes().replace(b'"steps": 2', b'"steps": 1'))
        refused(config, at, "cannot be believed", 2)

    def test_a_rolled_back_ledger_is_refused_by_the_head_the_server_saw(self, rows: Path, tmp_path: Path) -> None:
        """B4: the aggregator is a witness. What the bank's own files no longer say, its last reply does."""
        config, at = config_of(rows, tmp_path), facts(tmp_path)
        ask(config, at)
        shutil.copytree(at.ledger_folder, tmp_path / "backup")
        seen = ask(config, at, 2).ledger
        assert seen is not None
        assert seen.number == 2
        shutil.rmtree(at.ledger_folder)
        shutil.copytree(tmp_path / "backup", at.ledger_folder)
        refused(config, at, "it was rolled back or cut", 3, ledger_heads={"north": seen})
        ask(config, at, 3, ledger_heads={"south": seen})
        assert len(booked(at)) == 2

    @pytest.mark.parametrize("error", [RuntimeError("row 7"), MemoryError(), UserError("row 7"), OSError("row 7")])
    @pytest.mark.parametrize(("module", "where"), [
        (client_app.admission, "bank_rows"), (client_app.bank, "make_plan"),
        (client_app.local_training, "train_in_bank"), (client_app.local_training, "read_adapter"),
    ])  # fmt: skip
    def test_every_failure_of_a_private_round_is_one_code(
        self,
        rows: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        module: ModuleType,
        where: str,
        error: Exception,
    ) -> None:
        def failing(*arguments: Any, **values: Any) -> None:
            raise error

        monkeypatch.setattr(module, where, failing)
        with pytest.raises(BankError) as caught:
            ask(config_of(rows, tmp_path), facts(tmp_path))
        assert caught.value.code == "privacy"

    def test_nothing_is_trained_before_the_round_is_booked(
        self, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed anywhere after the booking, the bank has spent and sent nothing; killed before, it has neither."""

        def killed(*arguments: Any, **values: Any) -> None:
            assert len(booked(facts(tmp_path))) == 1
            raise KeyboardInterrupt

        monkeypatch.setattr(client_app.local_training, "train_in_bank", killed)
        with pytest.raises(KeyboardInterrupt):
            ask(config_of(rows, tmp_path), facts(tmp_path))

    def test_a_budget_in_the_node_config(self) -> None:
        assert bank_facts({"budget-epsilon": 3.0, "ledger-dir": "/l"}).budget_epsilon == 3.0
        for wrong in ("much", -1.0, math.nan):
            with pytest.raises(BankError, match="budget-epsilon"):
                bank_facts({"budget-epsilon": wrong})

    def test_what_the_bank_decides_in_the_node_config(self) -> None:
        own = {"declared-rows": "fpb:1200,fiqa:400", "delta": 1e-7, "min-units": 30, "min-rows": 40}
        found = bank_facts(own)
        assert (found.declared_rows, found.delta) == (("fpb:1200", "fiqa:400"), 1e-7)
        assert (found.min_units, found.min_rows) == (30, 40)
        for wrong in ({"declared-rows": "fpb"}, {"delta": 1.0}, {"delta": -1}, {"min-units": -1}, {"min-rows": "few"}):
            with pytest.raises(BankError) as caught:
                bank_facts(wrong)
            assert caught.value.code == "config"


class TestABankThatIsDeployed:
    """A4: a bank with rows of its own accounts for every round, and with a budget lets no round without its own noise
    through.
    """

    @pytest.mark.parametrize("mode", ["privacy=none", "privacy=bank"])
    def test_with_a_budget_it_refuses_every_round_without_its_own_noise(
        self, rows: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_lines(tmp_path / "bank" / "train" / "fpb_train.jsonl", lines_of("fpb", 40))
        monkeypatch.setattr(client_app.bank, "get_session", lambda config: pytest.fail("a model was loaded"))
        more = ("privacy.epsilon=0", "privacy.noise_multiplier=1") if mode == "privacy=bank" else ()
        request = TrainRequest(
            compose(overrides(rows, tmp_path, mode, *more)), "run", 1, "", source_fingerprint(), np.zeros(1, np.float32)
        )
        with pytest.raises(BankError, match="would spend without limit") as caught:
            train_round(request, own_rows(tmp_path, budget_epsilon=8.0))
        assert caught.value.code == "policy-privacy"
        assert booked(facts(tmp_path)) == []

    def test_without_one_it_books_them_as_infinite_before_it_trains(
        self, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_lines(tmp_path / "bank" / "train" / "fpb_train.jsonl", lines_of("fpb", 40))
        plain, at = compose(overrides(rows, tmp_path / "runs", rounds=4)), own_rows(tmp_path)

        def killed(*arguments: Any, **values: Any) -> None:
            (line,) = booked(at)
            assert (line["noise_multiplier"], line["steps"], line["unit"]) == (0.0, 2, "example")
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(client_app.local_training, "train_in_bank", killed)
            with pytest.raises(KeyboardInterrupt):
                ask(plain, at)
        private = ask(config_of(rows, tmp_path), at)
        assert private.figures.epsilon_spent == math.inf
        assert private.figures.epsilon_planned <= 8
        refused(config_of(rows, tmp_path), replace(at, budget_epsilon=1000.0), "above privacy.budget_epsilon=1000")
        write_lines(tmp_path / "bank" / "train" / "fpb_train.jsonl", lines_of("other", 40))
        client_app.prepared_rows._rows.clear()
        assert ask(config_of(rows, tmp_path), replace(at, budget_epsilon=8.0)).figures.epsilon_spent == math.inf, (
            "reported without regard to rows"
        )

    def test_held_out_rows_are_booked_too(self, rows: Path, tmp_path: Path) -> None:
        """Their loss leaves with the reply."""
        write_lines(tmp_path / "bank" / "train" / "fpb_train.jsonl", lines_of("fpb", 200))
        plain, at = compose(overrides(rows, tmp_path / "runs", rounds=4)), own_rows(tmp_path)
        reply = ask(plain, at)
        assert reply.figures.holdout_rows > 0
        assert reply.ledger is not None
        refused(config_of(rows, tmp_path), replace(at, budget_epsilon=8.0), "on every row above")

    def test_an_unwritable_ledger_refuses_even_a_round_without_privacy(self, rows: Path, tmp_path: Path) -> None:
        write_lines(tmp_path / "bank" / "train" / "fpb_train.jsonl", lines_of("fpb", 40))
        (tmp_path / "ledger").write_text("in the way")
        refused(compose(overrides(rows, tmp_path / "runs")), own_rows(tmp_path), "nothing private may leave")

    def test_its_history_has_what_a_lost_ledger_is_reconciled_with(self, tmp_path: Path) -> None:
        bank = Bank(write_bank(tmp_path), tmp_path)
        assert code_of(bank.asked_honestly()) == "ok"
        assert [line["outcome"] for line in bank.history] == ["begun", "booked", "sent"]
        (line,) = bank.lines
        for event in bank.history[1:]:
            assert (event["ledger_number"], event["ledger_hash"]) == (line["number"], line["hash"])
            assert (event["unit"], event["mechanism"]) == (line["unit"], line["mechanism"])
            assert (event["sampling_rate"], event["noise_multiplier"]) == (
                line["sampling_rate"],
                line["noise_multiplier"],
            )
            assert event["noise_steps"] == line["steps"]
        shutil.rmtree(bank.facts.ledger_folder / "cohorts")
        (bank.facts.ledger_folder / "ledger.jsonl").unlink()
        assert code_of(bank.asked_honestly()) == "privacy"
        reconcile(bank.facts.ledger_folder, bank.facts.history_file)
        assert code_of(bank.asked_honestly()) == "ok"
        assert len(bank.lines) == 2


class TestFaults:
    """What is not on the disk has not left, for any fault of disk, clock or process."""

    @pytest.mark.parametrize(
        ("call", "number"),
        [("write", errno.ENOSPC), ("open", errno.EROFS), ("fsync", errno.EIO)],
        ids=["full", "read-only", "broken"],
    )
    @pytest.mark.parametrize("first", [True, False], ids=["a new ledger", "one that is there"])
    def test_a_disk_that_takes_no_line(
        self, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, first: bool
    ) -> None:
        config, at = config_of(rows, tmp_path), facts(tmp_path)
        if not first:
            ask(config, at)
        real = getattr(os, call)

        def failing(what: Any, *arguments: Any) -> Any:
            file = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else str(what)
            writes = call != "open" or arguments[0] & (os.O_WRONLY | os.O_RDWR)
            if writes and Path(file).is_relative_to(at.ledger_folder):
                raise OSError(number, os.strerror(number), file)
            return real(what, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            patch.setattr(
                client_app.local_training, "train_in_bank", lambda *arguments, **values: pytest.fail("it was trained")
            )
            refused(config, at, "nothing private may leave", 2)
        before = len(booked(at))
        alone = ask(config, facts(tmp_path / "alone")).figures.epsilon_spent
        reply = ask(config, at, 2)
        assert len(booked(at)) == before + 1
        assert (reply.figures.epsilon_spent > alone) == bool(before)

    def test_a_history_that_cannot_be_written_stops_the_round(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before it begins by the code `disk`; once it has begun by `privacy`, and it is booked by then."""
        bank = Bank(write_bank(tmp_path), tmp_path)
        real = client_app.bank.record
        for fails, code, lines in (("begun", "disk", 0), ("booked", "privacy", 1), ("sent", "disk", 2)):

            def full(file: Path, event: Event, fails: str = fails) -> None:
                if event.outcome == fails:
                    raise UserError("No space left on device")
                real(file, event)

            monkeypatch.setattr(client_app.bank, "record", full)
            assert code_of(bank.asked_honestly()) == code
            assert len(bank.lines) == lines

    def test_a_clock_that_is_set_back_changes_nothing(
        self, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config, at = config_of(rows, tmp_path), facts(tmp_path)
        first = ask(config, at)
        monkeypatch.setattr(
            time, "strftime", lambda form, *rest: "1999-01-01T00:00:00+0000"[: 10 if form == "%Y-%m-%d" else None]
        )
        monkeypatch.setattr(time, "time", lambda: 915148800.0)
        second = ask(config, at, 2)
        assert second.figures.epsilon_spent == epsilon(
            [Steps(line["sampling_rate"], line["noise_multiplier"], line["steps"]) for line in booked(at)], 1e-5
        )
        assert second.figures.epsilon_spent > first.figures.epsilon_spent
        assert [line["number"] for line in booked(at)] == [1, 2], OUTCOMES["clock back"].does
        refused(
            config, replace(at, budget_epsilon=first.figures.epsilon_spent * 1.01), "above privacy.budget_epsilon", 3
        )


class TestWhatIsSaid:
    def test_nothing_that_the_rows_decide(self, rows: Path, tmp_path: Path) -> None:
        figures = ask(config_of(rows, tmp_path), facts(tmp_path)).figures
        known = {"steps", "load_s", "epsilon_planned", "epsilon_spent", "delta"}
        assert {
            name
            for name, value in vars(figures).items()
            if value and not (isinstance(value, float) and math.isnan(value))
        } <= known
        assert figures.steps == 2

    def test_the_server_forgets_what_a_talkative_bank_says(self, rows: Path, tmp_path: Path) -> None:
        delta, layout_id, figures, head, _ = ask(config_of(rows, tmp_path), facts(tmp_path))
        talkative = replace(figures, rows=123, train_loss=1.0, bank_rows=30)
        layout = get_session(config_of(rows, tmp_path)).layout
        read = unpack_reply(pack_reply("north", layout_id, delta, talkative, ledger=head), layout, 0.0, private=True)
        assert (read.figures.rows, read.figures.bank_rows) == (0, 0)
        assert math.isnan(read.figures.train_loss)

    def test_a_reply_that_does_not_say_what_it_spent_is_not_averaged(self, rows: Path, tmp_path: Path) -> None:
        delta, layout_id, figures, head, _ = ask(config_of(rows, tmp_path), facts(tmp_path))
        layout = get_session(config_of(rows, tmp_path)).layout
        for wrong in ({"epsilon_spent": math.nan}, {"delta": 0.0}, {"epsilon_planned": -1.0}, {"steps": 0}):
            with pytest.raises(RejectedReply, match=r"does not say|must be a"):
                unpack_reply(
                    pack_reply("north", layout_id, delta, replace(figures, **wrong), ledger=head),
                    layout,
                    0.0,
                    private=True,
                )


@pytest.mark.parametrize("command", ["centralized", "local"])
def test_the_baselines_have_no_privacy_and_say_so(
    command: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *overrides(rows, tmp_path, *PRIVATE)]) == 2
    assert "privacy=example goes with simulate" in capsys.readouterr().err


TESTS = [str(Path(__file__).parents[1] / "helpers")]
"""Where a process of its own finds `private_bank`."""

KILLED_BANKS = """
import json, os, signal, sys
from pathlib import Path
sys.path[:0] = {tests!r}
import client_app.bank, client_app.local_training, client_app.privacy_plan
from fedfinlora.model.loading import load_base
from private_bank import ask, config_of, facts

def kill(*arguments, **values):
    os.kill(os.getpid(), signal.SIGKILL)

rows, ended = Path({rows!r}), []
for where, place in {places!r}.items():
    if not ended:
        load_base(config_of(rows, Path(place)).model)  # and every library once, not in each child
    child = os.fork()
    if not child:
        if where == "before the booking":
            client_app.privacy_plan.book = kill
        elif where == "before the training":
            client_app.local_training.train_in_bank = kill
        else:
            client_app.local_training.read_adapter = kill
        try:
            ask(config_of(rows, Path(place)), facts(Path(place)))
        finally:
            os._exit(1)
    ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ended))
"""
KILLED_AT = {"before the booking": 0, "before the training": 1, "before the reply": 1}
"""Where a bank is killed -> the rounds that it has spent by then."""


@pytest.fixture(scope="module")
def killed_banks(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where a bank was killed, in a process of its own and by SIGKILL -> its folder."""
    places = {where: str(tmp_path_factory.mktemp("killed")) for where in KILLED_AT}
    program = KILLED_BANKS.format(tests=TESTS, rows=str(rows), places=places)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [-signal.SIGKILL] * len(places), done.stderr
    return {where: Path(place) for where, place in places.items()}


@pytest.mark.slow
@pytest.mark.parametrize("where", KILLED_AT)
def test_a_bank_killed_on_the_way_has_booked_all_that_could_have_left(
    killed_banks: dict[str, Path], rows: Path, where: str
) -> None:
    """A reply needs a booked round, and the next round's epsilon counts it."""
    place, spent_rounds = killed_banks[where], KILLED_AT[where]
    at = facts(place)
    assert len(booked(at)) == spent_rounds, OUTCOMES["killed booked"].does
    config = config_of(rows, place)
    spent = ask(config, at).figures.epsilon_spent
    alone = ask(config, facts(place / "elsewhere")).figures.epsilon_spent
    assert len(booked(at)) == spent_rounds + 1
    assert (spent > alone) == bool(spent_rounds)


BUSY_BANK = """
import sys
from pathlib import Path
sys.path[:0] = {tests!r}
from hostile_server import BUDGET, Bank, code_of
from fedfinlora.wire.messages import pack_request

bank = Bank(Path({settings!r}), Path({place!r}))
request = pack_request(bank.request("privacy=example", "privacy.epsilon=6", "train.batch_rows=63", run={run!r}))
print("ready", flush=True)
sys.stdin.readline()
print(*[code_of(bank.answers(request)) for _ in range(8)])
"""


@pytest.mark.slow
def test_two_runs_on_the_same_rows_at_once_stay_within_the_budget_together(tmp_path: Path) -> None:
    """Two processes that begin at the same moment: each round is in the ledger, and what both spent is within the
    bank's budget.
    """
    settings = write_bank(tmp_path)
    reported = []
    busy = [
        BUSY_BANK.format(tests=TESTS, settings=str(settings), place=str(tmp_path), run=run) for run in ("one", "two")
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for program in busy
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        reported += process.communicate(timeout=240)[0].split()
    bank = Bank(settings, tmp_path)
    assert set(reported) == {"ok", "privacy"}
    assert reported.count("ok") == len(bank.lines) > 2
    assert {line["run"] for line in bank.lines} == {"one", "two"}
    assert any(OUTCOMES["two runs"].says in line["detail"] for line in bank.history)
    spent = epsilon(
        [Steps(line["sampling_rate"], line["noise_multiplier"], line["steps"]) for line in bank.lines], 1e-5
    )
    assert spent <= BUDGET
    assert epsilon([Steps(1.0, bank.lines[0]["noise_multiplier"], len(bank.lines) + 1)], 1e-5) > BUDGET


@pytest.mark.slow
def test_a_run_has_a_card_and_a_second_one_stops_at_the_budget(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The banks of the second have other states and the ledgers of the first. A private run through Flower's processes
    is in tests/system/test_surroundings.py.
    """
    monkeypatch.setenv("FEDFINLORA_LEDGER", str(tmp_path / "ledger"))
    words = overrides(rows, tmp_path / "runs", *PRIVATE)
    first = compose(words)
    run = run_federated(FakeGrid(simulated_banks(first.banks, tmp_path / "first banks")), first)
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
    with pytest.raises(UserError, match="The bank's rows, ledger or budget do not allow this round"):
        run_federated(FakeGrid(simulated_banks(again.banks, tmp_path / "banks")), again)


@pytest.mark.slow
def test_bench_private_step_agrees_with_opacus_and_says_what_it_costs(rows: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    status = main(["bench", "private-step", *overrides(rows, tmp_path), "--json", str(file)])
    figures = json.loads(file.read_text("utf-8"))
    assert status == (0 if figures["verdict"] == "measured" else 3), "other tests run at the same time"
    assert set(figures["load"]) == {"before", "after"}
    assert figures["bench"] == "private-step"
    assert figures["ratio"] > 0
    assert figures["differs"]["relative_difference_from_opacus"] < 1 / 1024, "what the grid of the noise rounds off"
    assert set(figures["peak_growth_gib"]) == {"private", "plain", "plain, shared prefixes", "Opacus hooks"}
