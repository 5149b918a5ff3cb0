"""A server learns the loss of many held-out rows or of none, for any request, and no count of rows that it can
move by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_config

import client_app.prepared_rows
from client_app.bank import train_round
from client_app.facts import BankFacts
from client_app.held_out import HELD_OUT, TIMES, drawn, once, whole_tasks
from client_app.prepared_rows import bank_rows
from client_app.published import published_count
from data.rows import Row
from fedfinlora.config.dataset import DatasetConfig
from fedfinlora.config.schema import Config
from fedfinlora.deployment.policy import Policy
from fedfinlora.model.loading import get_session, initial_adapter
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.wire.messages import BankError, TrainRequest

LEAST = 16
ROWS = 180


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    client_app.prepared_rows._rows.clear()
    yield
    client_app.prepared_rows._rows.clear()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks with enough rows, and one with too few."""
    import json

    folder = tmp_path_factory.mktemp("rows")
    for task, count in (("fpb", ROWS), ("fiqa", ROWS), ("tfns", LEAST * TIMES - 1)):
        lines = [
            json.dumps({"context": f"Instruction: mood?\nInput: {task} {number}\nAnswer: ", "target": "positive"})
            for number in range(count)
        ]
        (folder / f"{task}_train.jsonl").write_text("\n".join(lines))
    return folder


def facts_of(data: Path, state: Path, **changes: Any) -> BankFacts:
    facts = BankFacts(
        "north", 0, 0, str(data), state, state / "ledger", policy=Policy(models=("memory:tiny-random",)), min_rows=LEAST
    )
    return replace(facts, **changes)


def config_of(
    *, tasks: tuple[str, ...] = (), seed: int = 0, context: int = 0, per_task: int = 0, **train: Any
) -> Config:
    config = tiny_config()
    train = {"holdout_max_rows": LEAST, "batch_rows": 20, "steps_per_round": 1, **train}
    return replace(
        config,
        seed=seed,
        dataset=DatasetConfig(source="jsonl", root="/none", tasks=tasks, max_rows_per_task=per_task),
        train=replace(config.train, **train),
        model=replace(config.model, context_tokens=context or config.model.context_tokens),
        strategy=replace(config.strategy, weighting="equal"),
    )


def held_out(config: Config, facts: BankFacts) -> set[tuple[int, ...]]:
    """The held-out rows by their tokens."""
    client_app.prepared_rows._rows.clear()
    rows = bank_rows(config, facts, get_session(config).tokenizer)
    own = {row.prompt_ids for row in rows.holdout}
    assert len(own) == len(rows.holdout)
    assert own.isdisjoint(row.prompt_ids for row in rows.train)
    return own


def asked(config: Config, round_number: int = 1) -> TrainRequest:
    session = get_session(config)
    return TrainRequest(
        config, "run", round_number, session.layout.id, source_fingerprint(), initial_adapter(session, config)
    )


class TestRefused:
    @pytest.mark.parametrize("count", [1, 2, LEAST - 1])
    def test_fewer_held_out_rows_than_min_rows_are_refused_by_name(
        self, data: Path, tmp_path: Path, count: int
    ) -> None:
        with pytest.raises(BankError) as error:
            train_round(asked(config_of(holdout_max_rows=count)), facts_of(data, tmp_path))
        assert error.value.code == "policy-generation"

    @pytest.mark.parametrize("count", [0, LEAST, 1000])
    def test_none_or_as_many_are_allowed(self, data: Path, tmp_path: Path, count: int) -> None:
        figures = train_round(asked(config_of(holdout_max_rows=count)), facts_of(data, tmp_path)).figures
        assert figures.holdout_rows == (2 * LEAST if count else 0), "two tasks have enough rows"
        assert math.isnan(figures.holdout_loss) == (not count)


class TestStable:
    """The same rows for every request."""

    CHANGES: tuple[dict[str, Any], ...] = (
        {"seed": 1},
        {"seed": 2**40},
        {"holdout_fraction": 0.9},
        {"holdout_fraction": 1e-9},
        {"holdout_max_rows": LEAST + 1},
        {"holdout_max_rows": 1000},
        {"max_rows": 20},
        {"max_rows": 21},
        {"per_task": 7},
        {"per_task": 8},
        {"holdout_every": 3},
    )

    @pytest.mark.parametrize("change", CHANGES, ids=str)
    def test_nothing_in_a_request_moves_the_rows(self, data: Path, tmp_path: Path, change: dict[str, Any]) -> None:
        facts = facts_of(data, tmp_path)
        first = held_out(config_of(), facts)
        assert len(first) == 2 * LEAST
        assert held_out(config_of(**change), facts) == first

    def test_a_task_is_scored_whole_or_not_at_all(self, data: Path, tmp_path: Path) -> None:
        facts = facts_of(data, tmp_path)
        both, one, other = (held_out(config_of(tasks=tasks), facts) for tasks in (("fpb", "fiqa"), ("fpb",), ("fiqa",)))
        assert both == one | other
        assert len(one) == len(other) == LEAST
        assert not held_out(config_of(tasks=("tfns",)), facts), "too few rows: none is scored"

    def test_a_window_that_cuts_one_row_off_cuts_its_whole_task_off(self, data: Path, tmp_path: Path) -> None:
        """Else the difference between two windows is the loss of the rows between them."""
        facts = facts_of(data, tmp_path)
        tokenizer = get_session(config_of()).tokenizer
        lengths = {len(row.prompt_ids) + len(row.answer_ids) for row in bank_rows(config_of(), facts, tokenizer).train}
        sizes = [len(held_out(config_of(context=context), facts)) for context in range(min(lengths), max(lengths) + 1)]
        assert set(sizes) == {0, LEAST, 2 * LEAST}

    def test_the_draw_is_the_banks_secret_and_lasts(self, data: Path, tmp_path: Path) -> None:
        facts, other = facts_of(data, tmp_path / "a"), facts_of(data, tmp_path / "b")
        first = held_out(config_of(), facts)
        assert held_out(config_of(), other) != first, "another key"
        assert held_out(config_of(), facts) == first, "another process reads the same key"
        assert (tmp_path / "a" / "sample.key").stat().st_mode & 0o777 == 0o600

    def test_a_bank_without_min_rows_draws_by_its_own_key_too(self, data: Path, tmp_path: Path) -> None:
        (tmp_path / "rows").mkdir()
        lines = [f'{{"context": "Input: {number}\\nAnswer: ", "target": "up"}}' for number in range(HELD_OUT * TIMES)]
        (tmp_path / "rows" / "fpb_train.jsonl").write_text("\n".join(lines))
        facts = facts_of(tmp_path / "rows", tmp_path, min_rows=0)
        first = held_out(config_of(holdout_max_rows=1), facts)
        assert len(first) == HELD_OUT
        assert held_out(config_of(holdout_max_rows=2, seed=5), facts) == first


def test_a_simulated_bank_draws_by_the_runs_seed(tmp_path: Path) -> None:
    """So that a simulation is reproducible."""
    config = replace(config_of(), dataset=DatasetConfig(tasks=("fpb",)))
    facts = BankFacts("bank-0", 0, 1, "", tmp_path)
    first = held_out(config, facts)
    assert held_out(config, replace(facts, state_folder=tmp_path / "other")) == first
    assert held_out(replace(config, seed=1), facts) != first
    assert not (tmp_path / "sample.key").exists()


def test_counts_that_a_server_can_move_by_one_are_rounded_and_few_are_none(data: Path, tmp_path: Path) -> None:
    figures = train_round(asked(config_of(holdout_max_rows=0)), facts_of(data, tmp_path)).figures
    assert figures.bank_rows == 520, "519 rows"
    assert figures.skipped_rows == 0
    found = {
        train_round(
            asked(config_of(holdout_max_rows=0, context=context)), facts_of(data, tmp_path)
        ).figures.skipped_rows
        for context in range(52, 58)
    }
    assert not found & set(range(1, LEAST))


class TestDraw:
    def rows(self, count: int, task: str = "fpb") -> list[Row]:
        return [Row(f"{task}/train/{number}", task, f"prompt {number}", "up") for number in range(count)]

    def test_copies_are_one_row(self) -> None:
        rows = self.rows(200)
        names = drawn([*rows, *rows], 1, 20)
        assert names == drawn(rows, 1, 20)
        assert len(once([*rows, *rows], names, ())) == 20
        assert len(drawn(rows, 1, 1)) == HELD_OUT, "one row's loss would be sent"

    def test_one_row_more_moves_one_row_at_most(self) -> None:
        rows = self.rows(200)
        for extra in range(20):
            more = [*rows, Row("fpb/train/x", "fpb", f"another {extra}", "up")]
            assert len(drawn(rows, 7, 16) ^ drawn(more, 7, 16)) in (0, 2)

    def test_tasks_do_not_depend_on_each_other(self) -> None:
        one, other = self.rows(200), self.rows(300, "fiqa")
        assert drawn([*one, *other], 3, 16) == drawn(one, 3, 16) | drawn(other, 3, 16)

    def test_whole_tasks(self) -> None:
        rows = [*self.rows(3), *self.rows(3, "fiqa")]
        assert whole_tasks(rows, rows) == {"fpb", "fiqa"}
        assert whole_tasks(rows, rows[1:]) == {"fiqa"}
        assert whole_tasks(rows, []) == set()

    @pytest.mark.parametrize(
        ("count", "least", "reported"), [(0, 0, 0), (4, 5, 0), (5, 5, 5), (169, 5, 170), (1674, 20, 1700)]
    )
    def test_published_counts(self, count: int, least: int, reported: int) -> None:
        assert published_count(count, least) == reported
