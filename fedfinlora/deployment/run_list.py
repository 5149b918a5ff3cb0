"""The runs that a coordinator started: `runs.jsonl` in its folder, and what their own folders say of them.

What was read stays in memory as long as the files are the same, one reading of each run and READ_BYTES in all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfinlora.deployment.processes import alive
from fedfinlora.files import append_line, read_lines
from fedfinlora.report.reading import Run, read_run
from fedfinlora.run.events import BankDone, RunStart
from fedfinlora.run.progress import FILE_NAME, ProgressState, follow
from fedfinlora.system.bounded_cache import BoundedCache

LIST_FILE = "runs.jsonl"
READ_FILES = ("result.json", "rounds.jsonl", "config.yaml", FILE_NAME)
READ_BYTES = 256 * 2**20
"""Of runs that were read and may be shown again; those that were looked at last stay. A run of 500 rounds with 10 banks
takes 15 MiB.
"""
PARSED = 8
"""Bytes in memory of a byte of rounds.jsonl, about: dictionaries of numbers."""
REFUSED_CODES = ("policy-", "privacy")
"""How the codes of a bank's refusals begin: its policy's rules, and what its rows, ledger or budget do not allow."""


@dataclass(frozen=True)
class Replies:
    """What became of the requests to one bank; rounds that were broken off or done again count too."""

    outcomes: Mapping[str, int]
    """ok, late, error, rejected (by the server's checks), refused (by the bank) -> how often."""
    last_outcome: str = ""
    last_reason: str = ""
    last_round: int = 0


@dataclass(frozen=True)
class Refusals:
    """One rule by which a bank refused rounds of a run."""

    bank: str
    rule: str
    rounds: int
    last_round: int


@dataclass(frozen=True)
class Watched:
    """One run as its folder shows it."""

    number: int
    """Its place in runs.jsonl, from 1."""
    run: Run
    progress: ProgressState
    """Of the last attempt: a resumed run begins again."""
    replies: Mapping[str, Replies]
    """Bank -> its replies, sorted."""
    refusals: tuple[Refusals, ...]
    listed_t: float
    """When the run was started or last resumed, Unix seconds."""
    process: int
    """The server's process of the last attempt; 0 before it has begun."""

    @property
    def name(self) -> str:
        return self.run.folder.name

    @property
    def state(self) -> str:
        """waiting (for banks), running, completed, failed, stopped, or died: its process ended without a result."""
        done = self.progress.done
        if done is not None:
            return done.status or "failed"
        if self.process and alive(self.process, self.progress.started_t or 0.0):
            return "running"
        ended = self.run.folder / "result.json"
        began = self.progress.started_t or self.listed_t
        if self.run.result.status and ended.is_file() and ended.stat().st_mtime >= began:
            return self.run.status
        return "died" if self.process else "waiting"

    @property
    def rounds(self) -> int:
        """Those that it is to have; 0 where that is not known."""
        settings = self.run.settings
        return self.progress.rounds or (settings.num_server_rounds if settings else 0)

    @property
    def awaited(self) -> list[str]:
        """Banks that were drawn for the present round and have not answered yet."""
        in_round = self.state == "running" and self.progress.round > self.progress.rounds_done
        return [name for name, bank in self.progress.banks.items() if bank.status == "training"] if in_round else []

    @property
    def epsilon(self) -> dict[str, tuple[float | None, float | None]]:
        """Bank -> (spent over all runs, planned for this run), as last reported; {} without privacy."""
        found: dict[str, tuple[float | None, float | None]] = {}
        for record in self.run.rounds:
            for entry in record.banks:
                privacy = entry.privacy or record.privacy
                if privacy:
                    found[entry.bank] = (privacy.epsilon_spent, privacy.epsilon_planned)
        for name, line in self.progress.banks.items():
            if line.epsilon_spent is not None:
                found[name] = (line.epsilon_spent, line.epsilon_planned)
        return dict(sorted(found.items()))


def note_run(home: Path, folder: Path) -> None:
    append_line(home / LIST_FILE, {"time": time.time(), "folder": str(folder)})


def watched_runs(home: Path) -> list[Watched]:
    """The runs whose folders are still there, the last started first."""
    listed: dict[str, tuple[int, float]] = {}
    for line in read_lines(home / LIST_FILE):
        folder = str(line.get("folder"))
        number = listed[folder][0] if folder in listed else len(listed) + 1
        listed[folder] = (number, float(line.get("time") or 0.0))
    found = [_watched(Path(folder), *place) for folder, place in listed.items() if Path(folder).is_dir()]
    return sorted(found, key=lambda one: one.listed_t, reverse=True)


def _watched(folder: Path, number: int, listed_t: float) -> Watched:
    files = [folder / name for name in READ_FILES] + sorted((folder / "eval").glob("*/metrics.json"))
    versions = (number, listed_t, *(_version(file) for file in files))
    known = _known.get(folder)
    if known is not None and known[0] == versions:
        return known[1]
    watched = _read(folder, number, listed_t)
    _known.put(folder, (versions, watched), PARSED * sum(_version(file)[1] for file in files if file.name != FILE_NAME))
    return watched


_known: BoundedCache[tuple[tuple[object, ...], Watched]] = BoundedCache(READ_BYTES)


def _version(file: Path) -> tuple[int, int]:
    """(time of the last change in ns, bytes); (0, 0) where there is no file."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _read(folder: Path, number: int, listed_t: float) -> Watched:
    """Of its events only what they add up to stays."""
    state, process = ProgressState(), 0
    replies: dict[str, Replies] = {}
    refusals: dict[tuple[str, str], Refusals] = {}
    for event in follow(folder / FILE_NAME, stop=lambda: True):
        if isinstance(event, RunStart):
            state, process = ProgressState(), event.process
        state.update(event)
        if isinstance(event, BankDone):
            _count(event, replies, refusals)
    return Watched(
        number,
        read_run(folder),
        state,
        dict(sorted(replies.items())),
        tuple(refused for _, refused in sorted(refusals.items())),
        listed_t,
        process,
    )


def _count(event: BankDone, replies: dict[str, Replies], refusals: dict[tuple[str, str], Refusals]) -> None:
    name, outcome = event.bank, outcome_of(event)
    before = replies[name].outcomes if name in replies else {}
    outcomes = {**before, outcome: before.get(outcome, 0) + 1}
    replies[name] = Replies(outcomes, outcome, event.reason, event.round)
    if outcome == "refused":
        key = (name, rule_of(event))
        times = refusals[key].rounds if key in refusals else 0
        refusals[key] = Refusals(*key, times + 1, event.round)


def outcome_of(event: BankDone) -> str:
    """The status, but `refused` where the bank itself said no."""
    return "refused" if event.code.startswith(REFUSED_CODES) else event.status or "error"


def rule_of(event: BankDone) -> str:
    """The policy's rule, or `budget`, by which a bank refused."""
    return event.code.removeprefix("policy-")


def last_epsilon(runs: list[Watched]) -> dict[str, float]:
    """Bank -> epsilon spent over all runs, as last reported."""
    found: dict[str, Any] = {}
    for one in reversed(runs):
        found |= {bank: spent for bank, (spent, _) in one.epsilon.items() if spent is not None}
    return dict(sorted(found.items()))
