"""The ledger by row: what a booking counts for, whom it excludes, and that nothing about names, order or white space
resets it.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedfinlora.errors import UserError
from fedfinlora.privacy.accounting import Steps, epsilon
from fedfinlora.privacy.ledger import (
    Booked,
    BudgetError,
    Head,
    LedgerError,
    Rows,
    Spending,
    book,
    ledger_root,
    read_lines,
)
from fedfinlora.privacy.ledger_spent import group

STEPS = Steps(1.0, 5.0, 1)
"""Every row in each step: epsilon is known in closed form, and quickly."""
DELTA = 1e-5
ROWS = Rows(("Shares of Alpha rose.\nAnswer:", "Beta cut its forecast.\nAnswer:", "Gamma was flat.\nAnswer:"))
CUSTOMERS = Rows(
    tuple(f"{name} filed {number}." for name in ("Alpha", "Beta") for number in range(3)),
    ("Alpha",) * 3 + ("Beta",) * 3,
)


def spending(round_number: int = 1, steps: Steps = STEPS, unit: str = "example", run: str = "run-1") -> Spending:
    return Spending(run, round_number, "north", "DP-SGD", unit, steps)


def spend(
    folder: Path, rows: Rows = ROWS, times: int = 1, steps: Steps = STEPS, unit: str = "example", **options: float
) -> Booked:
    for number in range(times):
        booked = book(folder, rows, spending(number + 1, steps, unit), delta=DELTA, **options)  # type: ignore[arg-type]
    return booked


def after(*spent: Steps) -> float:
    return epsilon(spent, DELTA)


class TestWhatIsSpent:
    def test_epsilon_is_that_of_all_rounds_and_runs_together(self, tmp_path: Path) -> None:
        for run in ("one", "two"):
            for number in (1, 2):
                booked = book(tmp_path, ROWS, spending(number, run=run), delta=DELTA)
        assert booked.epsilon == after(Steps(1.0, 5.0, 4))
        assert [(line["run"], line["round"]) for line in read_lines(tmp_path)] == [
            ("one", 1),
            ("one", 2),
            ("two", 1),
            ("two", 2),
        ]

    def test_other_settings_add_up(self, tmp_path: Path) -> None:
        spend(tmp_path)
        assert spend(tmp_path, steps=Steps(0.1, 2.0, 5)).epsilon == after(STEPS, Steps(0.1, 2.0, 5))

    def test_rows_that_are_new_start_at_zero(self, tmp_path: Path) -> None:
        spend(tmp_path, times=3)
        assert spend(tmp_path, Rows(("A new row.",))).epsilon == after(STEPS)

    def test_one_changed_row_resets_nothing(self, tmp_path: Path) -> None:
        spend(tmp_path, times=3)
        changed = Rows((*ROWS.prompts[:2], "Gamma was flat, or so.\nAnswer:"))
        assert spend(tmp_path, changed).epsilon == after(Steps(1.0, 5.0, 4))

    def test_a_row_that_comes_back_has_what_it_had(self, tmp_path: Path) -> None:
        spend(tmp_path, times=2)
        spend(tmp_path, Rows(ROWS.prompts[1:]))
        assert spend(tmp_path, Rows(ROWS.prompts[:1])).epsilon == after(Steps(1.0, 5.0, 3))

    @pytest.mark.parametrize(
        ("name", "same"),
        [
            ("other order", Rows(ROWS.prompts[::-1])),
            ("more white space", Rows(tuple(f"  {prompt}\r\n " for prompt in ROWS.prompts))),
            ("other white space", Rows(tuple(prompt.replace(" ", "\u00a0\t") for prompt in ROWS.prompts))),
            ("full-width letters", Rows((ROWS.prompts[0].replace("A", "\uff21"), *ROWS.prompts[1:]))),
            ("a choice of the rows", Rows(ROWS.prompts[:1])),
            ("more rows", Rows((*ROWS.prompts, "Delta merged."))),
            ("an issuer for each", Rows(ROWS.prompts, ("Alpha", "Beta", "Gamma"))),
        ],
    )
    def test_the_same_rows_are_known_in_any_form(self, tmp_path: Path, name: str, same: Rows) -> None:
        spend(tmp_path, times=3)
        assert spend(tmp_path, same).epsilon == after(Steps(1.0, 5.0, 4))

    def test_renaming_the_bank_changes_nothing(self, tmp_path: Path) -> None:
        spend(tmp_path)
        assert book(tmp_path, ROWS, replace(spending(), bank="south"), delta=DELTA).epsilon == after(Steps(1.0, 5.0, 2))

    def test_a_clock_that_goes_backwards_changes_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        spend(tmp_path)
        monkeypatch.setattr(time, "strftime", lambda form: "1970-01-01T00:00:00+0000")
        monkeypatch.setattr(time, "time", lambda: 0.0)
        assert spend(tmp_path).epsilon == after(Steps(1.0, 5.0, 2))

    def test_noise_that_others_can_compute_and_no_noise_are_infinite(self, tmp_path: Path) -> None:
        for name, one in (
            ("reproducible", replace(spending(), reproducible_noise=True)),
            ("none", spending(steps=Steps(1.0, 0.0, 1))),
        ):
            assert book(tmp_path / name, ROWS, one, delta=DELTA).epsilon == math.inf
            assert spend(tmp_path / name).epsilon == math.inf
            assert spend(tmp_path / name, Rows(("A new row.",))).epsilon == after(STEPS)

    def test_no_rows_are_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no rows"):
            spend(tmp_path, Rows(()))


class TestBudget:
    def test_exhausted_rows_are_excluded_and_counted_and_the_others_train(self, tmp_path: Path) -> None:
        budget = after(Steps(1.0, 5.0, 2))
        spend(tmp_path, Rows(ROWS.prompts[:2]), times=2)
        booked = spend(tmp_path, budget_epsilon=budget)
        assert booked.taking_part.tolist() == [False, False, True]
        assert (booked.left_out, booked.epsilon) == (2, after(STEPS))
        assert spend(tmp_path, budget_epsilon=budget).epsilon == after(Steps(1.0, 5.0, 2))

    def test_excluded_rows_have_spent_nothing(self, tmp_path: Path) -> None:
        spend(tmp_path, Rows(ROWS.prompts[:2]), times=2)
        spend(tmp_path, budget_epsilon=after(Steps(1.0, 5.0, 2)))
        assert spend(tmp_path, Rows(ROWS.prompts[:2])).epsilon == after(Steps(1.0, 5.0, 3))

    def test_none_left_is_an_error_and_nothing_is_written(self, tmp_path: Path) -> None:
        budget = after(Steps(1.0, 5.0, 2))
        spend(tmp_path, times=2, budget_epsilon=budget)
        with pytest.raises(BudgetError, match=r"above privacy\.budget_epsilon"):
            spend(tmp_path, budget_epsilon=budget)
        assert len(read_lines(tmp_path)) == 2

    def test_a_new_run_does_not_reset_it(self, tmp_path: Path) -> None:
        book(tmp_path, ROWS, spending(run="old"), delta=DELTA)
        with pytest.raises(BudgetError):
            book(tmp_path, ROWS, spending(run="new"), delta=DELTA, budget_epsilon=1.01 * after(STEPS))

    def test_one_run_may_not_spend_more_than_a_run_may(self, tmp_path: Path) -> None:
        limit = after(Steps(1.0, 5.0, 2))
        for run in ("one", "two"):
            for number in (1, 2):
                book(tmp_path, ROWS, spending(number, run=run), delta=DELTA, run_epsilon=limit)
            with pytest.raises(BudgetError, match="that a run may spend"):
                book(tmp_path, ROWS, spending(2, run=run), delta=DELTA, run_epsilon=limit)
        assert len(read_lines(tmp_path)) == 4

    def test_the_budget_is_kept_on_each_row_with_few_epsilons(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Forty rows with one to forty rounds: halving finds who may take part."""
        from fedfinlora.privacy import ledger_spent

        prompts = tuple(f"row {number}" for number in range(40))
        for number in range(40):
            spend(tmp_path, Rows(prompts[number:]))
        asked = []
        monkeypatch.setattr(ledger_spent, "epsilon", lambda spent, delta: asked.append(1) or epsilon(spent, delta))
        booked = spend(tmp_path, Rows(prompts), budget_epsilon=after(Steps(1.0, 5.0, 21)))
        assert booked.taking_part.tolist() == [number < 20 for number in range(40)]
        assert len(asked) <= 10


class TestCustomers:
    def test_all_tasks_and_rows_of_a_customer_are_one_account(self, tmp_path: Path) -> None:
        spend(tmp_path, CUSTOMERS, unit="customer")
        other_task = Rows(("Tag this sentence of Alpha.",), ("ALPHA ",))
        assert spend(tmp_path, other_task, unit="customer").epsilon == after(Steps(1.0, 5.0, 2))

    def test_rows_of_a_customer_are_excluded_together(self, tmp_path: Path) -> None:
        spend(tmp_path, Rows(CUSTOMERS.prompts[:1], ("Alpha",)), unit="customer")
        booked = spend(tmp_path, CUSTOMERS, unit="customer", budget_epsilon=1.01 * after(STEPS))
        assert booked.taking_part.tolist() == [False] * 3 + [True] * 3
        assert booked.left_out == 1

    def test_earlier_lines_by_row_count_by_group_privacy(self, tmp_path: Path) -> None:
        by_row = Steps(0.1, 4.0, 3)
        spend(tmp_path, Rows((*CUSTOMERS.prompts[:2], CUSTOMERS.prompts[3])), steps=by_row)
        assert spend(tmp_path, CUSTOMERS, unit="customer").epsilon == after(group(by_row, 2), STEPS)

    def test_a_line_by_row_counts_for_a_customer_whose_rows_are_gone(self, tmp_path: Path) -> None:
        spend(tmp_path, CUSTOMERS)
        new_rows = Rows(("Alpha filed again.",), ("alpha",))
        assert spend(tmp_path, new_rows, unit="customer").epsilon == after(group(STEPS, 3), STEPS)

    def test_the_same_prompt_twice_counts_twice_for_its_customer(self, tmp_path: Path) -> None:
        twice = Rows(("Same.", "Same."), ("Alpha", "Alpha"))
        spend(tmp_path, Rows(twice.prompts))
        assert spend(tmp_path, twice, unit="customer").epsilon == after(group(STEPS, 2), STEPS)

    def test_a_line_by_customer_counts_for_its_rows(self, tmp_path: Path) -> None:
        spend(tmp_path, CUSTOMERS, unit="customer")
        assert spend(tmp_path, CUSTOMERS).epsilon == after(Steps(1.0, 2.5, 1), STEPS)
        spend(tmp_path / "single", Rows(("One.",), ("Alpha",)), unit="customer")
        assert spend(tmp_path / "single", Rows(("One.",))).epsilon == after(Steps(1.0, 5.0, 2))

    def test_a_customer_under_another_name_keeps_what_its_rows_have(self, tmp_path: Path) -> None:
        spend(tmp_path, CUSTOMERS, unit="customer")
        renamed = Rows(CUSTOMERS.prompts[:3], ("Alpha Group",) * 3)
        assert spend(tmp_path, renamed, unit="customer").epsilon >= after(Steps(1.0, 5.0, 2))

    def test_every_row_needs_a_customer(self, tmp_path: Path) -> None:
        for rows in (ROWS, Rows(ROWS.prompts, ("Alpha", " ", "Gamma"))):
            with pytest.raises(UserError, match="no `issuer`"):
                spend(tmp_path, rows, unit="customer")
        assert read_lines(tmp_path) == []


class TestWitness:
    def test_a_ledger_that_has_the_line_is_believed(self, tmp_path: Path) -> None:
        first = spend(tmp_path).head
        spend(tmp_path)
        assert book(tmp_path, ROWS, spending(3), delta=DELTA, witness=first).head.number == 3
        assert book(tmp_path / "new", ROWS, spending(), delta=DELTA, witness=Head(0, "0" * 64)).head.number == 1

    def test_a_rolled_back_ledger_is_refused_and_its_repair_loses_nothing(self, tmp_path: Path) -> None:
        import shutil

        spend(tmp_path / "ledger")
        shutil.copytree(tmp_path / "ledger", tmp_path / "copy")
        newest = spend(tmp_path / "ledger").head
        spend(tmp_path / "copy")
        for folder in (tmp_path / "copy", tmp_path / "lost"):
            with pytest.raises(LedgerError, match="rolled back or cut") as refused:
                book(folder, ROWS, spending(3), delta=DELTA, witness=newest)
            assert "--reconcile" in str(refused.value)
            assert "--book-as-spent" in str(refused.value)
            assert "backup" not in str(refused.value)


class TestFolder:
    def test_only_the_owner_can_read_key_and_lines(self, tmp_path: Path) -> None:
        spend(tmp_path / "ledger")
        for name in ("key", "ledger.jsonl", ".", "cohorts"):
            assert (tmp_path / "ledger" / name).stat().st_mode & 0o077 == 0

    def test_no_row_can_be_found_in_it_without_the_key(self, tmp_path: Path) -> None:
        spend(tmp_path / "one", CUSTOMERS)
        spend(tmp_path / "two", CUSTOMERS)
        cohorts = [next((tmp_path / name / "cohorts").iterdir()) for name in ("one", "two")]
        assert cohorts[0].read_bytes() != cohorts[1].read_bytes()
        for file in (tmp_path / "one").rglob("*"):
            assert not file.is_file() or b"Alpha" not in file.read_bytes()

    def test_a_cohort_is_stored_once(self, tmp_path: Path) -> None:
        spend(tmp_path, times=4)
        assert len(list((tmp_path / "cohorts").iterdir())) == 1

    def test_a_cohort_that_changes_a_little_is_stored_as_a_difference(self, tmp_path: Path) -> None:
        prompts = [f"row {number}" for number in range(2000)]
        for turn in range(80):
            prompts[turn] = f"new {turn}"
            spend(tmp_path, Rows(tuple(prompts)))
        sizes = sorted(file.stat().st_size for file in (tmp_path / "cohorts").iterdir())
        assert len(sizes) == 80
        assert sizes[-2] > 16000 > 200 > sizes[-3], (
            "two whole ones: the first, and one that ends a long chain of differences"
        )
        (tmp_path / "index").unlink()
        assert spend(tmp_path, Rows(tuple(prompts))).epsilon == after(Steps(1.0, 5.0, 81))

    def test_the_root_is_that_of_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FEDFINLORA_LEDGER", str(tmp_path))
        assert ledger_root() == tmp_path

    def test_what_a_line_says(self, tmp_path: Path) -> None:
        spend(tmp_path)
        (line,) = read_lines(tmp_path)
        assert [line[key] for key in ("number", "bank", "mechanism", "unit", "sampling_rate", "noise_multiplier",
        "steps")] == [
            1, "north", "DP-SGD", "example", 1.0, 5.0, 1
        ]  # fmt: skip

    def test_reading_a_ledger_that_is_not_there_makes_none(self, tmp_path: Path) -> None:
        assert read_lines(tmp_path / "none") == []
        assert not (tmp_path / "none").exists()


class TestSpeed:
    def test_a_thousand_accounts_are_booked_in_a_second(self, tmp_path: Path) -> None:
        banks = Rows(tuple(f"bank-{number}" for number in range(1000)))
        spend(tmp_path, banks, unit="bank")
        started = time.monotonic()
        booked = spend(tmp_path, banks, unit="bank", budget_epsilon=100.0)
        assert time.monotonic() - started < 1.0
        assert booked.epsilon == after(Steps(1.0, 5.0, 2))

    def test_epsilon_is_computed_once_for_a_history_not_for_a_row(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from fedfinlora.privacy import ledger_spent

        asked = []
        monkeypatch.setattr(ledger_spent, "epsilon", lambda spent, delta: asked.append(1) or epsilon(spent, delta))
        spend(tmp_path, Rows(tuple(f"row {number}" for number in range(5000))), budget_epsilon=9.0)
        assert len(asked) <= 2


def spend_often(folder: Path, times: int) -> None:
    for number in range(1, times + 1):
        book(folder, ROWS, spending(number), delta=DELTA)


def spend_within(folder: Path, budget: float) -> None:
    for number in range(1, 20):
        try:
            book(folder, ROWS, spending(number), delta=DELTA, budget_epsilon=budget)
        except BudgetError:
            return


def in_processes(count: int, function: Callable[..., None], *arguments: object) -> None:
    processes = [multiprocessing.get_context("fork").Process(target=function, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


class TestTwoProcesses:
    def test_they_book_one_after_the_other(self, tmp_path: Path) -> None:
        in_processes(3, spend_often, tmp_path / "ledger", 5)
        assert [line["number"] for line in read_lines(tmp_path / "ledger")] == list(range(1, 16))
        assert spend(tmp_path / "ledger").epsilon == after(Steps(1.0, 5.0, 16))

    def test_they_cannot_spend_the_same_budget_twice(self, tmp_path: Path) -> None:
        in_processes(3, spend_within, tmp_path / "ledger", after(Steps(1.0, 5.0, 7)))
        assert len(read_lines(tmp_path / "ledger")) == 7


def test_no_error_shows_a_row_or_a_customer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    spend(tmp_path, CUSTOMERS, unit="customer")
    errors = []
    for options in ({"budget_epsilon": 0.01}, {"run_epsilon": 0.01}):
        with pytest.raises(BudgetError) as error:
            spend(tmp_path, CUSTOMERS, unit="customer", **options)
        errors.append(str(error.value))
    assert "Alpha" not in caplog.text + "".join(errors)
    assert not np.isnan(spend(tmp_path, CUSTOMERS).epsilon)
