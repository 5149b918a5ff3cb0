"""Locks between real processes: one has it, the others read who; kill -9 frees it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedfinlora.errors import UserError
from fedfinlora.system import locks
from fedfinlora.system.locks import check_free, own_command, take, wait_for
from fedfinlora.system.process_identity import ProcessIdentity, start_of, this_process

HOLD = """
import sys, time
from pathlib import Path
from fedfinlora.system.locks import take, wait_for
lock = {"take": take, "wait": wait_for}[sys.argv[2]](Path(sys.argv[1]), "the folder")
print("held", flush=True)
sys.stdin.readline()
"""


@contextmanager
def another(path: Path, how: str = "take", wait: bool = True) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until it reads a line."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        try:
            if wait:
                assert process.stdout is not None
                assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_the_second_is_refused_and_reads_who_holds_it(tmp_path: Path) -> None:
    with another(tmp_path / "lock") as process, pytest.raises(UserError) as error:
        take(tmp_path / "lock", "the folder")
    words = str(error.value)
    assert words.startswith(f"the folder is in use: process {process.pid} on {socket.gethostname()} holds it since 20")
    assert "a process that it started" not in words
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_holder_leaves_the_lock_free(tmp_path: Path, number: int) -> None:
    with another(tmp_path / "lock") as process:
        os.kill(process.pid, number)
        process.wait(timeout=10)
        take(tmp_path / "lock", "the folder").release()


def test_two_threads_of_one_process_keep_each_other_out(tmp_path: Path) -> None:
    found: list[str] = []

    def second() -> None:
        with pytest.raises(UserError, match=f"process {os.getpid()} on "):
            take(tmp_path / "lock", "the folder")
        found.append("refused")

    with take(tmp_path / "lock", "the folder"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        Path(tmp_path / "lock").read_bytes()  # another descriptor of the file is opened and closed
        with pytest.raises(UserError, match="in use"):
            take(tmp_path / "lock", "the folder")
    assert found == ["refused"]
    take(tmp_path / "lock", "the folder").release()


def test_who_waits_has_it_when_the_holder_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "NOTICE_S", 0.05)
    with another(tmp_path / "lock") as process:
        threading.Timer(0.3, process.kill).start()
        with wait_for(tmp_path / "lock", "the ledger"):
            assert process.wait(timeout=10) == -signal.SIGKILL
    assert f"waiting for the ledger: process {process.pid} on " in caplog.text


def test_waiters_in_other_processes_have_it_one_after_the_other(tmp_path: Path) -> None:
    with another(tmp_path / "lock", "wait") as first, another(tmp_path / "lock", "wait", wait=False) as second:
        time.sleep(0.2)
        assert second.poll() is None
        first.kill()
        assert second.stdout is not None
        assert second.stdout.readline() == "held\n"


def test_what_a_holder_starts_does_not_hold_it(tmp_path: Path) -> None:
    lock = take(tmp_path / "lock", "the folder")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        lock.release()
        take(tmp_path / "lock", "the folder").release()
        process.kill()


def test_a_folder_that_was_made_again_has_its_own_lock(tmp_path: Path) -> None:
    """Whoever waited for the removed file does not believe to hold the new one."""
    folder = tmp_path / "folder"
    folder.mkdir()
    held = take(folder / "lock", "the folder")
    found: list[locks.Lock] = []
    waiting = threading.Thread(target=lambda: found.append(wait_for(folder / "lock", "the folder")))
    waiting.start()
    time.sleep(0.2)
    shutil.rmtree(folder)
    folder.mkdir()
    held.release()
    waiting.join(10)
    with pytest.raises(UserError, match="in use"):
        take(folder / "lock", "the folder")
    assert found


def test_check_free_takes_nothing(tmp_path: Path) -> None:
    check_free(tmp_path / "lock", "the folder")
    assert list(tmp_path.iterdir()) == []
    with another(tmp_path / "lock"), pytest.raises(UserError, match="in use"):
        check_free(tmp_path / "lock", "the folder")
    check_free(tmp_path / "lock", "the folder")


@pytest.mark.parametrize("code", locks.NO_LOCKS)
def test_a_file_system_without_locks_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuses(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "fcntl", refuses)
    for lock in (take, wait_for):
        with pytest.raises(UserError, match=r"cannot be locked .*NFS version 4"):
            lock(tmp_path / "lock", "the folder")


def test_other_errors_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        take(tmp_path / "nowhere" / "lock", "the folder")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": "a"}', b"\xff"])
def test_a_holder_that_said_nothing_readable_is_still_a_holder(tmp_path: Path, content: bytes) -> None:
    with another(tmp_path / "lock"):
        (tmp_path / "lock").write_bytes(content)
        with pytest.raises(UserError, match="another process holds it and has not said who it is"):
            take(tmp_path / "lock", "the folder")


def test_a_full_disk_does_not_take_the_lock_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with take(tmp_path / "lock", "the folder"), pytest.raises(UserError, match="in use"):
        take(tmp_path / "lock", "the folder")


def test_secrets_among_the_options_of_other_programs_are_not_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/flwr-serverapp", "--token", "s3cret"])
    assert own_command() == "flwr-serverapp"
    monkeypatch.setattr(sys, "argv", ["/x/fedfinlora/__main__.py", "simulate", "resume=outputs/a b"])
    assert own_command() == "python -m fedfinlora simulate 'resume=outputs/a b'"


def test_a_process_is_known_by_its_start_and_a_zombie_has_ended() -> None:
    me = this_process()
    assert me.runs
    assert ProcessIdentity.parse(str(me)) == me
    assert not me._replace(started="1").runs, "a younger process of that number"
    child = subprocess.Popen([sys.executable, "-c", "pass"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()
    deadline = time.monotonic() + 10
    while start_of(child.pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.wait()
    for wrong in ("", "x:1", ":"):
        with pytest.raises(ValueError):
            ProcessIdentity.parse(wrong)
