"""A bank's settings file, each of its rules, its history, and what a refusal tells the server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_grid import FakeGrid
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import overrides, rounds_of, write_rows

import client_app.bank
import client_app.local_training
import client_app.own_rows
import client_app.prepared_rows
from client_app.admission import check_policy
from client_app.bank import train_round
from client_app.facts import bank_facts
from client_app.trial import OF_ROWS, WAYS_OUT
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.deployment.bank_settings import BankSettings, declared_sizes, read_settings, rounded_rows, settings_text
from fedfinlora.deployment.policy import RULES, Policy, Work, broken_rule
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.embedded import embedded_folder
from fedfinlora.model.files import model_sha256
from fedfinlora.model.loading import get_session, initial_adapter
from fedfinlora.privacy.head import Head
from fedfinlora.privacy.history import Event, read_history, record, rounds_today
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.wire.messages import BankError, TrainRequest
from fedfinlora.wire.reasons import SAFE_REASONS
from server_app.federated import run_federated

TINY = Policy(models=("memory:tiny-random",))


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    client_app.prepared_rows._rows.clear()
    client_app.own_rows._divided.cache_clear()


def work(*words: str, steps: int = 2, rows: int = 8, today: int = 0, hour: int = 12, model_sha256: str = "") -> Work:
    config, now = compose(["model=tiny-random", *words]), datetime(2026, 1, 1, hour, 30)
    return Work(config, steps, rows, today, now, lambda: model_sha256)


@pytest.mark.parametrize(
    ("policy", "done", "rule"),
    [
        ({}, work(), ""),
        ({"models": ()}, work(), "model"),
        ({"models": ("memory:tiny-random@main",)}, work(), ""),
        ({"models": ("memory:tiny-random@abc",)}, work(), "model"),
        ({"peft_methods": ("dora",)}, work(), "peft_methods"),
        ({"max_rank": 3}, work("peft.rank=4"), "max_rank"),
        ({"max_rank": 4}, work("peft.rank=4"), ""),
        ({"max_rank": 0}, work("peft.rank=400"), ""),
        ({"max_steps_per_round": 1}, work(steps=2), "max_steps_per_round"),
        ({"max_rows_per_round": 7}, work(rows=8), "max_rows_per_round"),
        ({"max_processes": 2}, work("train.processes=2"), ""),
        ({"max_processes": 2}, work("train.processes=3"), "max_processes"),
        ({}, work("train.processes=64"), ""),
        ({"max_rounds_per_day": 3}, work(today=2), ""),
        ({"max_rounds_per_day": 3}, work(today=3), "max_rounds_per_day"),
        ({"privacy": ("example",)}, work(), "privacy"),
        ({"privacy": ("example",)}, work("privacy=example"), ""),
        ({"privacy_units": ("customer",)}, work("privacy=example"), "privacy_units"),
        ({"privacy_units": ("customer",)}, work(), ""),
        ({}, work("peft.target_modules=[q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]"), ""),
        ({}, work("peft.target_modules=[lm_head]"), "target_modules"),
        ({}, work("peft.target_modules=[q_proj,embed_tokens]"), "target_modules"),
        ({"target_modules": ("lm_head",)}, work("peft.target_modules=[lm_head]"), ""),
        ({}, work("train.optimizer=sgd"), "optimizer"),
        ({}, work("train.optimizer=sgd", "privacy=example"), ""),
        ({}, work("train.optimizer=sgd", "privacy=bank", "privacy.accept_noise=true"), "optimizer"),
        ({"optimizer": ("adamw", "sgd")}, work("train.optimizer=sgd"), ""),
        ({}, work("train.clip_norm=1e-11"), "optimizer"),
        ({}, work("train.learning_rate=1000"), "optimizer"),
        ({}, work("train.proximal_mu=1e30"), "optimizer"),
        ({}, work("train.clip_norm=1e-4"), "optimizer"),
        ({}, work("train.learning_rate=7.450580596923828e-09", "train.weight_decay=134217728"), "optimizer"),
        ({}, work("train.learning_rate=0.1", "peft.loraplus_ratio=2"), "optimizer"),
        ({}, work("train.learning_rate=5e-3", "peft.loraplus_ratio=16", "train.weight_decay=0.1"), ""),
        ({}, work("train.clip_norm=1e-11", "privacy=example"), ""),
        ({"optimizer": ("adamw", "sgd")}, work("train.clip_norm=1e-11"), ""),
        ({}, work("dataset.equalize_tasks=true"), "datasets"),
        ({"datasets": ("fpb",)}, work("dataset.tasks=[fpb]"), ""),
        ({"datasets": ("fpb",)}, work("dataset.tasks=[fpb,fiqa]"), "datasets"),
        ({"datasets": ("fpb",)}, work(), "datasets"),
        ({"datasets": ()}, work("dataset.tasks=[fpb]"), "datasets"),
        ({"generation": "none"}, work(), "generation"),
        ({"generation": "none"}, work("train.holdout_max_rows=0"), ""),
        ({}, work("privacy=example", "privacy.delta=1e-4"), "max_delta"),
        ({}, work("privacy=example", "privacy.delta=1e-5"), ""),
        ({"max_delta": 0.0}, work("privacy=example", "privacy.delta=0.5"), ""),
        ({"max_epsilon": 3.0}, work("privacy=example", "privacy.epsilon=4"), "max_epsilon"),
        ({"max_epsilon": 3.0}, work("privacy=example", "privacy.epsilon=0", "privacy.noise_multiplier=9"),
        "max_epsilon"),
        ({"max_epsilon": 0.0}, work("privacy=example", "privacy.epsilon=99"), ""),
        ({"models": (f"memory:tiny-random sha256:{'a' * 64}",)}, work(model_sha256="a" * 64), ""),
        ({"models": (f"memory:tiny-random@main sha256:{'a' * 64}",)}, work(model_sha256="a" * 64), ""),
        ({"models": (f"memory:tiny-random sha256:{'a' * 64}",)}, work(model_sha256="b" * 64), "model"),
        ({"reveal": ("train_loss",)}, work(), "reveal"),
        ({"reveal": ("rows",)}, work(), ""),
        ({"reveal": ()}, work("strategy.weighting=equal"), ""),
        ({"reveal": ()}, work("privacy=example"), ""),
        ({"hours": "08:00-12:30"}, work(), "hours"),
        ({"hours": "08:00-12:31"}, work(), ""),
        ({"hours": "20:00-06:00"}, work(hour=5), ""),
    ],
)  # fmt: skip
def test_each_rule_refuses_what_it_names_and_nothing_else(policy: dict[str, Any], done: Work, rule: str) -> None:
    assert broken_rule(replace(TINY, **policy), done) == rule


def test_every_rule_has_a_way_out_in_words() -> None:
    assert {*RULES, *OF_ROWS} <= set(WAYS_OUT)


def test_every_rule_has_its_sentence_for_the_server() -> None:
    assert {f"policy-{rule}" for rule in (*RULES, "code")} == {
        code for code in SAFE_REASONS if code.startswith("policy-")
    }


class TestFile:
    def settings(self, **values: Any) -> BankSettings:
        return BankSettings(**{"name": "north", "data": "/rows", "coordinator": "host:1", "policy": TINY, **values})

    def test_what_is_written_is_read_again_and_every_key_explained(self, tmp_path: Path) -> None:
        (tmp_path / "bank.yaml").write_text(settings_text(self.settings(budget_epsilon=3.5)))
        found, digest = read_settings(tmp_path / "bank.yaml")
        assert found == self.settings(budget_epsilon=3.5)
        assert len(digest) == 64
        text = (tmp_path / "bank.yaml").read_text()
        lines = text.splitlines()
        unexplained = ("version", "policy")
        keys = [item.name for item in fields(BankSettings) if item.name not in unexplained]
        for key in [*keys, *(f"  {item.name}" for item in fields(Policy))]:
            place = next(number for number, line in enumerate(lines) if line.startswith(f"{key}:"))
            assert lines[place - 1].lstrip().startswith("# "), key

    def test_a_file_that_says_nothing_of_them_has_a_budget_and_least_sizes(self, tmp_path: Path) -> None:
        (tmp_path / "bank.yaml").write_text("name: north\ndata: /x")
        found, _ = read_settings(tmp_path / "bank.yaml")
        assert (found.budget_epsilon, found.delta, found.min_units, found.min_rows) == (8.0, 0.0, 20, 20)

    def test_declared_rows_are_read_as_they_stand_in_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "bank.yaml").write_text("name: north\ndata: /x\ndeclared_rows: [fpb:1200, 'sea loans:1:400']")
        found, _ = read_settings(tmp_path / "bank.yaml")
        assert declared_sizes(found.declared_rows) == {"fpb": 1200, "sea loans:1": 400}

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("name: [", "is not YAML"),
            ("- a", "group of keys"),
            ("name: north\ndata: /x\npolcy: {}", "polcy"),
            ("name: a/b\ndata: /x", "plain name"),
            ("name: north\ndata: rows", "absolute"),
            ("name: north\ndata: /x\npolicy: {reveal: [salaries]}", "salaries"),
            ("name: north\ndata: /x\npolicy: {models: [a sha256:b]}", "64 digits"),
            ("version: 2\nname: north\ndata: /x", "version 2"),
            ("name: north\ndata: /x\npolicy: {max_rank: -1}", "max_rank"),
            ("name: north\ndata: /x\npolicy: {max_rank: many}", "max_rank"),
            ("name: north\ndata: /x\npolicy: {privacy: [sometimes]}", "sometimes"),
            ("name: north\ndata: /x\npolicy: {hours: 8-18}", "hours"),
            ("name: north\ndata: /x\npolicy: {optimizer: [lion]}", "optimizer"),
            ("name: north\ndata: /x\nbudget_epsilon: 8\nbudget_epsilon: 0", "'budget_epsilon' is there twice"),
            ("base: &base {budget_epsilon: 0}\nname: north\ndata: /x\n<<: *base", "or is a merge"),
            ("[" * 20000, "is not YAML"),
            ("name: north\ndata: /x\npolicy: {generation: text}", "generation"),
            ("name: north\ndata: /x\npolicy: {max_delta: -1}", "max_delta"),
            ("name: north\ndata: /x\npolicy: {max_delta: .nan}", "max_delta"),
            ("name: north\ndata: /x\npolicy: {target_modules: 7}", "target_modules"),
            ("name: north\ndata: /x\npolicy: {peft_methods: [prefix]}", "prefix"),
            ("name: north\ndata: /x\nbudget_epsilon: -1", "budget_epsilon"),
            ("name: north\ndata: /x\nbudget_epsilon: .inf", "budget_epsilon"),
            ("name: north\ndata: /x\nbudget_epsilon: .nan", "budget_epsilon"),
            ("name: north\ndata: /x\ndelta: 0.001", "delta"),
            ("name: north\ndata: /x\ndelta: -1", "delta"),
            ("name: north\ndata: /x\ndelta: .nan", "delta"),
            ("name: north\ndata: /x\nmin_units: -1", "min_units"),
            ("name: north\ndata: /x\nmin_rows: -1", "min_rows"),
            ("name: north\ndata: /x\ndeclared_rows: [fpb]", "declared_rows: 'fpb' must be TASK:ROWS"),
            ("name: north\ndata: /x\ndeclared_rows: ['fpb:0']", "declared_rows"),
            ("name: north\ndata: /x\ndeclared_rows: ['fpb:-5']", "declared_rows"),
            ("name: north\ndata: /x\ndeclared_rows: ['fpb:1.5']", "declared_rows"),
            ("name: north\ndata: /x\ndeclared_rows: [':5']", "declared_rows"),
            ("name: north\ndata: /x\ndeclared_rows: ['a,b:5']", "declared_rows"),
            ("name: north\ndata: /x\ndeclared_rows: ['fpb:5', 'fpb:6']", "declared_rows"),
            ("name: north\ndata: /x\ndeclared_rows: {fpb: 5}", "declared_rows"),
        ],
    )
    def test_a_bad_file_is_refused_by_name_and_key(self, tmp_path: Path, text: str, named: str) -> None:
        (tmp_path / "bank.yaml").write_text(text)
        with pytest.raises(ConfigError, match=named) as error:
            read_settings(tmp_path / "bank.yaml")
        assert "bank.yaml" in str(error.value)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"bank\.yaml cannot be read"):
            read_settings(tmp_path / "bank.yaml")

    def test_a_bank_without_a_readable_file_refuses_everything(self, tmp_path: Path) -> None:
        with pytest.raises(BankError, match="cannot be read") as error:
            bank_facts({"settings": str(tmp_path / "bank.yaml")})
        assert error.value.code == "config"


@given(count=st.integers(1, 10**9))
def test_a_rounded_number_of_rows_has_two_digits_and_is_near(count: int) -> None:
    rounded = rounded_rows(count)
    assert len(str(rounded).rstrip("0")) <= 2
    assert abs(rounded - count) <= 0.05 * count
    assert rounded_rows(rounded) == rounded


class TestHistory:
    def test_lines_are_kept_and_a_torn_one_is_dropped(self, tmp_path: Path) -> None:
        file = tmp_path / "history" / "north.jsonl"
        record(file, Event("run", 1, "begun"))
        record(file, Event("run", 1, "sent", rows=5))
        file.write_text(file.read_text() + '{"run": "r')
        assert [line["outcome"] for line in read_history(file)] == ["begun", "sent"]
        assert rounds_today(file) == 1
        assert file.stat().st_mode & 0o777 == 0o600

    def test_an_unwritable_history_lets_nothing_run(self, rows: Path, tmp_path: Path) -> None:
        bank = bank_of(rows, tmp_path)
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "history").write_text("in the way")
        with pytest.raises(BankError) as error:
            ask(compose(overrides(bank.rows, tmp_path / "runs")), bank)
        assert error.value.code == "disk"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"), train=40)


class Bank:
    """A bank with a settings file, without a budget unless one is given."""

    def __init__(self, rows: Path, place: Path, budget: float = 0.0, **policy: Any) -> None:
        self.rows = rows
        allowed = replace(TINY, **policy)
        settings = BankSettings(
            name="north",
            data=str(rows),
            coordinator="host:1",
            declared_rows=("fpb:40",),
            budget_epsilon=budget,
            min_rows=8,
            policy=allowed,
        )
        place.mkdir(parents=True, exist_ok=True)
        (place / "bank.yaml").write_text(settings_text(settings))
        self.node_config = {
            "settings": str(place / "bank.yaml"), "state-dir": str(place / "state"),
                "ledger-dir": str(place / "ledger"),
        }  # fmt: skip
        self.facts = bank_facts(self.node_config)

    @property
    def history(self) -> list[tuple[str, str]]:
        return [(line["outcome"], line["code"]) for line in read_history(self.facts.history_file)]


def bank_of(rows: Path, place: Path, **policy: Any) -> Bank:
    return Bank(rows, place, **policy)


def asked(config: Config) -> TrainRequest:
    """A request as far as a policy reads it."""
    return TrainRequest(config, "run", 1, "layout", source_fingerprint(), np.zeros(1, np.float32))


def ask(config: Config, bank: Bank, round_number: int = 1) -> Any:
    session = get_session(config)
    adapter = initial_adapter(session, config)
    return train_round(
        TrainRequest(config, "run", round_number, session.layout.id, source_fingerprint(), adapter), bank.facts
    )


class TestBank:
    def test_what_is_allowed_runs_and_is_written_down(self, rows: Path, tmp_path: Path) -> None:
        bank = bank_of(rows, tmp_path)
        ask(compose(overrides(rows, tmp_path / "runs")), bank)
        assert bank.history == [("begun", ""), ("booked", ""), ("sent", "")]
        sent = read_history(bank.facts.history_file)[-1]
        assert (sent["rows"], sent["steps"]) == (8, 2)
        assert sent["bytes_sent"] > 0
        assert {"rows", "train_loss"} <= set(sent["figures"])
        assert sent["policy_sha256"] == bank.facts.policy_sha256
        assert (sent["noise_multiplier"], sent["epsilon_spent"]) == (0, None), (
            "without a budget it may run, and costs everything"
        )

    def test_a_private_round_tells_its_rows_at_home_alone(self, rows: Path, tmp_path: Path) -> None:
        bank = bank_of(rows, tmp_path)
        done = ask(compose(overrides(rows, tmp_path / "runs", "privacy=example")), bank)
        figures = done.figures
        sent = read_history(bank.facts.history_file)[-1]
        assert figures.rows == 0
        assert Head(sent["ledger_number"], sent["ledger_hash"]) == done.ledger
        assert (sent["unit"], sent["noise_steps"], sent["left_out"]) == ("example", 2, 0)
        assert sent["sampling_rate"] == 4 / 40
        assert sent["rows"] > 0
        assert not {"rows", "train_loss", "tokens"} & set(sent["figures"])
        assert sent["epsilon_spent"] == figures.epsilon_spent

    def test_a_bank_with_a_budget_refuses_what_would_leave_without_noise(self, rows: Path, tmp_path: Path) -> None:
        """With any list in its policy."""
        bank = bank_of(rows, tmp_path, budget=8.0, privacy=("none", "example", "bank"))
        for words in ((), ("privacy=bank", "privacy.accept_noise=true")):
            with pytest.raises(BankError) as error:
                ask(compose(overrides(rows, tmp_path / "runs", *words)), bank)
            assert error.value.code == "policy-privacy"
        assert bank.history == [("refused", "policy-privacy")] * 2
        ask(compose(overrides(rows, tmp_path / "runs", "privacy=example", "privacy.epsilon=2")), bank)
        assert bank.history[-1] == ("sent", "")

    @pytest.mark.parametrize(
        ("policy", "code"),
        [
            ({"models": ("elsewhere",)}, "policy-model"),
            ({"max_steps_per_round": 1}, "policy-max_steps_per_round"),
            ({"max_rows_per_round": 7}, "policy-max_rows_per_round"),
            ({"privacy": ("example",)}, "policy-privacy"),
        ],
    )
    def test_what_is_not_allowed_does_not_train(
        self, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: dict[str, Any], code: str
    ) -> None:
        def never(*arguments: Any, **values: Any) -> None:
            raise AssertionError("trained")

        monkeypatch.setattr(client_app.local_training, "train_in_bank", never)
        bank = bank_of(rows, tmp_path, **policy)
        with pytest.raises(BankError) as error:
            ask(compose(overrides(rows, tmp_path / "runs")), bank)
        assert error.value.code == code
        assert bank.history[-1] == ("refused", code)

    def test_a_refused_model_is_not_even_loaded(
        self, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bank = bank_of(rows, tmp_path, models=("elsewhere",))
        config = compose(overrides(rows, tmp_path / "runs"))
        session = get_session(config)
        request = TrainRequest(
            config, "run", 1, session.layout.id, source_fingerprint(), initial_adapter(session, config)
        )

        def never(config: Config) -> None:
            raise AssertionError("loaded")

        monkeypatch.setattr(client_app.bank, "get_session", never)
        with pytest.raises(BankError) as error:
            train_round(request, bank.facts)
        assert error.value.code == "policy-model"

    def test_rounds_of_a_day_are_counted_over_runs_and_restarts(self, rows: Path, tmp_path: Path) -> None:
        config = compose(overrides(rows, tmp_path / "runs"))
        bank = bank_of(rows, tmp_path, max_rounds_per_day=2)
        ask(config, bank, 1)
        ask(config, bank_of(rows, tmp_path, max_rounds_per_day=2), 2)
        with pytest.raises(BankError) as error:
            ask(config, bank, 1)
        assert error.value.code == "policy-max_rounds_per_day"

    def test_a_failure_is_written_down_with_its_code(
        self, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*arguments: Any, **values: Any) -> None:
            raise UserError("diverged")

        monkeypatch.setattr(client_app.local_training, "train_in_bank", broken)
        bank = bank_of(rows, tmp_path)
        with pytest.raises(BankError):
            ask(compose(overrides(rows, tmp_path / "runs")), bank)
        assert bank.history == [("begun", ""), ("booked", ""), ("failed", "diverged")]


def test_a_refusal_is_in_the_round_record_and_the_run_continues(rows: Path, tmp_path: Path) -> None:
    north = bank_of(rows, tmp_path / "north", max_rank=2)
    south = {"bank": "south", "data-path": str(rows), "state-dir": str(tmp_path / "south")}
    config = compose(overrides(rows, tmp_path / "runs", "dataset.source=jsonl", f"dataset.root={rows}"))
    run = run_federated(FakeGrid({7: north.node_config, 8: south}), config)
    for line in rounds_of(run):
        refused, trained = line["banks"]
        assert (refused["bank"], refused["status"], refused["code"]) == ("north", "error", "policy-max_rank")
        assert "rule: max_rank" in refused["reason"]
        assert trained["status"] == "ok"
        assert "policy_sha256" not in trained


def test_settings_that_are_being_edited_do_not_change_who_answers(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editor may leave bank.yaml empty for a moment, just when a refusal is on its way out."""
    north = bank_of(rows, tmp_path / "north", max_rank=2)
    south = {"bank": "south", "data-path": str(rows), "state-dir": str(tmp_path / "south")}

    def recorded(file: Path, event: Event) -> None:
        record(file, event)
        if event.outcome == "refused":
            Path(north.node_config["settings"]).write_text("")

    monkeypatch.setattr(client_app.bank, "record", recorded)
    config = compose(overrides(rows, tmp_path / "runs", "dataset.source=jsonl", f"dataset.root={rows}"))
    [line, *_] = rounds_of(run_federated(FakeGrid({7: north.node_config, 8: south}), config))
    assert [(bank["bank"], bank["code"]) for bank in line["banks"]] == [("north", "policy-max_rank"), ("south", "")]


def test_a_model_of_that_name_with_other_files_is_refused(rows: Path, tmp_path: Path) -> None:
    """One number of the weights is another: the same name, another hash."""
    folder = tmp_path / "model"
    shutil.copytree(embedded_folder("memory:tiny-random"), folder)
    named = f"model.path={folder}"
    config = compose(overrides(rows, tmp_path / "runs", named))
    bank = bank_of(rows, tmp_path / "bank", models=(f"{folder} sha256:{model_sha256(config.model)}",))
    check_policy(asked(config), bank.facts)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(BankError) as error:
        check_policy(asked(config), bank.facts)
    assert error.value.code == "policy-model"


def test_figures_that_a_policy_withholds_stay_at_the_bank(rows: Path, tmp_path: Path) -> None:
    north = bank_of(rows, tmp_path / "north", reveal=("train_loss", "answer_tokens"))
    words = ("dataset.source=jsonl", f"dataset.root={rows}", "banks=1", "strategy.weighting=equal")
    grid = FakeGrid({7: north.node_config})
    run = run_federated(grid, compose(overrides(rows, tmp_path / "runs", *words)))
    sent = [
        message.content.metric_records["figures"]
        for message in grid.arrived
        if message.metadata.message_type == "train"
    ]
    assert {frozenset(record) for record in sent} == {
        frozenset({"steps", "epsilon_planned", "epsilon_spent", "delta", "train_loss", "answer_tokens"})
    }
    for line in rounds_of(run):
        (bank,) = line["banks"]
        assert (bank["status"], bank["rows"], bank["tokens"]) == ("ok", 0, 0)
        assert {"rows", "tokens", "train_s", "bank_rows"} <= set(bank["withheld"])
        assert line["train_loss"] > 0
    reported = read_history(north.facts.history_file)[-1]
    assert reported["rows"] > 0, "the bank itself knows"
    assert set(reported["figures"]) == {"steps", "train_loss", "answer_tokens"}


def test_the_hash_of_the_policy_goes_with_every_reply(rows: Path, tmp_path: Path) -> None:
    north = bank_of(rows, tmp_path / "north")
    config = compose(overrides(rows, tmp_path / "runs", "dataset.source=jsonl", f"dataset.root={rows}", banks=1))
    run = run_federated(FakeGrid({7: north.node_config}), config)
    assert {bank["policy_sha256"] for line in rounds_of(run) for bank in line["banks"]} == {north.facts.policy_sha256}
