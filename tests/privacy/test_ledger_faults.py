"""A ledger that was damaged, cut, edited, killed or could not be written: too much may be booked, never too little."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from fedfinlora.privacy import ledger_files
from fedfinlora.privacy.accounting import Steps, epsilon
from fedfinlora.privacy.ledger import LedgerError, Rows, Spending, book, read_lines
from fedfinlora.privacy.ledger_files import hash_of

STEPS = Steps(1.0, 5.0, 1)
DELTA = 1e-5
ROWS = Rows(("one", "two", "three"))


def spend(folder: Path, number: int = 1, rows: Rows = ROWS) -> float:
    return book(folder, rows, Spending("run", number, "north", "DP-SGD", "example", STEPS), delta=DELTA).epsilon


def after(rounds: int) -> float:
    return epsilon([Steps(1.0, 5.0, rounds)], DELTA)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ledger of three lines with three cohorts."""
    for number, rows in enumerate((ROWS, Rows(ROWS.prompts[:2]), ROWS), 1):
        spend(tmp_path / "ledger", number, rows)
    return tmp_path / "ledger"


def edit(file: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    change(lines)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def rehash(lines: list[dict[str, Any]]) -> None:
    """Make the chain whole again, as somebody would who wants an edit to be believed."""
    for place, line in enumerate(lines):
        line["previous"] = lines[place - 1]["hash"] if place else "0" * 64
        line["hash"] = hash_of({key: value for key, value in line.items() if key != "hash"})


def refused(folder: Path, match: str) -> None:
    """Booking is refused, in words that say what to do and advise nothing that would forget; and nothing was
    changed.
    """
    before = (folder / "ledger.jsonl").read_bytes() if (folder / "ledger.jsonl").exists() else b""
    with pytest.raises(LedgerError, match=match) as error:
        spend(folder, 4)
    assert f"privacy ledger {folder} --book-as-spent" in str(error.value)
    assert "backup" not in str(error.value)
    assert "\n" not in str(error.value)
    assert before == ((folder / "ledger.jsonl").read_bytes() if before else b"")


class TestDamage:
    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("a number edited", lambda lines: lines[1].update(steps=0)),
            ("a line taken out", lambda lines: lines.pop(1)),
            ("the first line taken out", lambda lines: lines.pop(0)),
            ("the last line taken out", lambda lines: lines.pop()),
            ("two lines swapped", lambda lines: lines.insert(0, lines.pop(1))),
            ("a line twice", lambda lines: lines.append(lines[-1])),
            ("all lines taken out", lambda lines: lines.clear()),
            ("more noise claimed", lambda lines: lines[2].update(noise_multiplier=50.0)),
            ("another cohort", lambda lines: lines[2].update(cohort=lines[1]["cohort"])),
            ("a field taken out", lambda lines: lines[0].pop("unit")),
            ("a list for a line", lambda lines: lines.insert(1, [])),
        ],
    )
    def test_an_edited_ledger_is_refused(self, folder: Path, name: str, change: Callable[[list[Any]], Any]) -> None:
        edit(folder / "ledger.jsonl", change)
        refused(folder, "cannot be believed")

    def test_an_edited_ledger_with_new_hashes_does_not_fit_its_head(self, folder: Path) -> None:
        edit(folder / "ledger.jsonl", lambda lines: (lines[1].update(steps=0), rehash(lines)))
        refused(folder, "3 lines, 3 were written")

    def test_a_ledger_that_was_cut_and_given_a_new_head_does_not_fit_its_index(self, folder: Path) -> None:
        edit(folder / "ledger.jsonl", lambda lines: lines.pop())
        (line,) = (folder / "ledger.jsonl").read_text().splitlines()[-1:]
        (folder / "head.json").write_text(json.dumps({"number": 2, "hash": json.loads(line)["hash"]}))
        refused(folder, "index is damaged or was replaced")

    @pytest.mark.parametrize("kept", [1, 2, 3])
    def test_a_ledger_without_its_head_is_refused_even_cut_to_one_line(self, folder: Path, kept: int) -> None:
        edit(folder / "ledger.jsonl", lambda lines: lines.__delitem__(slice(kept, None)))
        (folder / "head.json").unlink()
        (folder / "index").unlink()
        refused(folder, r"head\.json is missing")

    @pytest.mark.parametrize(
        "content", [b"", b"{}", b"\xff\xfe", b'{"number": 3, "hash": "0"}', b'{"number": -1, "hash": ""}']
    )
    def test_a_damaged_head_is_refused(self, folder: Path, content: bytes) -> None:
        (folder / "head.json").write_bytes(content)
        refused(folder, "cannot be believed")

    def test_a_lost_ledger_file_is_refused(self, folder: Path) -> None:
        (folder / "ledger.jsonl").unlink()
        refused(folder, "0 lines, 3 were written")
        (folder / "head.json").unlink()
        refused(folder, r"head\.json is missing")

    @pytest.mark.parametrize("content", [None, b"", b"00" * 32, b"zz" * 32, b"\xff"])
    def test_a_lost_or_replaced_key_is_refused(self, folder: Path, content: bytes | None) -> None:
        (folder / "key").unlink()
        if content is not None:
            (folder / "key").write_bytes(content)
        refused(folder, "its key (is missing or damaged|was replaced)")

    def test_an_edited_index_is_refused(self, folder: Path) -> None:
        content = bytearray((folder / "index").read_bytes())
        content[-1] ^= 1
        (folder / "index").write_bytes(content)
        refused(folder, "index is damaged or was replaced")

    def test_an_index_of_another_ledger_is_refused(self, folder: Path, tmp_path: Path) -> None:
        spend(tmp_path / "other")
        shutil.copy(tmp_path / "other" / "index", folder / "index")
        refused(folder, "index is damaged or was replaced")

    @pytest.mark.parametrize("lines_behind", [1, 2, 3])
    def test_an_index_that_is_missing_or_older_is_brought_up_to_the_lines(
        self, tmp_path: Path, lines_behind: int
    ) -> None:
        for number in range(1, 5):
            if number == 5 - lines_behind and number > 1:
                shutil.copy(tmp_path / "index", tmp_path / "older")
            spend(tmp_path, number)
        (tmp_path / "index").unlink()
        if lines_behind < 4 and (tmp_path / "older").exists():
            (tmp_path / "older").rename(tmp_path / "index")
        assert spend(tmp_path, 5) == after(5)

    def test_a_deleted_cohort_is_refused(self, folder: Path) -> None:
        next((folder / "cohorts").iterdir()).unlink()
        refused(folder, "cohort [0-9a-f]{12} is missing")

    def test_an_edited_cohort_is_refused_if_read_and_harmless_if_not(self, folder: Path) -> None:
        for file in (folder / "cohorts").iterdir():
            file.write_bytes(file.read_bytes()[:-12] + b"\0" * 12)
        assert spend(folder, 4) == after(4)
        (folder / "index").unlink()
        refused(folder, "cohort [0-9a-f]{12} is damaged")

    def test_a_flipped_bit_anywhere_in_the_lines_is_refused(self, folder: Path) -> None:
        original = (folder / "ledger.jsonl").read_bytes()
        for place in random.Random(1).sample(range(len(original)), 40):
            content = bytearray(original)
            content[place] ^= 1 << (place % 7)
            (folder / "ledger.jsonl").write_bytes(content)
            with pytest.raises(LedgerError, match="cannot be believed"):
                read_lines(folder)


# --- kill -9 --------------------------------------------------------------------------------------

WRITES = ("write", "fsync", "replace", "open", "truncate")


def killed_at(folder: Path, call: int, reported: Connection) -> None:
    """Book two rounds with new rows each, and die by SIGKILL just before the call-th write, sync, rename or opening of
    a file.
    """
    calls = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return wrapper

    for name in WRITES:
        setattr(os, name, counted(getattr(os, name)))
    for number in (2, 3):
        spend(folder, number, Rows((*ROWS.prompts, f"new {number}")))
        reported.send(number)
    reported.send("done")


def forked(target: Callable[..., None], *arguments: object) -> tuple[list[Any], int | None]:
    """What a child process has reported, and how it ended."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, sending))
    process.start()
    sending.close()
    reported = []
    try:
        while True:
            reported.append(receiving.recv())
    except EOFError:
        process.join(60)
    return reported, process.exitcode


@pytest.mark.parametrize("began", [False, True], ids=["a new ledger", "one that is there"])
def test_a_kill_between_any_two_writes_loses_no_released_round(tmp_path: Path, began: bool) -> None:
    call, done = 0, False
    while not done:
        call += 1
        folder = tmp_path / str(call)
        if began:
            spend(folder, 1)
        reported, exit_code = forked(killed_at, folder, call)
        done = reported[-1:] == ["done"]
        assert exit_code == (0 if done else -signal.SIGKILL)
        booked = {line["round"] for line in read_lines(folder)}
        assert {number for number in reported if number != "done"} <= booked
        assert spend(folder, 4) == after(len(booked) + 1), f"killed before call {call}"
        assert len(read_lines(folder)) == len(booked) + 1
    assert call > 20


def book_until_killed(folder: Path, reported: Connection) -> None:
    for number in range(1, 10_000):
        spend(folder, number, Rows((*ROWS.prompts, f"new {number}")))
        reported.send(number)


def test_killed_at_any_time_no_round_that_was_let_through_is_missing(tmp_path: Path) -> None:
    draw = random.Random(0)
    context = multiprocessing.get_context("fork")
    least = 0
    for _ in range(12):
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=book_until_killed, args=(tmp_path / "ledger", sending))
        process.start()
        sending.close()
        receiving.recv()
        time.sleep(draw.uniform(0, 0.05))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        reported = 1
        try:
            while True:
                reported = receiving.recv()
        except (EOFError, OSError):
            least += reported
    assert len(read_lines(tmp_path / "ledger")) >= least
    assert spend(tmp_path / "ledger") == after(len(read_lines(tmp_path / "ledger")))


def test_a_line_cut_off_by_a_crash_was_never_spent(folder: Path) -> None:
    with open(folder / "ledger.jsonl", "ab") as stream:
        stream.write(b'{"number": 4, "time": "20')
    assert spend(folder, 4) == after(4)
    assert len(read_lines(folder)) == 4


# --- a disk that takes nothing --------------------------------------------------------------------


def book_with_little_space(folder: Path, limit: int, reported: Connection) -> None:
    """No file may grow beyond the limit: the system's own "file too large" comes in the middle of a write, as on a full
    disk.
    """
    sys.dont_write_bytecode = True  # that would be cut off too, for every later process
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for number in range(2, 5):
        try:
            spend(folder, number, Rows((*ROWS.prompts, f"new {number}")))
            reported.send(number)
        except LedgerError as error:
            reported.send(str(error))


@pytest.mark.parametrize("limit", [0, 1, 40, 80, 150, 200, 400, 700, 900, 1200, 1500, 1900])
def test_a_full_disk_lets_nothing_leave_that_is_not_booked(tmp_path: Path, limit: int) -> None:
    spend(tmp_path / "ledger", 1)
    reported, exit_code = forked(book_with_little_space, tmp_path / "ledger", limit)
    assert exit_code == 0
    refusals = [one for one in reported if isinstance(one, str)]
    assert refusals, "the limit is one that is met"
    assert all("nothing private may leave" in one and "Free space" in one for one in refusals)
    booked = {line["round"] for line in read_lines(tmp_path / "ledger")}
    assert {one for one in reported if isinstance(one, int)} <= booked
    assert spend(tmp_path / "ledger", 5) == after(len(booked) + 1)


def test_a_small_file_system_that_is_full(tmp_path: Path) -> None:
    """A write that is cut short by "no space left", wherever the space ends."""
    real = os.write
    spend(tmp_path, 1)
    for room in (0, 1, 20, 300):
        with pytest.MonkeyPatch.context() as patch:

            def short(descriptor: int, content: bytes, room: int = room) -> int:
                return real(descriptor, content[:room])

            patch.setattr(os, "write", short)
            with pytest.raises(LedgerError, match=r"No space left.*nothing private may leave"):
                spend(tmp_path, 2)
        assert len(read_lines(tmp_path)) == 1
    assert spend(tmp_path, 2) == after(2)


def test_a_folder_on_a_read_only_mount(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def read_only(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(folder)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *arguments, **options)

    if os.geteuid() != 0:
        folder.chmod(0o500)
        (folder / "lock").chmod(0o400)
    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(LedgerError, match=r"(Read-only file system|Permission denied).*nothing private may leave"):
        spend(folder, 4)
    assert len(read_lines(folder)) == 3, "it can still be read"
    folder.chmod(0o700)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LedgerError, match="nothing private may leave"):
        spend(tmp_path / "file" / "ledger")


def test_a_disk_that_fails_to_sync_lets_nothing_leave(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(LedgerError, match="nothing private may leave"):
            spend(folder, 4)
    assert spend(folder, 4) >= after(4)


def test_file_and_folder_are_synced_before_a_booking_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    folder = tmp_path / "ledger"
    spend(folder)
    assert {str(tmp_path), str(folder), str(folder / "cohorts"), str(folder / "ledger.jsonl")} <= set(synced)
    assert synced.index(str(folder / "ledger.jsonl")) > synced.index(str(folder / "cohorts"))
    assert synced[-1] == str(folder), "the head's name"


def test_a_chain_says_where_it_is_damaged() -> None:
    assert ledger_files.sound_lines(b"") == []
    assert ledger_files.sound_lines(b"{}\n") == 1
