"""`python -P guardian.py RUN`: runs a command, and ends all that came of it when it ends or when who started it does.

Its standard input is a pipe from `fedfinlora.system.family.family`: a line of JSON with the command and the file for
its output, and then nothing. The end of the file says that the other side is gone, also after SIGKILL. It adopts its
descendants' orphans, so that Ray's workers are found. It needs little memory: no torch, no Flower.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fedfinlora.system.family import SIMULATION_GRACE_S, adopt_orphans, end_all, end_with_parent, family_of

LOOK_S = 0.1
REASON = "the command that followed the run was killed"


class Guardian:
    def __init__(self, run: Path, log: Path, command: list[str]) -> None:
        self._run, self._since = run, time.time()
        self._asked_to_end = False
        self._status: int | None = None
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        adopt_orphans()
        with open(log, "wb") as output:
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=end_with_parent
            )

    def watch(self) -> int:
        """Until the command ends; its exit status."""
        forsaken = False
        while self._status is None and not self._asked_to_end and not forsaken:
            ready, _, _ = select.select([0], [], [], LOOK_S)
            forsaken = bool(ready) and not os.read(0, 1)
            self._reap()
        end_all(lambda: family_of(os.getpid())[1:], self._reap, SIMULATION_GRACE_S)
        self._reap()
        if forsaken:
            self._say_how_it_ended()
        return 1 if self._status is None or self._status < 0 else self._status

    def _on_signal(self, number: int, frame: object) -> None:
        self._asked_to_end = True

    def _reap(self) -> None:
        """Bury what has ended, adopted orphans too."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._child.pid:
                    self._status = os.waitstatus_to_exitcode(ended[1])

    def _say_how_it_ended(self) -> None:
        """result.json, unless the run was just completed, and a line where the command wrote its own."""
        from fedfinlora.run.ended import how_to_resume, is_recorded, record_end

        result = self._run / "result.json"
        completed = is_recorded(self._run, "completed", "") and result.stat().st_mtime >= self._since
        if not completed:  # else what the server has said of its own end counts less: its banks were ended before it
            record_end(self._run, "failed", REASON)
            with contextlib.suppress(OSError):
                print(f"\n{REASON}; {how_to_resume(self._run)}", file=sys.stderr, flush=True)


def _line(descriptor: int) -> bytes:
    """Up to the next line's end and no byte further; what is there when the file ends before."""
    found = b""
    while (byte := os.read(descriptor, 1)) not in (b"", b"\n"):
        found += byte
    return found


if __name__ == "__main__":
    asked = json.loads(_line(0))
    sys.exit(Guardian(Path(sys.argv[1]), Path(asked["log"]), asked["command"]).watch())
