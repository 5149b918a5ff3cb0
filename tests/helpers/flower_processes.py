"""Commands of the project as real processes: started, waited for, and what is left of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]

PATIENCE_S = 240.0


def start(*command: str, **environment: str) -> subprocess.Popen[str]:
    """A command in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "fedfinlora", *command],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where the tests run in the background
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(exit status, stdout, stderr). What does not end by itself is interrupted, so that it can tidy up, and is a
    failure.
    """
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=60)
        finally:
            process.kill()
        pytest.fail(f"still running after {PATIENCE_S:g} s: {process.args}")
    return process.returncode, out, err


def events(run: Path) -> list[dict[str, Any]]:
    file = run / "progress.jsonl"
    text = file.read_text("utf-8") if file.is_file() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def wait_for(process: subprocess.Popen[str], what: Callable[[], Any], deadline_s: float = PATIENCE_S) -> Any:
    """The first true value of `what`; a failure when the process ends before."""
    deadline = time.monotonic() + deadline_s
    while not (found := what()):
        if process.poll() is not None or time.monotonic() > deadline:
            process.send_signal(signal.SIGINT)
            pytest.fail(f"ended or went quiet too early: {process.communicate(timeout=60)}")
        time.sleep(0.02)
    return found


def processes_of(*folders: Path) -> list[psutil.Process]:
    """Every living process that was started for one of the folders, by its Flower home or its command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            place = process.environ().get("FLWR_HOME", "") + "\0" + process.environ().get("HOME", "")
            text = place + "\0" + "\0".join(process.cmdline())
            ours = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
            if ours and any(str(folder) in text for folder in folders):
                found.append(process)
    return found


def assert_nothing_left(*folders: Path, patience_s: float = 20.0) -> None:
    deadline = time.monotonic() + patience_s
    while (left := processes_of(*folders)) and time.monotonic() < deadline:
        time.sleep(0.2)
    names = []
    for process in left:
        with contextlib.suppress(psutil.Error):
            names.append(" ".join(process.cmdline()[:3])[:120])
            process.kill()
    assert not names


def error_of(err: str) -> str:
    """The one line on stderr that says what is wrong."""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert err.rstrip().splitlines()[-1] == lines[0]
    return lines[0]
