"""`coordinator plan` and `bank try`: what a run would ask is known before it starts, and is judged as the request will
be.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_server import Bank, code_of, config_of, write_bank
from tiny_runs import write_lines

import client_app.bank
import client_app.prepared_rows
from client_app.trial import try_plan
from fedfinlora.cli import main
from fedfinlora.compose import compose
from fedfinlora.deployment.plan import deployment_config, read_plan
from fedfinlora.deployment.policy import Policy
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.files import append_line, write_json
from fedfinlora.model.tokenizers import load_tokenizer
from fedfinlora.privacy.ledger import read_lines
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.wire.messages import pack_request

PRIVATE = ("privacy=example", "privacy.epsilon=1")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    client_app.prepared_rows._rows.clear()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of a bank, as `bank init` leaves it, with a ledger of its own."""
    write_bank(tmp_path)
    return tmp_path


def words(place: Path, *more: str) -> list[str]:
    return [
        "dataset=finlora", f"dataset.root={place}", f"output_dir={place}", "model=tiny-random", "model.threads=1",
        "evaluation=none",
        "num_server_rounds=4", "train.steps_per_round=1", "train.batch_rows=16", "train.warmup_steps=0", *more,
    ]  # fmt: skip


def planned(home: Path, *more: str) -> Path:
    file = home / "plan.json"
    assert main(["coordinator", "plan", "--home", str(home / "none"), "--out", str(file), *words(home, *more)]) == 0
    return file


def tried(home: Path, file: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["bank", "try", str(file), "--home", str(home), *options])
    return status, capsys.readouterr().out


class TestTry:
    def test_a_plan_that_would_run_is_allowed_and_its_cost_is_shown(
        self, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status, said = tried(home, planned(home, *PRIVATE), capsys)
        assert status == 0
        assert "refused" not in said
        assert "target_modules  " in said
        assert "min_rows" in said
        assert "epsilon: 0.9" in said or "epsilon: 1" in said
        assert "budget: 8; about 7" in said
        assert not (home / "ledger").exists(), "nothing is booked"
        assert not list(home.glob("try-*")), "the copy of the ledger is gone"

    @pytest.mark.parametrize(
        ("more", "rule", "way_out"),
        [
            (("peft.target_modules=[lm_head]", *PRIVATE), "target_modules", "peft.target_modules"),
            (("train.optimizer=sgd",), "optimizer", "adamw"),
            (("privacy=none",), "budget_epsilon", "privacy=example"),
            ((*PRIVATE, "privacy.delta=0.5"), "max_delta", "privacy.delta"),
            ((*PRIVATE, "train.steps_per_round=1000"), "max_steps_per_round", "steps_per_round"),
            ((*PRIVATE, "train.max_rows=1", "train.batch_rows=1"), "min_rows", "more tasks"),
            (("privacy=example", "privacy.epsilon=100"), "budget_epsilon", "smaller privacy.epsilon"),
        ],
    )
    def test_a_refusal_names_its_rule_and_what_to_change(
        self, home: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], rule: str, way_out: str
    ) -> None:
        status, said = tried(home, planned(home, *more), capsys)
        assert status == 1
        [line] = [line for line in said.splitlines() if line.startswith(f"{rule} ")]
        assert "refused" in line
        assert way_out in line

    def test_a_plan_does_not_write_on_the_terminal_what_it_likes(
        self, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status, said = tried(
            home, planned(home, 'peft.target_modules=["\x1b[2Jevery rule lets it through"]', *PRIVATE), capsys
        )
        assert (status, "\x1b" in said) == (1, False)

    def test_a_run_whose_later_rounds_would_be_refused_is_refused(
        self, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Its first round alone is within the budget."""
        more = ("privacy=example", "privacy.epsilon=0", "privacy.noise_multiplier=0.9", "num_server_rounds=400")
        bank = Bank(home / "bank.yaml", home)
        trial = try_plan(config_of(home, *more), source_fingerprint(), bank.facts)
        assert trial.code == "", "the first round"
        assert [verdict.rule for verdict in trial.verdicts if not verdict.is_allowed] == ["budget_epsilon"]
        assert tried(home, planned(home, *more), capsys)[0] == 1

    def test_what_was_spent_before_counts(self, home: Path) -> None:
        bank = Bank(home / "bank.yaml", home)
        assert code_of(bank.asked_honestly()) == "ok"
        before = read_lines(bank.facts.ledger_folder)
        found = try_plan(config_of(home, *PRIVATE), source_fingerprint(), bank.facts).forecast
        assert found is not None
        assert found.epsilon_after > found.epsilon_planned
        assert read_lines(bank.facts.ledger_folder) == before

    def test_a_step_is_taken_only_where_it_is_asked_for(
        self, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = planned(home, *PRIVATE)
        assert "one step on 4 rows" in tried(home, file, capsys, "--step")[1]
        monkeypatch.setattr(client_app.bank, "get_session", lambda config: pytest.fail("a model was loaded"))
        assert tried(home, file, capsys)[0] == 0

    def test_other_code_is_refused(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = planned(home, *PRIVATE)
        file.write_text(json.dumps(json.loads(file.read_text()) | {"source_sha256": "0" * 64}, allow_nan=False))
        status, said = tried(home, file, capsys)
        assert status == 1
        assert "The coordinator would get source" in said

    @pytest.mark.parametrize(
        ("content", "named"),
        [
            (b"", "not the JSON"),
            (b"[1]", "no plan"),
            (b'{"version": 1}', "no plan"),
            (b"[" * 5000, "not the JSON"),
            (b"\xff", "not the JSON"),
            (b'{"version": 1, "source_sha256": "x", "config": {}}', "source_sha256"),
            (b'{"version": 1, "source_sha256": "%s", "config": {"peft": {"rank": -1}}}' % (b"0" * 64), "peft.rank"),
            (
                b'{"version": 1, "source_sha256": "%s", "config": {"privacy": {"epsilon": NaN}}}' % (b"0" * 64),
                "privacy.epsilon",
            ),
            (b" " * (2**20 + 1), "larger"),
        ],
    )
    def test_a_file_that_is_no_plan_is_named(self, tmp_path: Path, content: bytes, named: str) -> None:
        file = tmp_path / "plan.json"
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=named) as error:
            read_plan(file)
        assert "plan.json" in str(error.value)
        with pytest.raises(UserError, match="cannot be read"):
            read_plan(tmp_path / "nowhere.json")


class TestWeights:
    """A run with banks that are not ours."""

    @pytest.mark.parametrize(
        ("typed", "added"),
        [
            ((), ["strategy.weighting=equal", "strategy.max_share=0.5", "train.holdout_max_rows=0"]),
            (("strategy.weighting=rows",), ["strategy.max_share=0.5", "train.holdout_max_rows=0"]),
            (
                ("strategy.sizes=[north:5,south:6]",),
                ["strategy.weighting=declared", "strategy.max_share=0.5", "train.holdout_max_rows=0"],
            ),
            (("strategy.max_share=0.9",), ["strategy.weighting=equal", "train.holdout_max_rows=0"]),
            (("train.holdout_max_rows=64",), ["strategy.weighting=equal", "strategy.max_share=0.5"]),
            (("privacy=example",), ["strategy.max_share=0.5"]),
        ],
    )
    def test_banks_weigh_the_same_or_as_declared_unless_rows_are_asked_for(
        self, typed: tuple[str, ...], added: list[str]
    ) -> None:
        found, said = deployment_config(["model=tiny-random", *typed])
        assert found == compose(["model=tiny-random", *typed, *added])
        assert len(said) == ("strategy.weighting=equal" in added) + ("train.holdout_max_rows=0" in added)

    def test_the_plan_says_it(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["coordinator", "plan", "--home", str(tmp_path / "none"), "model=tiny-random"]) == 0
        reported = capsys.readouterr()
        plan = json.loads(reported.out)
        assert (plan["config"]["strategy"]["weighting"], plan["config"]["strategy"]["max_share"]) == ("equal", 0.5)
        assert "all banks weigh the same" in reported.err
        assert list(tmp_path.iterdir()) == [], "nothing is started or made"


class TestRows:
    def test_a_bank_without_declared_rows_refuses_private_rounds(self, tmp_path: Path) -> None:
        bank = Bank(write_bank(tmp_path, declared_rows=()), tmp_path)
        assert code_of(bank.asked_honestly()) == "privacy"
        assert "Add declared_rows: [TASK:ROWS" in bank.history[-1]["detail"]
        trial = try_plan(config_of(tmp_path, *PRIVATE), source_fingerprint(), bank.facts)
        assert trial.code == "privacy"
        assert [verdict.rule for verdict in trial.verdicts if not verdict.is_allowed] == ["declared_rows"]

    def test_customers_that_are_numbers_are_their_text_and_others_are_bad_rows(self, tmp_path: Path) -> None:
        """One rule for every field that may be absent: what is neither text nor a number is a bad row, with its
        line.
        """
        file = write_bank(tmp_path, Policy(models=("memory:tiny-random",)), declared_rows=("fpb:60", "customers:30"))
        strange: list[Any] = [["a"], {"a": 1}, True]
        lines = [json.dumps({"context": f"row {n} Answer:", "target": "up", "issuer": n // 2}) for n in range(60)]
        lines += [
            json.dumps({"context": f"odd {n} Answer:", "target": "up", "issuer": one}) for n, one in enumerate(strange)
        ]
        write_lines(tmp_path / "rows" / "train" / "fpb_train.jsonl", lines)
        bank = Bank(file, tmp_path)
        customers = (*PRIVATE, "privacy.unit=customer", "dataset.tasks=[fpb]")
        assert code_of(bank.answers(pack_request(bank.request(*customers)))) == "ok", bank.history
        config = config_of(tmp_path, *customers)
        found = client_app.prepared_rows.bank_rows(config, bank.facts, load_tokenizer(config.model))
        assert len(found.units) == 30
        assert found.skipped == len(strange)


class TestJson:
    """Neither NaN nor infinity is ever written: JSON has none."""

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_number_that_is_none_is_named_and_not_written(self, tmp_path: Path, value: float) -> None:
        with pytest.raises(UserError, match=r"banks\.1\.loss is not a finite number"):
            write_json(tmp_path / "a.json", {"round": 1, "banks": [{"loss": 1.0}, {"loss": value}]})
        with pytest.raises(UserError, match="loss is not a finite number"):
            append_line(tmp_path / "a.jsonl", {"loss": value})
        assert not list(tmp_path.iterdir())

    def test_no_place_in_the_project_writes_what_json_has_not(self) -> None:
        """`client_app/worker.py` alone may: its lines go over a local socket between two processes of one version."""
        found = []
        for folder in ("fedfinlora", "server_app", "client_app", "data", "eval", "benchmarks"):
            for file in (ROOT / folder).rglob("*.py"):
                for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dumps", "json.dump"):
                        strict = {word.arg: ast.unparse(word.value) for word in node.keywords}.get(
                            "allow_nan"
                        ) == "False"
                        found += [] if strict else [file.relative_to(ROOT).as_posix()]
        assert set(found) <= {"client_app/worker.py"}
