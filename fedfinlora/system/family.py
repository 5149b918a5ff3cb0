"""A process and all that it starts, ended together. `family` puts a guardian (`fedfinlora.run.guardian`) over it, which
also ends it if this process is killed.

Flower and Ray start processes that outlive their parents: a SuperLink that is killed leaves a simulation and Ray's
workers, which train on.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

GRACE_S = 10.0
"""From SIGTERM to SIGKILL."""
SIMULATION_GRACE_S = 1.0
"""The same for a simulation: Flower's process (1.41) would try for three seconds to reach a SuperLink that has ended.
"""
LOOK_S = 0.05
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>


@contextlib.contextmanager
def family(
    command: Sequence[str], environment: Mapping[str, str], log: Path, run: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command, its output in the file `log`, as a family that ends with this block or this process, however that
    ends.

    Gives the guardian, which ends with the command and its status, and writes into the folder `run` how the run ended
    if this process is killed. The family is in a session of its own, so a terminal's Ctrl-C reaches this process alone.
    If the guardian is killed, this process has its orphans.
    """
    import psutil

    before = {child.pid for child in psutil.Process().children()}
    adopt_orphans()
    guardian = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).parents[1] / "run" / "guardian.py"), str(run)],
        stdin=subprocess.PIPE, env=environment, cwd=Path(__file__).parents[2], start_new_session=True,
    )  # fmt: skip

    def members() -> list[psutil.Process]:
        own = [child for child in psutil.Process().children() if child.pid not in before]
        return [member for child in own for member in family_of(child.pid)]

    try:
        assert guardian.stdin is not None
        # Not among its words: who kills every process with a program's name in its words means that program alone.
        guardian.stdin.write(json.dumps({"command": list(command), "log": str(log)}, allow_nan=False).encode() + b"\n")
        guardian.stdin.flush()
        yield guardian
    finally:
        end_all(members, grace_s=SIMULATION_GRACE_S)
        guardian.wait(timeout=GRACE_S)
        adopt_orphans(False)
        _bury(before)


def _bury(before: Set[int]) -> None:
    """Take note of adopted processes that have ended, else they stay zombies."""
    import psutil

    for child in psutil.Process().children():
        if child.pid not in before:
            with contextlib.suppress(OSError):
                os.waitpid(child.pid, os.WNOHANG)


def end_family(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything that it started: SIGTERM, and SIGKILL after GRACE_S, or at once when interrupted
    meanwhile.
    """
    end_all(lambda: family_of(process.pid))
    process.wait(timeout=GRACE_S)


def end_all(
    family: Callable[[], Iterable[psutil.Process]],
    meanwhile: Callable[[], object] = lambda: None,
    grace_s: float = GRACE_S,
) -> None:
    """End the processes that `family` names, also those that it names only when the first have ended."""
    try:
        asked = _signalled(family(), signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while any(map(_alive, asked)) and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            meanwhile()
    except KeyboardInterrupt:  # asked twice: at once
        asked = list(family())
    _signalled(filter(_alive, asked), signal.SIGKILL)
    for _ in range(20):
        if not (late := list(filter(_alive, family()))):
            return
        _signalled(late, signal.SIGKILL)
        time.sleep(LOOK_S)
        meanwhile()


def family_of(pid: int) -> list[psutil.Process]:
    """The process and its descendants; [] if it has ended."""
    import psutil

    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _signalled(members: Iterable[psutil.Process], number: int) -> list[psutil.Process]:
    """The members, the youngest generation first, after they were sent a signal. psutil never signals a later process
    of the same number.
    """
    import psutil

    found = list(members)[::-1]
    for member in found:
        with contextlib.suppress(psutil.Error):
            member.send_signal(number)
    return found


def _alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie does not."""
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def adopt_orphans(wanted: bool = True) -> None:
    """Become the parent of descendants whose parents end (Linux): none of them is lost from sight. `wanted` ends it
    where it is False.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, int(wanted))


def end_with_parent() -> None:
    """Between fork and exec: the kernel sends SIGTERM when the parent ends (Linux)."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def interrupt_on_signals() -> None:
    """SIGTERM, SIGHUP (the terminal was closed) and SIGQUIT end this process as Ctrl-C does: what was started is ended,
    what is done is kept.

    A signal that is ignored stays so: `nohup` ignores SIGHUP.
    """
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    if number == signal.SIGHUP:
        leave_terminal()
    raise KeyboardInterrupt


def leave_terminal() -> None:
    """Write nowhere instead of to a terminal: a closed one answers with errors."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        if os.isatty(descriptor) or not _is_open(descriptor):
            os.dup2(nowhere, descriptor)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
