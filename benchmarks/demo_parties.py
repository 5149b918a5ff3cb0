"""The parties of `benchmarks.deploy_demo`: each has a HOME of its own and types the documented commands, whose words
are printed as they come.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from fedfinlora.compose import PROJECT_ROOT
from fedfinlora.errors import UserError
from fedfinlora.files import write_bytes
from fedfinlora.privacy.history import read_history

LONGEST_S = 900.0
"""Longest wait for anything: on a slow machine a round may take minutes."""
NOISE = re.compile(r"\s*evaluating \w+: ")
"""Lines of the progress display that are not shown."""
RULE = "max_steps_per_round"
"""The rule of bank.yaml that is edited."""
_started = time.monotonic()
_terminal = threading.Lock()


def say(text: str, who: str = "") -> None:
    """Print lines with the minutes and seconds since the start; paths are shown from the project's folder."""
    minutes, seconds = divmod(int(time.monotonic() - _started), 60)
    with _terminal:
        for line in text.splitlines() or [""]:
            shown = line.replace(f"{PROJECT_ROOT}/", "").replace(str(PROJECT_ROOT), ".")
            print(f"{minutes:02}:{seconds:02} {who:<10} {shown}".rstrip(), flush=True)


class Running(NamedTuple):
    """A command that was typed."""

    process: subprocess.Popen[str]
    teller: threading.Thread


class Party:
    """Somebody with a HOME of its own and the commands that it types."""

    def __init__(self, name: str, home: Path) -> None:
        self.name, self.home = name, home
        home.mkdir(parents=True)

    def starts(self, *words: str) -> Running:
        """Type a command; what it says is shown as it comes."""
        say(f"$ {shlex.join(['python', '-m', 'fedfinlora', *words])}", self.name)
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        environment = {
            **os.environ,
            "HOME": str(self.home),
            "XDG_CACHE_HOME": cache,
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
            "COLUMNS": "160",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "fedfinlora", *words], cwd=PROJECT_ROOT, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        teller = threading.Thread(target=self._tell, args=(process,), daemon=True)
        teller.start()
        return Running(process, teller)

    def types(self, *words: str) -> None:
        """Type a command and wait for its end. UserError unless it succeeds."""
        self.finishes(self.starts(*words))

    def finishes(self, running: Running) -> None:
        """Wait for the end of a command. UserError unless it succeeds."""
        status = running.process.wait(timeout=LONGEST_S)
        running.teller.join(timeout=10)
        if status:
            raise UserError(f"{self.name}: the command ended with status {status}.")

    def family(self) -> list[psutil.Process]:
        """Every process in this HOME, those started first first: parents before their children."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HOME") == str(self.home) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append((process.create_time(), process))
            except (psutil.Error, OSError):
                continue
        return [process for _, process in sorted(found, key=lambda pair: pair[0])]

    def killed(self) -> int:
        """SIGKILL the whole family: no process can tidy up. Returns how many processes it had."""
        family = self.family()
        for member in family:
            with_no_regret(member.kill)
        psutil.wait_procs(family, timeout=10)
        return len(family)

    def _tell(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            if not NOISE.match(line):
                say(f"  {line.rstrip()}", self.name)


class Bank(Party):
    """A bank: its rows, its policy and its history."""

    @property
    def folder(self) -> Path:
        """Where `bank init` puts everything."""
        return self.home / ".fedfinlora" / "bank"

    def outcomes(self, round_number: int) -> list[str]:
        """What the bank's history says of a round, e.g. ["begun", "refused policy-max_steps_per_round"]."""
        lines = read_history(self.folder / "state" / "history" / f"{self.name}.jsonl")
        return [f"{line['outcome']} {line['code']}".strip() for line in lines if line["round"] == round_number]

    def allows(self, before: int, after: int) -> None:
        """Edit bank.yaml, as its owner would; it is read at every request."""
        file = self.folder / "bank.yaml"
        text = file.read_text("utf-8")
        write_bytes(file, text.replace(f"{RULE}: {before}", f"{RULE}: {after}").encode())
        say(f"edits {file}: {RULE}: {before} -> {after}", self.name)


def with_no_regret(signal_sent: Callable[[], None]) -> None:
    """Send a signal to a process that may have ended."""
    try:
        signal_sent()
    except psutil.Error:
        return


def end_all(parties: Sequence[Party]) -> None:
    """End every process of these parties, politely first."""
    family = [member for party in parties for member in party.family()]
    for member in family:
        with_no_regret(member.terminate)
    psutil.wait_procs(family, timeout=20)
    for party in parties:
        party.killed()


def until(what: str, condition: Callable[[], bool], alive: Mapping[str, Running]) -> None:
    """Wait for a condition, looking often: what follows may be in a hurry. UserError when a process ends that should
    run, or after LONGEST_S.
    """
    deadline = time.monotonic() + LONGEST_S
    while not condition():
        for name, running in alive.items():
            if running.process.poll() is not None and not condition():
                raise UserError(f"{name} ended with status {running.process.returncode}, before this: {what}.")
        if time.monotonic() > deadline:
            raise UserError(f"Not seen within {LONGEST_S:g} s: {what}.")
        time.sleep(0.02)
