"""The ledger: nothing resets it, two processes spend one after the other, and what was damaged or edited is refused."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedfinlora.errors import UserError
from fedfinlora.privacy import ledger
from fedfinlora.privacy.accounting import Steps, epsilon
from fedfinlora.privacy.ledger import BudgetError, LedgerError, Spending, fingerprint, read_ledger, spend

STEPS = Steps(0.05, 1.0, 10)
DATA = {"a" * 64: "fpb"}


def spending(round_number: int = 1, run: str = "run-1", steps: Steps = STEPS) -> Spending:
    return Spending(run, round_number, "north", "example-level DP-SGD", "example", steps, 1e-4, reproducible_noise=False)


def ledger_file(folder: Path) -> Path:
    return folder / f"{'a' * 64}.jsonl"


def head_file(folder: Path) -> Path:
    return folder / f"{'a' * 64}.head.json"


class TestSpending:
    def test_epsilon_is_that_of_all_rounds_and_runs_together(self, tmp_path: Path) -> None:
        spent = [spend(tmp_path, DATA, spending(number, run)) for run in ("one", "two") for number in (1, 2)]
        assert spent[-1] == epsilon([Steps(0.05, 1.0, 40)], 1e-4)
        assert spent == sorted(spent)
        assert [(line["run"], line["round"], line["steps"]) for line in read_ledger(tmp_path, "a" * 64)] == [
            ("one", 1, 10), ("one", 2, 10), ("two", 1, 10), ("two", 2, 10)
        ]  # fmt: skip

    def test_other_settings_add_up(self, tmp_path: Path) -> None:
        spend(tmp_path, DATA, spending())
        other = Steps(0.1, 2.0, 5)
        assert spend(tmp_path, DATA, spending(2, steps=other)) == epsilon([STEPS, other], 1e-4)

    def test_the_same_round_asked_for_again_is_paid_for_again(self, tmp_path: Path) -> None:
        assert spend(tmp_path, DATA, spending()) < spend(tmp_path, DATA, spending())

    def test_each_data_set_has_its_own_account_and_the_largest_counts(self, tmp_path: Path) -> None:
        both = {**DATA, "b" * 64: "tfns"}
        spend(tmp_path, DATA, spending())
        spent = spend(tmp_path, both, spending(2))
        assert spent == epsilon([Steps(0.05, 1.0, 20)], 1e-4)
        assert len(read_ledger(tmp_path, "b" * 64)) == 1

    def test_a_line_says_what_was_done(self, tmp_path: Path) -> None:
        spend(tmp_path, DATA, replace(spending(), reproducible_noise=True))
        (line,) = read_ledger(tmp_path, "a" * 64)
        assert line["mechanism"] == "example-level DP-SGD"
        assert (line["sampling_rate"], line["noise_multiplier"], line["delta"]) == (0.05, 1.0, 1e-4)
        assert "opacus" in line["accountant"]
        assert line["reproducible_noise"] is True

    def test_only_the_owner_can_read_it(self, tmp_path: Path) -> None:
        spend(tmp_path / "ledger", DATA, spending())
        assert ledger_file(tmp_path / "ledger").stat().st_mode & 0o077 == 0

    def test_no_noise_is_booked_as_no_promise(self, tmp_path: Path) -> None:
        assert spend(tmp_path, DATA, spending(steps=Steps(0.1, 0.0, 1))) == math.inf
        assert spend(tmp_path, DATA, spending()) == math.inf

    def test_a_clock_that_goes_backwards_changes_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        spend(tmp_path, DATA, spending())
        monkeypatch.setattr(time, "strftime", lambda form: "1970-01-01T00:00:00+0000")
        assert spend(tmp_path, DATA, spending(2)) == epsilon([Steps(0.05, 1.0, 20)], 1e-4)


class TestBudget:
    def test_a_round_that_would_exceed_it_is_refused_and_not_written(self, tmp_path: Path) -> None:
        limit = 1.01 * spend(tmp_path, DATA, spending())
        with pytest.raises(BudgetError, match=r"more than privacy\.budget_epsilon"):
            spend(tmp_path, DATA, spending(2), limit)
        assert len(read_ledger(tmp_path, "a" * 64)) == 1

    def test_one_data_set_over_budget_holds_the_others_back(self, tmp_path: Path) -> None:
        limit = 1.01 * spend(tmp_path, DATA, spending())
        with pytest.raises(BudgetError, match="fpb"):
            spend(tmp_path, {**DATA, "b" * 64: "tfns"}, spending(2), limit)
        assert read_ledger(tmp_path, "b" * 64) == []

    def test_a_new_run_does_not_reset_it(self, tmp_path: Path) -> None:
        limit = 1.01 * spend(tmp_path, DATA, spending(run="old"))
        with pytest.raises(BudgetError):
            spend(tmp_path, DATA, spending(run="new"), limit)


def spend_often(folder: Path, times: int) -> None:
    for number in range(1, times + 1):
        spend(folder, DATA, spending(number))


def spend_within(folder: Path, limit: float) -> None:
    for number in range(1, 20):
        try:
            spend(folder, DATA, spending(number), limit)
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
    def test_they_write_one_after_the_other(self, tmp_path: Path) -> None:
        in_processes(3, spend_often, tmp_path, 5)
        lines = read_ledger(tmp_path, "a" * 64)
        assert [line["number"] for line in lines] == list(range(1, 16))
        assert lines[-1]["epsilon"] == epsilon([Steps(0.05, 1.0, 150)], 1e-4)

    def test_they_cannot_spend_the_same_budget_twice(self, tmp_path: Path) -> None:
        limit = epsilon([Steps(0.05, 1.0, 70)], 1e-4)
        in_processes(3, spend_within, tmp_path, limit)
        assert len(read_ledger(tmp_path, "a" * 64)) == 7


def edit(file: Path, change: Callable[[list[dict[str, object]]], None]) -> None:
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    change(lines)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for number in (1, 2, 3):
            spend(tmp_path, DATA, spending(number))
        return tmp_path

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("a number edited", lambda lines: lines[1].update(steps=1)),
            ("a line taken out", lambda lines: lines.pop(1)),
            ("the first line taken out", lambda lines: lines.pop(0)),
            ("the last line taken out", lambda lines: lines.pop()),
            ("two lines swapped", lambda lines: lines.insert(0, lines.pop(1))),
            ("a line twice", lambda lines: lines.append(lines[-1])),
            ("all lines taken out", lambda lines: lines.clear()),
            ("more noise claimed", lambda lines: lines[2].update(noise_multiplier=5.0)),
        ],
    )
    def test_an_edited_ledger_is_refused(
        self, folder: Path, name: str, change: Callable[[list[dict[str, object]]], None]
    ) -> None:
        edit(ledger_file(folder), change)
        with pytest.raises(LedgerError, match="cannot be believed"):
            spend(folder, DATA, spending(4))

    def test_an_edit_with_its_own_hash_made_anew_is_refused_too(self, folder: Path) -> None:
        def change(lines: list[dict[str, object]]) -> None:
            lines[1].update(steps=1)
            lines[1]["hash"] = ledger._hash({key: value for key, value in lines[1].items() if key != "hash"})

        edit(ledger_file(folder), change)
        with pytest.raises(LedgerError, match="line 3"):
            spend(folder, DATA, spending(4))

    @pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"number": 3, "hash": "0"}'])
    def test_a_damaged_head_is_refused(self, folder: Path, content: bytes) -> None:
        head_file(folder).write_bytes(content)
        with pytest.raises(LedgerError, match="cannot be believed"):
            spend(folder, DATA, spending(4))

    def test_a_missing_head_or_ledger_is_refused(self, folder: Path) -> None:
        head_file(folder).unlink()
        with pytest.raises(LedgerError, match="is missing"):
            spend(folder, DATA, spending(4))
        spend(folder / "other", DATA, spending(1))
        ledger_file(folder / "other").unlink()
        with pytest.raises(LedgerError, match="0 lines, 1 were written"):
            spend(folder / "other", DATA, spending(2))

    def test_bytes_in_the_middle_are_refused(self, folder: Path) -> None:
        content = bytearray(ledger_file(folder).read_bytes())
        content[len(content) // 2] ^= 0xFF
        ledger_file(folder).write_bytes(content)
        with pytest.raises(LedgerError):
            spend(folder, DATA, spending(4))


class TestCrashes:
    def test_a_line_cut_off_by_a_crash_was_never_spent(self, tmp_path: Path) -> None:
        spend(tmp_path, DATA, spending())
        with open(ledger_file(tmp_path), "ab") as stream:
            stream.write(b'{"number": 2, "time": "20')
        assert spend(tmp_path, DATA, spending(2)) == epsilon([Steps(0.05, 1.0, 20)], 1e-4)
        assert len(read_ledger(tmp_path, "a" * 64)) == 2

    def test_a_crash_between_line_and_head_keeps_the_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        spend(tmp_path, DATA, spending())

        def crash(path: Path, content: bytes) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(ledger, "write_bytes", crash)
            with pytest.raises(KeyboardInterrupt):
                spend(tmp_path, DATA, spending(2))
        assert spend(tmp_path, DATA, spending(3)) == epsilon([Steps(0.05, 1.0, 30)], 1e-4)

    def test_a_full_disk_lets_nothing_leave(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        spend(tmp_path, DATA, spending())
        real = os.write

        def full(descriptor: int, content: bytes) -> int:
            return real(descriptor, content[:20])

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(LedgerError, match=r"No space left.*nothing private may leave"):
                spend(tmp_path, DATA, spending(2))
        assert len(read_ledger(tmp_path, "a" * 64)) == 1

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(LedgerError, match="cannot be opened"):
            spend(tmp_path / "file" / "ledger", DATA, spending())

    def test_an_unwritable_head_lets_nothing_leave(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(path: Path, content: bytes) -> None:
            raise UserError("disk full")

        monkeypatch.setattr(ledger, "write_bytes", fail)
        with pytest.raises(LedgerError, match="disk full"):
            spend(tmp_path, DATA, spending())


class TestFingerprint:
    ROWS = (("a prompt", "x"), ("another", "y"), ("a prompt", "z"))

    def test_order_does_not_matter_and_content_does(self) -> None:
        assert fingerprint(self.ROWS) == fingerprint(self.ROWS[::-1])
        assert fingerprint(self.ROWS) != fingerprint(self.ROWS[:2])
        assert fingerprint([("ab", "c")]) != fingerprint([("a", "bc")])
        assert fingerprint(self.ROWS) != fingerprint([*self.ROWS, self.ROWS[0]])
