"""Bytes that are on the disk when the call returns, in files that their owner alone can read: one line more, or a new
file.

A record of what was signed, asked or spent must survive a power cut that follows it (fsync(2)).
"""

from __future__ import annotations

import os
from pathlib import Path

from fedfinlora.runfolder import sync_folder

APPEND, NEW = os.O_APPEND, os.O_EXCL


def append_synced(file: Path, content: bytes) -> None:
    """Add bytes at the end of a file, which is made if need be with its folder (modes 0600, 0700). OSError where the
    disk does not take them.
    """
    _write(file, content, APPEND)


def write_new(file: Path, content: bytes) -> None:
    """Write a file that is not there yet, likewise. FileExistsError where it is, another OSError where the disk does
    not take it.
    """
    _write(file, content, NEW)


def _write(file: Path, content: bytes, how: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    is_new = not file.exists()
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | how, 0o600), "ab" if how == APPEND else "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    if is_new:
        sync_folder(file.parent)
