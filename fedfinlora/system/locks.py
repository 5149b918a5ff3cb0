"""Locks on folders, which survive kill -9 and NFS and say who holds them.

A lock is a file with a record lock on its whole length, and in it a line about the holder. On Linux it is an "open file
description lock" (fcntl(2), `F_OFD_SETLK`): the kernel drops it however the holder ends. Unlike POSIX locks it also
keeps two threads of one process apart and is not lost when the process closes another descriptor of the file.

NFSv4 has record locks (RFC 8881, chapter 9): the server gives up those of a client that was not heard for a lease's
time, 90 seconds by default. flock(2) would be local to each machine with the mount option local_lock=flock. A file made
with O_EXCL stays after kill -9.

A process that is forked without exec holds its parent's lock too; one that Python starts by exec does not.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shlex
import socket
import struct
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from fedfinlora.errors import UserError
from fedfinlora.system.process_identity import ProcessIdentity, this_process

log = logging.getLogger("fedfinlora.system.locks")
_LINUX = hasattr(fcntl, "F_OFD_SETLK")
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What a file system without locks answers."""
BUSY = (errno.EAGAIN, errno.EACCES)
"""What fcntl(2) answers where somebody else holds the lock: POSIX allows either."""
NOTICE_S = 5.0
"""After so many seconds of waiting it is said for whom."""
LONGEST_COMMAND = 300


@dataclass(frozen=True)
class Holder:
    host: str
    pid: int
    started: str
    """Of the process, as `fedfinlora.system.process_identity` has it."""
    since: str
    """Local time, with its zone."""
    command: str

    def __str__(self) -> str:
        process = f"process {self.pid} on {self.host} holds it since {self.since} ({self.command})"
        if self.host == socket.gethostname() and not ProcessIdentity(self.pid, self.started).runs:
            return f"{process}; it has ended, but a process that it started still runs"
        return process


class Lock:
    """A lock that is held until `release`, the end of a `with` block, or of the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor

    def release(self) -> None:
        """Let others have it; a second time does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


def take(path: Path, what: str) -> Lock:
    """Hold the lock `path` (mode 0600, in a folder that is there) from now on. UserError that says who has `what` where
    somebody else does.

    OSError where the file cannot be opened.
    """
    descriptor = _opened(path, what, wait=False, writing=True)
    _sign(descriptor, durable=True)
    return Lock(path, descriptor)


def wait_for(path: Path, what: str, writing: bool = True) -> Lock:
    """Hold the lock as soon as no other process does. Without `writing`, where the file may only be read, others may
    hold it to read too.
    """
    descriptor = _opened(path, what, wait=True, writing=writing)
    _sign(descriptor, durable=False)
    return Lock(path, descriptor)


def check_free(path: Path, what: str) -> None:
    """UserError that says who has `what`; nothing where none has."""
    if is_held(path):
        raise _in_use(path, what)


def is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        asked = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK if _LINUX else fcntl.F_GETLK, _whole_file(fcntl.F_WRLCK))
    finally:
        os.close(descriptor)
    return asked != _whole_file(fcntl.F_UNLCK)


def holder_of(path: Path) -> Holder | None:
    """Who holds the lock now; None where no process does, or has not said yet who it is."""
    return _holder(path) if is_held(path) else None


def _opened(path: Path, what: str, wait: bool, writing: bool) -> int:
    """A descriptor with the lock on it. Once more where the file was removed or replaced before the lock was there."""
    while True:
        descriptor, shared = _open(path, writing)
        try:
            _lock(descriptor, path, what, wait, shared)
            if _is_still(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open(path: Path, writing: bool) -> tuple[int, bool]:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600), False
    except OSError as error:
        if writing or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not path.exists():
            raise
        return os.open(path, os.O_RDONLY), True


def _lock(descriptor: int, path: Path, what: str, wait: bool, shared: bool) -> None:
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    at_once, waiting = (fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW) if _LINUX else (fcntl.F_SETLK, fcntl.F_SETLKW)
    try:
        try:
            fcntl.fcntl(descriptor, at_once, _whole_file(kind))
        except OSError as error:
            if error.errno not in BUSY:
                raise
            if not wait:
                raise _in_use(path, what) from None
            notice = threading.Timer(
                NOTICE_S, log.warning, ("waiting for %s: %s", what, _holder(path) or "another process holds it")
            )
            notice.daemon = True
            notice.start()
            try:
                fcntl.fcntl(descriptor, waiting, _whole_file(kind))
            finally:
                notice.cancel()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise UserError(
            f"{path} cannot be locked ({error.strerror}): its file system has no locks. Mount it with locks (NFS "
            "version 4, without nolock), or choose a folder on another one."
        ) from error


def _in_use(path: Path, what: str) -> UserError:
    who = _holder(path) or "another process holds it and has not said who it is"
    return UserError(f"{what} is in use: {who}. Wait until it has ended, or end it.")


def _whole_file(kind: int) -> bytes:
    """struct flock of 64-bit Linux for all bytes of a file: l_type, l_whence, l_start, l_len, l_pid (0, as these locks
    want it).
    """
    if _LINUX:
        return struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)
    return struct.pack("qqihh", 0, 0, 0, kind, os.SEEK_SET)  # macOS: l_start, l_len, l_pid, l_type, l_whence


def _is_still(path: Path, descriptor: int) -> bool:
    mine = os.fstat(descriptor)
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _sign(descriptor: int, durable: bool) -> None:
    """Write down who holds it; `durable`: for other machines too (an NFS client sends what was written at fsync).

    The lock holds without it: a disk that is full does not take it away.
    """
    me = this_process()
    holder = Holder(
        socket.gethostname(), me.pid, me.started, time.strftime("%Y-%m-%d %H:%M:%S %z"), own_command()[:LONGEST_COMMAND]
    )
    with contextlib.suppress(OSError):
        content = (json.dumps(asdict(holder), allow_nan=False) + "\n").encode()
        os.ftruncate(descriptor, os.pwrite(descriptor, content, 0))
        if durable:
            os.fsync(descriptor)


def _holder(path: Path) -> Holder | None:
    """What the holder has written down; None where it has not yet."""
    try:
        values = json.loads(path.read_bytes())
        return Holder(
            str(values["host"]), int(values["pid"]), *(str(values[key]) for key in ("started", "since", "command"))
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def own_command() -> str:
    """What was typed, where that is a command of this project; else the program's name alone, for Flower's have secrets
    among their options.
    """
    typed = Path(sys.argv[0]).parent.name == "fedfinlora"
    words = (
        ["python", "-m", "fedfinlora", *sys.argv[1:]]
        if typed
        else [Path(sys.argv[0]).name or Path(sys.executable).name]
    )
    return shlex.join(words)
