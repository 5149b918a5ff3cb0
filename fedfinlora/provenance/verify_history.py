"""Compare a bank's record of what was signed with its history and its privacy ledger.

For each request the bank writes, and syncs, in this order: the request into the record, `begun` into the history, the
round into the ledger, `booked` and `sent` into the history, the answer into the record. So a later one without an
earlier one was cut off, or the bank was killed between the two. Where the last request was cut off both the record and
the history and was refused, only the coordinator's chain shows it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedfinlora.errors import plural
from fedfinlora.privacy.head import Head
from fedfinlora.privacy.history import history_file
from fedfinlora.privacy.ledger_files import COHORTS, EVERY_ROW, HEAD, LINES, has_line, origins, read_head, sound_lines
from fedfinlora.provenance.bank_record import Answered, Asked
from fedfinlora.provenance.findings import Findings, first_names, lines_of, no_other_kinds
from fedfinlora.provenance.folder import contents_of, file_bytes
from fedfinlora.provenance.verify_answers import OUTCOMES, Round, check_answers, round_of

HOME_FILES = {
    "bank.yaml", "node.key", "node.key.pub", "node.id", "ca.crt", "bank.crt", "tls.key", "gate.yaml", "supernode.log",
    "running.lock",
}  # fmt: skip
HOME_FOLDERS = ("state/", "ledger/", "flwr/")
STATE_FILES = {"worker.log", "worker.pid", "sample.key"}
READ = {f"ledger/{LINES}", f"ledger/{HEAD}"}


def check_history(
    home: Path,
    name: str,
    asked: Mapping[str, Asked],
    answered: Sequence[Answered],
    begun: str,
    last: str,
    found: Findings,
) -> None:
    """The record and the history have the same requests with the same ends.

    The record's first line is of the time `begun` ("" = it has none). `last` is the hash of the request that is its
    last line ("" = it is none).
    """
    file = history_file(home / "state", name)
    if file.parent.is_dir() and not no_other_kinds(file.parent, found):
        return
    events = _events(file, found)
    accepted = [answer for answer in answered if answer.head.get("status") == "ok"]
    if not events and not begun:
        found.not_proven(
            home / "state", "there is neither a record nor a history: the bank was never asked, or both were removed"
        )
    earlier = [event for event in events if _before(event, begun)] if begun else []
    if earlier:
        found.not_proven(file, f"older than the record, which begins at {begun}: {plural(len(earlier), 'line')}")
    counted = events[len(earlier) :]
    requests = Counter(one.run_and_round for one in asked.values())
    _requests(file, counted, requests, found)
    lines = _ledger(home / "ledger", name, file, events, accepted, found)
    for line in lines:
        one = (str(line["run"]), int(line["round"]))
        if line["bank"] == name and "origin" not in line and one not in requests and begun and not _before(line, begun):
            _not_asked(home / "ledger" / LINES, one, found)
    check_answers(file, home / "state" / "signed", events, len(earlier), asked, answered, last, lines, found)
    found.checked.append(f"{file}: {plural(len(events), 'line')}, compared with the record and the ledger")


def _events(file: Path, found: Findings) -> list[dict[str, Any]]:
    events = []
    for number, line in enumerate(lines_of(file, found) if file.is_file() else (), 1):
        try:
            event = json.loads(line)
            round_of(event), datetime.fromisoformat(event["time"])
            if event["outcome"] not in OUTCOMES:
                found.add(f"{file}, line {number}", f"its outcome is none of {', '.join(OUTCOMES)}")
            events.append(event)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            found.add(f"{file}, line {number}", f"it cannot be read ({type(error).__name__})")
    return events


def _requests(file: Path, events: Sequence[Mapping[str, Any]], asked: Mapping[Round, int], found: Findings) -> None:
    """A round that was begun, or refused for what its request says, was asked for as often."""
    begun = Counter(round_of(event) for event in events if event["outcome"] == "begun")
    named = {round_of(event) for event in events if event["round"]}
    for one in sorted({*begun, *named}):
        if asked.get(one, 0) < max(begun[one], 1):
            _not_asked(file, one, found)


def _not_asked(file: Path, one: Round, found: Findings) -> None:
    missing = "the record does not have the request: lines of the record are missing"
    found.add(file, f"it has round {one[1]} of {one[0]}, and {missing}")


def _ledger(
    folder: Path,
    name: str,
    history: Path,
    events: Sequence[Mapping[str, Any]],
    accepted: Sequence[Answered],
    found: Findings,
) -> list[dict[str, Any]]:
    """The ledger has every line that history and record speak of, and they know of its last. Returns its lines."""
    booked = [(event["ledger_number"], event.get("ledger_hash")) for event in events if event.get("ledger_number")]
    booked += [
        (answer.head["ledger-number"], answer.head.get("ledger-hash"))
        for answer in accepted
        if "ledger-number" in answer.head
    ]
    if not (folder / LINES).exists() and not booked:
        return []
    if folder.is_dir() and not no_other_kinds(folder, found):
        return []
    lines = sound_lines(file_bytes(folder / LINES))
    if isinstance(lines, int):
        found.add(f"{folder / LINES}, line {lines}", "it is damaged, or does not follow the line before it")
        return []
    head = read_head(folder)
    if head is None or not has_line(lines, head):
        found.add(folder / HEAD, "it names no line of the ledger: lines were cut off, or it was changed")
    known = {origin.get("hash") for line in lines for origin in origins(line)}
    for number, value in sorted(set(booked), key=str):
        if not has_line(lines, Head(int(number), str(value))) and value not in known:
            found.add(
                folder / LINES,
                f"history or record has its line {number}, which it does not have: it was cut or rolled back",
            )
    begun = {round_of(event) for event in events if event["outcome"] == "begun"}
    for line in lines:
        one = (str(line["run"]), int(line["round"]))
        if line["bank"] == name and "origin" not in line and one not in begun:
            found.add(history, f"the ledger has booked round {one[1]} of {one[0]}, which the history does not have")
    there = set(contents_of(folder / COHORTS).files) if (folder / COHORTS).is_dir() else set()
    for cohort in sorted({line["cohort"] for line in lines} - {EVERY_ROW} - there):
        found.add(folder / COHORTS, f"{cohort[:64]} is missing, and a line of the ledger names it")
    found.checked.append(
        f"{folder / LINES}: {plural(len(lines), 'line')}, the last is the head's, and all that were booked are there"
    )
    return lines


def check_home(home: Path, name: str, data: Path | None, found: Findings) -> None:
    """Every file of the home is of a kind that a bank has. `data` is where its rows are."""
    own = (
        f"{data.resolve().relative_to(home.resolve()).as_posix()}/"
        if data and data.resolve().is_relative_to(home.resolve())
        else None
    )
    history = {f"{name}.jsonl", f"{name}.lock", f"{name}.unread"}
    unknown, unread = [], Counter[str]()
    for file in contents_of(home).files:
        top, _, rest = file.partition("/")
        if file in HOME_FILES or (own and f"{file}/".startswith(own)):
            continue
        if top == "state":
            parts = rest.split("/")
            of_run = (
                len(parts) == 3
                and parts[1] == name
                and parts[2].startswith("round_")
                and parts[2].endswith(".safetensors")
            )
            of_history = parts[0] == "history" and len(parts) == 2 and parts[1] in history
            if rest in STATE_FILES or of_run or of_history or parts[0] == "signed":  # `signed` is checked by itself
                if rest in STATE_FILES or of_run:
                    unread["state/run/" if of_run else file] += 1
                continue
        elif f"{top}/" in HOME_FOLDERS and rest:
            if file not in READ:
                unread["ledger/cohorts/" if rest.startswith(f"{COHORTS}/") else "flwr/" if top == "flwr" else file] += 1
            continue
        unknown.append(file)
    if unread:
        kinds = first_names([f"{kind} {count}" for kind, count in sorted(unread.items())])
        found.checked.append(f"{home}: not looked at: {plural(unread.total(), 'file')} ({kinds})")
    if unknown:
        found.not_proven(home, f"no bank makes these files, and they were not looked at: {first_names(unknown)}")


def _before(event: Mapping[str, Any], begun: str) -> bool:
    """Whether an event is older than a record that begins at a time, UTC, in whole seconds."""
    return datetime.fromisoformat(event["time"]) < datetime.strptime(begun, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
