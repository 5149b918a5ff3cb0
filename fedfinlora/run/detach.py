"""`--detach` starts the same command in a session of its own and returns as soon as its run folder is there.

The command that was started writes to the first one's pipes until it holds its run's folder; from then on to
state/command.log of the folder.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fedfinlora.run.folder import STATE

DETACHED = "FEDFINLORA_DETACHED"
"""In the environment of a command that is to leave its terminal."""
LOG_FILE = Path(STATE) / "command.log"
FOLDER_LINE = "run folder: "
"""Begins the line with which a command says which folder it works in."""
EACH_LINE = "runs: "
"""Begins the line with which a command of several runs, one after the other, says how their folders begin."""
LEFT = "detached"
"""The last line that a command writes to the one that started it."""


def is_detached() -> bool:
    """Whether this command was started by `start_detached` and has not left its terminal yet."""
    return bool(os.environ.get(DETACHED))


def start_detached(words: Sequence[str]) -> int:
    """Start `python -m fedfinlora WORDS` and say how to come back to it; its own exit status where it ends before it
    has a folder.
    """
    command = [sys.executable, "-m", "fedfinlora", *words]
    process = subprocess.Popen(
        command, env=os.environ | {DETACHED: "1"}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, wrong = _read_to_the_end(process)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    folders = [line.removeprefix(FOLDER_LINE) for line in said.splitlines() if line.startswith(FOLDER_LINE)]
    print(wrong, end="", file=sys.stderr, flush=True)
    if said.splitlines()[-1:] != [LEFT]:
        print(said, end="", flush=True)
        return process.wait()
    run = Path(folders[0])
    print(f"{FOLDER_LINE}{run}")
    print(f"process: {process.pid}, which writes to {run / LOG_FILE}")
    several = [line.removeprefix(EACH_LINE) for line in said.splitlines() if line.startswith(EACH_LINE)]
    if several:
        print("They are several runs, one after the other. attach and stop find the one that runs:")
    for action in ("attach", "stop"):
        print(f"python -m fedfinlora {action} {shlex.quote(several[0] if several else str(run))}")
    print(f"python -m fedfinlora list {shlex.quote(str(run.parent))}", flush=True)
    process.returncode = 0  # it runs on: no warning about that at the end of this process
    return 0


def _read_to_the_end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a command writes until it closes its output and its errors; it may run on."""
    assert process.stdout is not None
    assert process.stderr is not None
    with ThreadPoolExecutor(1) as reader:
        wrong = reader.submit(process.stderr.read)
        return process.stdout.read(), wrong.result()


def leave_if_detached(run: Path) -> None:
    """Write to the run's folder from now on, where this command was started by `start_detached`."""
    if not os.environ.pop(DETACHED, ""):
        return
    print(LEFT, flush=True)
    sys.stderr.flush()
    log = os.open(run / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
