"""A ledger that cannot be believed is made usable again, and nothing that was spent is forgotten.

What holds of the chain is kept: its lines from the first on, as far as each is whole, follows the one before, and its
cohort can be read. Every later line is booked again, on its own cohort where its hash is right and the cohort is there,
else on every row, and so is each round that the bank's history knows and the ledger does not. A line that no file has
any more cannot be booked again; then only `book_as_spent` is left: a line without noise for every row.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfinlora.errors import UserError
from fedfinlora.files import sha256_of, sync_folder
from fedfinlora.privacy.accounting import Steps
from fedfinlora.privacy.cohorts import Cohort, CohortError, CohortFiles
from fedfinlora.privacy.head import Head
from fedfinlora.privacy.history import read_history
from fedfinlora.privacy.ledger_chain import Entry, Ledger
from fedfinlora.privacy.ledger_files import (
    BEGINNING,
    COHORTS,
    EVERY_ROW,
    HEAD,
    INDEX,
    KEY,
    LINES,
    RENEWED,
    LedgerError,
    append_synced,
    complete_renewal,
    fingerprint_of,
    locked,
    origins,
    read_head,
    read_key,
    sound_line,
    unusable,
    write_head,
    write_key,
)
from fedfinlora.privacy.ledger_index import Index


@dataclass(frozen=True)
class Repair:
    """What was done."""

    kept: int
    """Lines that hold as they are."""
    booked_again: int
    """Lines booked again on the rows that they named."""
    booked_on_every_row: int
    """Lines booked again on every row, for nothing says which rows they named."""
    aside: Path
    """Where the old files are now."""
    head: Head


@dataclass(frozen=True)
class _Salvage:
    """What can be read of a ledger."""

    kept: list[dict[str, Any]]
    lost: list[tuple[dict[str, Any], Cohort | None]]
    """Lines that are right by themselves but have no place in the chain, and their cohorts where these can be read."""
    key: bytes | None
    number: int
    """The largest number that a line or the head speaks of."""


def reconcile(folder: Path, history_file: Path) -> Repair:
    """Book again what the ledger has lost, by what is left of it and by the bank's history. LedgerError where the two
    do not know everything.
    """
    if not history_file.is_file():
        raise UserError(f"{history_file} is no file. It is the bank's state folder's history/NAME.jsonl.")
    _check_folder(folder)
    events = _of_history(history_file)
    if not events:
        raise UserError(
            f"{history_file} has no booked round. Name the bank's own history: its state folder's history/NAME.jsonl."
        )
    with locked(folder):
        salvage = _salvage(folder)
        entries = [_again(line, cohort) for line, cohort in salvage.lost]
        known = {line["hash"] for line in (*salvage.kept, *(line for line, _ in salvage.lost))}
        numbers = {line["number"] for line in salvage.kept} | {line["number"] for line, _ in salvage.lost}
        for line in (*salvage.kept, *(line for line, _ in salvage.lost)):
            known |= {origin["hash"] for origin in origins(line)}
        for number, entry in events:
            numbers.add(number)
            assert entry.origin is not None
            if entry.origin["hash"] not in known:
                known.add(entry.origin["hash"])
                entries.append(entry)
        unknown = sorted(set(range(1, max([salvage.number, *numbers], default=0) + 1)) - numbers)
        if unknown:
            raise LedgerError(
                f"The privacy ledger {folder} cannot be reconciled: neither its files nor {history_file} know line "
                f"{unknown[0]}. "
                f"Run `python -m fedfinlora privacy ledger {folder} --book-as-spent`."
            )
        return _renew(folder, salvage, entries)


def book_as_spent(folder: Path) -> Repair:
    """Keep what holds, and add a line without noise that counts for every row, those that come later included."""
    _check_folder(folder)
    with locked(folder):
        salvage = _salvage(folder)
        entry = Entry("", 0, "", "everything was booked as spent", "example", Steps(1.0, 0.0, 1), None)
        return _renew(folder, salvage, [entry])


def _check_folder(folder: Path) -> None:
    """UserError for a folder of something else."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder. Name the folder of the bank's ledger.")
    found = {path.name for path in folder.iterdir()}
    if found and not found & {LINES, HEAD, KEY, INDEX, COHORTS, "lock"}:
        raise UserError(f"{folder} has other things in it than a ledger. Name the folder of the bank's ledger.")


def _salvage(folder: Path) -> _Salvage:
    try:
        content = (folder / LINES).read_bytes() if (folder / LINES).exists() else b""
        key, head = read_key(folder), read_head(folder)
    except OSError as error:
        raise unusable(folder, error) from error
    files, index = CohortFiles(folder / COHORTS), Index()
    kept: list[dict[str, Any]] = []
    lost: list[tuple[dict[str, Any], Cohort | None]] = []
    for text in content.split(b"\n")[:-1]:
        line = sound_line(text)
        if line is None:
            continue
        same_key = key is not None and line["key"] == fingerprint_of(key)
        cohort, readable = None, same_key and line["cohort"] == EVERY_ROW
        if same_key and not readable:
            with contextlib.suppress(CohortError):
                cohort, readable = files.read(line["cohort"]), True
        follows = line["number"] == len(kept) + 1 and line["previous"] == (kept[-1]["hash"] if kept else BEGINNING)
        if readable and follows and not lost:
            after = index.after(cohort)
            if sha256_of(after.to_bytes()) == line["index"]:
                kept.append(line)
                index = after
                continue
        lost.append((line, cohort))
    numbers = [line["number"] for line in kept] + [line["number"] for line, _ in lost] + [head.number if head else 0]
    return _Salvage(kept, lost, key, max(numbers))


def _again(line: Mapping[str, Any], cohort: Cohort | None) -> Entry:
    steps = Steps(line["sampling_rate"], line["noise_multiplier"], line["steps"])
    origin = {"number": line["number"], "hash": line["hash"]}
    if "origin" in line:
        origin["before"] = line["origin"]
    return Entry(line["run"], line["round"], line["bank"], line["mechanism"], line["unit"], steps, cohort, origin)


def _of_history(file: Path) -> list[tuple[int, Entry]]:
    """(number in the ledger, entry) of every booked round that a history knows."""
    found = []
    for event in read_history(file):
        number, line_hash = event.get("ledger_number"), event.get("ledger_hash")
        if not number or not line_hash:
            continue
        try:
            steps = Steps(float(event["sampling_rate"]), float(event["noise_multiplier"]), int(event["noise_steps"]))
            origin = {"number": int(number), "hash": str(line_hash)}
            what = (str(event["mechanism"]), str(event["unit"]), steps, None, origin)
            found.append((int(number), Entry(str(event["run"]), int(event["round"]), file.stem, *what)))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{file}: the round with ledger line {number} is damaged. Use --book-as-spent instead."
            ) from error
    return found


def _renew(folder: Path, salvage: _Salvage, entries: Sequence[Entry]) -> Repair:
    """Write the new files next to the old ones, keep copies of the old ones, and put the new ones in their places.

    The new files count once their folder has its last name; killed before that, nothing has changed, and after it, the
    next process that opens the ledger completes the move.
    """
    made = folder / f"{RENEWED}.tmp"
    try:
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(mode=0o700)
        head = Head(len(salvage.kept), salvage.kept[-1]["hash"] if salvage.kept else BEGINNING)
        write_head(made, head)
        write_key(made, salvage.key or secrets.token_bytes(32))
        if salvage.kept:
            text = (folder / LINES).read_bytes().split(b"\n")[: len(salvage.kept)]
            append_synced(made / LINES, b"".join(line + b"\n" for line in text))
        ledger = Ledger(made, folder / COHORTS)
        for entry in entries:
            ledger.append(entry)
        ledger.commit()
        aside = _set_aside(folder)
        os.rename(made, folder / RENEWED)
        sync_folder(folder)
    except OSError as error:
        raise unusable(folder, error) from error
    complete_renewal(folder)
    on_every_row = sum(entry.cohort is None for entry in entries)
    return Repair(len(salvage.kept), len(entries) - on_every_row, on_every_row, aside, ledger.head)


def _set_aside(folder: Path) -> Path:
    """Copies of the old files, in the first free folder damaged-1, damaged-2, …"""
    number = 1
    while (folder / f"damaged-{number}").exists():
        number += 1
    aside = folder / f"damaged-{number}"
    aside.mkdir(mode=0o700)
    for name in (LINES, HEAD, KEY, INDEX):
        if (folder / name).exists():
            shutil.copy2(folder / name, aside / name)
    sync_folder(aside)
    return aside
