"""Which process it is: a number that the system gives again later, and the moment of its start, which distinguishes it
from a later one of that number.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class ProcessIdentity(NamedTuple):
    """One process of this machine since it was started."""

    pid: int
    started: str
    """Clock ticks after the machine's start (Linux), else Unix seconds; "" where it is not known."""

    def __str__(self) -> str:
        return f"{self.pid}:{self.started}"

    @classmethod
    def parse(cls, text: str) -> ProcessIdentity:
        """What `str` gives. ValueError for anything else."""
        pid, _, started = text.partition(":")
        return cls(int(pid), started)

    @property
    def runs(self) -> bool:
        """Whether it has not ended; one that has ended and was not yet buried by its parent (a zombie) has."""
        found = start_of(self.pid)
        return bool(found) and found == self.started


def this_process() -> ProcessIdentity:
    """The one that asks."""
    return ProcessIdentity(os.getpid(), start_of(os.getpid()))


def start_of(pid: int) -> str:
    """When the process of this number was started; "" where none runs.

    On Linux field 22 of /proc/PID/stat (proc(5)), which no correction of the clock changes.
    """
    if not Path("/proc/self/stat").exists():
        return _start_elsewhere(pid)
    try:
        content = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return ""
    fields = content.rpartition(")")[2].split()  # from field 3 on: a program's name may hold spaces
    return "" if len(fields) < 20 or fields[0] in "ZX" else fields[19]


def _start_elsewhere(pid: int) -> str:
    import psutil

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return ""
