"""The two ways out of a ledger that cannot be believed, the command that offers them, and ledgers of version 1: none
forgets spending.
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedfinlora.commands.privacy_ledger import ledger_command
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.privacy.accounting import Steps, epsilon
from fedfinlora.privacy.ledger import (
    Booked,
    BudgetError,
    Head,
    LedgerError,
    Rows,
    Spending,
    Version1,
    book,
    fingerprint,
    read_lines,
)
from fedfinlora.privacy.ledger_files import BEGINNING, hash_of
from fedfinlora.privacy.ledger_repair import book_as_spent, reconcile

STEPS = Steps(1.0, 5.0, 1)
DELTA = 1e-5
ROWS = Rows(("one", "two", "three"))
NEW = Rows(("a row that comes later",))


def spend(folder: Path, number: int = 1, rows: Rows = ROWS, **options: Any) -> Booked:
    return book(folder, rows, Spending("run", number, "north", "DP-SGD", "example", STEPS), delta=DELTA, **options)


def after(rounds: int) -> float:
    return epsilon([Steps(1.0, 5.0, rounds)], DELTA)


def write_history(file: Path, lines: list[dict[str, Any]]) -> Path:
    """The history that a bank would have of these lines of its ledger: one line as the round begins, one as its reply
    leaves.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    events = [{"outcome": "refused", "run": "run", "round": 9, "ledger_number": None, "ledger_hash": ""}]
    for line in lines:
        values = {key: line[key] for key in ("run", "round", "mechanism", "unit", "sampling_rate", "noise_multiplier")}
        values |= {"noise_steps": line["steps"], "ledger_number": line["number"], "ledger_hash": line["hash"]}
        events += [{"outcome": outcome, **values} for outcome in ("begun", "sent")]
    file.write_text("".join(json.dumps(event) + "\n" for event in events))
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(1, 6):
        spend(tmp_path / "ledger", number)
    return tmp_path / "ledger"


@pytest.fixture
def history(folder: Path, tmp_path: Path) -> Path:
    return write_history(tmp_path / "north.jsonl", read_lines(folder))


def cut(folder: Path, kept: int) -> None:
    lines = (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "ledger.jsonl").write_bytes(b"".join(lines[:kept]))


def edit_second_line(folder: Path) -> None:
    (folder / "ledger.jsonl").write_bytes((folder / "ledger.jsonl").read_bytes().replace(b'"round": 2', b'"round": 7'))


DAMAGES: Mapping[str, Callable[[Path], object]] = {
    "cut": lambda folder: cut(folder, 2),
    "cut to nothing": lambda folder: cut(folder, 0),
    "edited": edit_second_line,
    "without its head": lambda folder: (folder / "head.json").unlink(),
    "without its key": lambda folder: (folder / "key").unlink(),
    "with another key": lambda folder: (folder / "key").write_text("ab" * 32),
    "with another index": lambda folder: (folder / "index").write_bytes(b"x"),
    "without its cohort": lambda folder: next((folder / "cohorts").iterdir()).unlink(),
    "without everything": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
class TestNoSpendingIsForgotten:
    def test_by_reconciling_with_the_history(self, folder: Path, history: Path, damage: str) -> None:
        newest = Head(5, read_lines(folder)[-1]["hash"])
        DAMAGES[damage](folder)
        with pytest.raises(LedgerError):
            spend(folder, 6, witness=newest)
        repair = reconcile(folder, history)
        assert repair.kept + repair.booked_again + repair.booked_on_every_row == 5
        booked = spend(folder, 6, witness=newest)
        assert booked.epsilon == after(6)
        if repair.booked_on_every_row:
            assert spend(folder, 7, NEW).epsilon == after(repair.booked_on_every_row + 1)

    def test_by_booking_everything_as_spent(self, folder: Path, damage: str) -> None:
        newest = Head(5, read_lines(folder)[-1]["hash"])
        DAMAGES[damage](folder)
        book_as_spent(folder)
        for rows in (ROWS, NEW):
            with pytest.raises(BudgetError):
                spend(folder, 6, rows, budget_epsilon=1000.0, witness=newest)
        assert spend(folder, 6, witness=newest).epsilon == math.inf

    def test_the_damaged_files_are_kept_aside_under_a_number(self, folder: Path, history: Path, damage: str) -> None:
        DAMAGES[damage](folder)
        before = {
            name: (folder / name).read_bytes()
            for name in ("ledger.jsonl", "head.json", "key", "index")
            if (folder / name).exists()
        }
        assert reconcile(folder, history).aside == folder / "damaged-1"
        assert {file.name: file.read_bytes() for file in (folder / "damaged-1").iterdir()} == before
        assert book_as_spent(folder).aside == folder / "damaged-2"


class TestReconcile:
    def test_lines_that_still_hold_are_kept_and_their_rows_known(self, folder: Path, history: Path) -> None:
        cut(folder, 3)
        repair = reconcile(folder, history)
        assert (repair.kept, repair.booked_again, repair.booked_on_every_row) == (3, 0, 2)

    def test_lines_after_a_damaged_one_keep_their_rows(self, folder: Path, history: Path) -> None:
        edit_second_line(folder)
        repair = reconcile(folder, history)
        assert (repair.kept, repair.booked_again, repair.booked_on_every_row) == (1, 3, 1)

    def test_a_sound_ledger_changes_in_nothing(self, folder: Path, history: Path) -> None:
        before = (folder / "ledger.jsonl").read_bytes()
        assert reconcile(folder, history).kept == 5
        assert (folder / "ledger.jsonl").read_bytes() == before

    def test_twice_books_nothing_twice(self, folder: Path, history: Path) -> None:
        cut(folder, 2)
        for _ in range(3):
            reconcile(folder, history)
            assert len(read_lines(folder)) == 5

    def test_a_ledger_that_was_rolled_back_and_used_again(self, folder: Path, history: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "older")
        newest = spend(folder, 6)
        write_history(history, read_lines(folder))
        spend(tmp_path / "older", 6)
        reconcile(tmp_path / "older", history)
        assert spend(tmp_path / "older", 7, witness=newest.head).epsilon == after(8)

    def test_an_unknown_line_is_not_passed_over(self, folder: Path, tmp_path: Path) -> None:
        history = write_history(tmp_path / "north.jsonl", [line for line in read_lines(folder) if line["number"] != 4])
        cut(folder, 3)
        before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        with pytest.raises(LedgerError, match=r"know line 4\. Run .* --book-as-spent"):
            reconcile(folder, history)
        assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    def test_a_history_that_is_not_there_or_damaged(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="is no file"):
            reconcile(folder, tmp_path / "none.jsonl")
        (tmp_path / "bad.jsonl").write_text(json.dumps({"ledger_number": 2, "ledger_hash": "f" * 64}) + "\n")
        with pytest.raises(UserError, match="is damaged"):
            reconcile(folder, tmp_path / "bad.jsonl")
        with pytest.raises(UserError, match="is no folder"):
            book_as_spent(tmp_path / "none")


def repair_and_die(folder: Path, history: Path, call: int) -> None:
    calls = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return wrapper

    for name in ("fsync", "replace", "rename", "mkdir", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    reconcile(folder, history)


def test_killed_in_the_middle_of_a_repair_it_can_be_done_again(folder: Path, history: Path, tmp_path: Path) -> None:
    cut(folder, 3)
    call, exit_code = 0, None
    while exit_code != 0:
        call += 1
        copy = tmp_path / str(call)
        shutil.copytree(folder, copy)
        process = multiprocessing.get_context("fork").Process(target=repair_and_die, args=(copy, history, call))
        process.start()
        process.join(60)
        exit_code = process.exitcode
        assert exit_code in (0, -signal.SIGKILL)
        try:
            spent = spend(copy, 6).epsilon
        except LedgerError:
            reconcile(copy, history)
            spent = spend(copy, 6).epsilon
        assert spent == after(6), f"killed before call {call}"
    assert call > 10


class TestCommand:
    def test_it_shows_lines_rows_the_largest_epsilon_and_the_head(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        customers = Rows(("four", "five"), ("Alpha", "Alpha"))
        book(folder, customers, Spending("run", 6, "north", "DP-SGD", "customer", STEPS), delta=DELTA)
        assert ledger_command(folder, None, False, DELTA) == 0
        shown = capsys.readouterr().out
        assert "6 lines, the last 6 shown; 5 rows, 1 customers" in shown
        assert f"largest epsilon of a row: {after(5):.4g} at delta 1.0e-05" in shown
        assert f"largest epsilon of a customer: {after(1):.4g}" in shown
        assert f"head: line 6, {read_lines(folder)[-1]['hash']}" in shown

    def test_it_repairs(self, folder: Path, history: Path, capsys: pytest.CaptureFixture[str]) -> None:
        cut(folder, 3)
        with pytest.raises(LedgerError):
            ledger_command(folder, None, False, DELTA)
        assert ledger_command(folder, history, False, DELTA) == 0
        assert (
            "3 lines hold and are kept; 0 were booked again on the rows that they named, 2 on every row"
            in capsys.readouterr().out
        )
        assert ledger_command(folder, None, True, None) == 0
        assert "largest epsilon of a row: inf" in capsys.readouterr().out

    def test_an_unread_damaged_cohort_is_found_and_repaired_by_the_history(
        self, folder: Path, history: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for file in (folder / "cohorts").iterdir():
            file.write_bytes(file.read_bytes()[:-12] + b"\0" * 12)
        assert ledger_command(folder, None, False, DELTA) == 1
        assert "is damaged" in capsys.readouterr().out
        assert ledger_command(folder, history, False, DELTA) == 0

    def test_what_makes_no_sense_is_refused(self, folder: Path, history: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="choose one"):
            ledger_command(folder, history, True, DELTA)
        with pytest.raises(ConfigError, match="between 0 and 1"):
            ledger_command(folder, None, False, 1.0)
        with pytest.raises(UserError, match="no privacy ledger"):
            ledger_command(tmp_path, None, False, DELTA)


# --- version 1 ------------------------------------------------------------------------------------

FPB = (("one", "x"), ("two", "y"), ("three", "x"))


def write_version_1(folder: Path, account: str, rounds: int, **values: Any) -> Path:
    """A ledger as version 1 wrote it."""
    folder.mkdir(parents=True, exist_ok=True)
    previous, text = BEGINNING, ""
    for number in range(1, rounds + 1):
        line = {
            "number": number, "time": "2025-01-01T00:00:00+0000", "run": "old", "round": number, "bank": "north",
            "mechanism": "example-level DP-SGD",
            "unit": "example", "sampling_rate": 1.0, "noise_multiplier": 5.0, "steps": 1, "delta": 1e-4,
            "accountant": "PRV of opacus 1.6.0",
            "epsilon": 1.0, "reproducible_noise": False, "previous": previous, **values,
        }  # fmt: skip
        previous = line["hash"] = hash_of(line)
        text += json.dumps(line) + "\n"
    (folder / f"{account}.jsonl").write_text(text)
    (folder / f"{account}.head.json").write_text(json.dumps({"number": rounds, "hash": previous}))
    return folder / f"{account}.jsonl"


def version_1(folder: Path, rows: Rows = ROWS) -> Version1:
    return Version1((folder / "north", folder / "old-name"), lambda: {fingerprint(FPB): rows})


class TestVersion1:
    def test_an_account_of_todays_rows_is_booked_on_them(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, logger="fedfinlora.privacy")
        file = write_version_1(tmp_path / "north", fingerprint(FPB), 3)
        assert spend(tmp_path, version_1=version_1(tmp_path)).epsilon == after(4)
        assert spend(tmp_path, 2, NEW).epsilon == after(1)
        (said,) = [record.message for record in caplog.records if "old privacy ledger" in record.message]
        assert said == f"The old privacy ledger {file} was taken over: 3 lines, booked on its 3 rows of today."

    def test_an_account_of_rows_that_changed_is_booked_on_every_row(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, logger="fedfinlora.privacy")
        write_version_1(tmp_path / "old-name", "a" * 64, 2)
        for rows in (ROWS, NEW):
            assert spend(tmp_path, 1, rows, version_1=version_1(tmp_path)).epsilon == after(3)
        assert "booked on every row" in caplog.text

    def test_each_line_is_taken_over_once_and_later_ones_too(self, tmp_path: Path) -> None:
        for rounds in (2, 2, 3):
            write_version_1(tmp_path / "north", fingerprint(FPB), rounds)
            spend(tmp_path, version_1=version_1(tmp_path))
        assert spend(tmp_path, version_1=version_1(tmp_path)).epsilon == after(3 + 4)

    def test_it_is_not_forgotten_by_a_repair_nor_taken_over_again(self, tmp_path: Path) -> None:
        write_version_1(tmp_path / "north", fingerprint(FPB), 2)
        spend(tmp_path, version_1=version_1(tmp_path))
        history = write_history(tmp_path / "history.jsonl", read_lines(tmp_path)[2:])
        (tmp_path / "key").unlink()
        reconcile(tmp_path, history)
        assert spend(tmp_path, version_1=version_1(tmp_path)).epsilon == after(4)

    def test_reproducible_noise_was_none(self, tmp_path: Path) -> None:
        write_version_1(tmp_path / "north", fingerprint(FPB), 1, reproducible_noise=True)
        assert spend(tmp_path, version_1=version_1(tmp_path)).epsilon == math.inf

    def test_an_account_by_customer(self, tmp_path: Path) -> None:
        write_version_1(tmp_path / "north", fingerprint(FPB), 1, unit="customer")
        rows = Rows(ROWS.prompts, ("Alpha", "Beta", "Beta"))
        spending = Spending("run", 1, "north", "DP-SGD", "customer", STEPS)
        assert book(tmp_path, rows, spending, delta=DELTA, version_1=version_1(tmp_path, rows)).epsilon == after(2)

    def test_the_servers_accounts_are_its_banks(self, tmp_path: Path) -> None:
        write_version_1(tmp_path, "bank-north", 2, unit="bank")
        banks, old = Rows(("north", "south")), Version1((tmp_path,), lambda: {"bank-north": Rows(("north",))})
        spending = Spending("run", 1, "server", "DP-FedAvg", "bank", STEPS)
        assert book(tmp_path, banks, spending, delta=DELTA, version_1=old).epsilon == after(3)
        assert book(tmp_path, Rows(("south",)), spending, delta=DELTA, version_1=old).epsilon == after(2)

    def test_where_there_is_nothing_to_take_over_no_row_is_read(self, tmp_path: Path) -> None:
        def read() -> Mapping[str, Rows]:
            raise AssertionError("rows were read")

        assert spend(tmp_path, version_1=Version1((tmp_path / "north",), read)).head.number == 1

    @pytest.mark.parametrize(
        "damage",
        [
            lambda file: file.write_text(file.read_text().replace('"steps": 1', '"steps": 0', 1)),
            lambda file: file.write_text(file.read_text().splitlines(keepends=True)[0]),
            lambda file: file.with_suffix(".head.json").unlink(),
            lambda file: file.with_suffix(".head.json").write_text("{}"),
        ],
        ids=["edited", "cut", "without its head", "with a damaged head"],
    )
    def test_a_damaged_one_is_refused_until_everything_is_booked_as_spent(
        self, tmp_path: Path, damage: Callable[[Path], object]
    ) -> None:
        damage(write_version_1(tmp_path / "north", fingerprint(FPB), 3))
        with pytest.raises(LedgerError, match="--book-as-spent") as error:
            spend(tmp_path, version_1=version_1(tmp_path))
        assert "--reconcile" not in str(error.value)
        book_as_spent(tmp_path)
        assert spend(tmp_path, version_1=version_1(tmp_path)).epsilon == math.inf

    def test_a_line_cut_off_by_a_crash_was_never_spent(self, tmp_path: Path) -> None:
        file = write_version_1(tmp_path / "north", fingerprint(FPB), 2)
        with open(file, "a") as stream:
            stream.write('{"number": 3, ')
        assert spend(tmp_path, version_1=version_1(tmp_path)).epsilon == after(3)

    def test_an_account_is_known_by_its_pairs_in_any_order(self) -> None:
        assert fingerprint(FPB) == fingerprint(FPB[::-1])
        assert fingerprint(FPB) != fingerprint(FPB[:2])
        assert fingerprint([("ab", "c")]) != fingerprint([("a", "bc")])
        assert fingerprint(FPB) != fingerprint([*FPB, FPB[0]])
