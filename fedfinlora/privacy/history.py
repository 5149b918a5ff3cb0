"""What ran at a bank: lines on its own disk for each request, with what was booked, what left and what was refused.

A privacy ledger that was lost is booked again from these lines (`privacy ledger FOLDER --reconcile`), so they stay
where the ledger does not.

A coordinator that lies must not fill the bank's disk with refusals. Once MOST_REFUSED_A_DAY requests were refused or
failed on a day, the bank looks at one more in each PAUSE_S; the others are refused unread, and counted in a file next
to the history until the next line takes their number over.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from fedfinlora.errors import UserError
from fedfinlora.files import append_synced, unwritable, write_bytes
from fedfinlora.privacy.head import Head
from fedfinlora.system.locks import wait_for

MOST_REFUSED_A_DAY = 200
"""Requests that end as refused or failed, on a calendar day of the bank's clock, before most are refused unread."""
PAUSE_S = 600.0
"""After so many seconds one more is looked at: what was wrong may have been mended."""
LONGEST_DETAIL = 500
"""Characters of what was wrong with a request: the coordinator decides how long a request is."""


@dataclass(frozen=True)
class Event:
    """One request and what became of it."""

    run: str
    """The run's name; of a run whose app bundle was refused, Flower's number."""
    round: int
    """0 before the first."""
    outcome: str
    """begun and, where it is in the ledger, booked (nothing has left yet); then sent, refused or failed."""
    code: str = ""
    """Why it was refused or failed, one of `fedfinlora.wire.reasons.SAFE_REASONS`."""
    detail: str = ""
    """What was wrong, with the bank's own figures: of an app bundle, of the rows, the ledger or the budget;
    LONGEST_DETAIL characters at most. This stays at the bank."""
    rows: int = 0
    """Rows trained on; also where the reply withholds them."""
    steps: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    """Of the global adapter that the request brought."""
    figures: tuple[str, ...] = ()
    """Figures that left in clear."""
    left_out: int = 0
    """Units that took no part because their budget is spent; this stays at the bank."""
    privacy: str = "none"
    unit: str = ""
    """Of what was booked: example, customer or bank."""
    mechanism: str = ""
    sampling_rate: float | None = None
    noise_multiplier: float | None = None
    """0 = booked as a round without noise."""
    noise_steps: int = 0
    """Steps of the mechanism that were booked."""
    ledger_number: int | None = None
    ledger_hash: str = ""
    """Head of the bank's privacy ledger with this round's line: what a lost ledger is reconciled with."""
    epsilon_spent: float | None = None
    """The largest over the rows that took part, over all runs; None where it is infinite or there was no privacy."""
    policy_sha256: str = ""
    unread: int = 0
    """Requests that were refused unread since the line before."""


def history_file(state_folder: Path, bank: str) -> Path:
    """Where a bank writes down what ran."""
    return state_folder / "history" / f"{bank}.jsonl"


def record(file: Path, event: Event) -> None:
    """Append and sync one line, with the number of requests that were refused unread before it. UserError where the
    disk does not take it.
    """
    with _counting(file) if _unread_file(file).is_file() else contextlib.nullcontext():
        event = replace(event, detail=event.detail[:LONGEST_DETAIL], unread=unread(file))
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "day": time.strftime("%Y-%m-%d"), **asdict(event)}
        try:
            append_synced(file, (json.dumps(line, allow_nan=False) + "\n").encode())
            if event.unread:
                _unread_file(file).unlink()
        except OSError as error:
            raise unwritable(file, error) from error


def refuses_unread(file: Path) -> bool:
    """Whether the next request is to be refused without a look at it; it is counted then. UserError where that cannot
    be written.
    """
    today, newest = time.strftime("%Y-%m-%d"), None
    refused = 0
    for line in read_history(file):
        if line.get("outcome") in ("refused", "failed"):
            refused += line.get("day") == today
            newest = line.get("time")
    if refused < MOST_REFUSED_A_DAY or not 0 <= time.time() - _seconds(newest) < PAUSE_S:
        return False
    with _counting(file):
        try:
            write_bytes(_unread_file(file), str(unread(file) + 1).encode())
        except OSError as error:
            raise unwritable(file, error) from error
    return True


def unread(file: Path) -> int:
    """Requests that were refused unread since the last line of a history."""
    try:
        return int(_unread_file(file).read_bytes())
    except (OSError, ValueError):
        return 0


def _unread_file(file: Path) -> Path:
    return file.with_suffix(".unread")


@contextlib.contextmanager
def _counting(file: Path) -> Iterator[None]:
    """Hold the count against the bank's other processes."""
    try:
        lock = wait_for(file.with_suffix(".lock"), f"The history {file}")
    except OSError as error:
        raise unwritable(file, error) from error
    with lock:
        yield


def _seconds(time_text: object) -> float:
    """A line's time in seconds since 1970; minus infinity for anything else."""
    try:
        return datetime.fromisoformat(str(time_text)).timestamp()
    except ValueError:
        return float("-inf")


def read_history(file: Path) -> list[dict[str, Any]]:
    """All whole lines; one that a crash cut off is ignored."""
    try:
        lines = file.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}).") from error
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def rounds_today(file: Path) -> int:
    """Rounds that were begun today."""
    today = time.strftime("%Y-%m-%d")
    return sum(line["outcome"] == "begun" and line["day"] == today for line in read_history(file))


def newest_head(file: Path) -> Head | None:
    """The newest head of the bank's ledger that its history knows; None where it knows none."""
    heads = [(line.get("ledger_number"), line.get("ledger_hash")) for line in read_history(file)]
    known = [(number, value) for number, value in heads if number and value]
    return Head(*max(known)) if known else None
