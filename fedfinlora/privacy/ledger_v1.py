"""Ledgers of version 1 are taken over: an account for each data set (the hash of its rows), not for each row.

A file FINGERPRINT.jsonl holds a chain of lines, FINGERPRINT.head.json its last number and hash. An account of rows that
are still there as they were is booked on these rows; any other is booked on every row, for nothing says which rows it
was. The files stay where they are, and each line is taken over once: the new line names it as its origin.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedfinlora.privacy.accounting import Steps
from fedfinlora.privacy.cohorts import Rows, cohort_of, hash_rows
from fedfinlora.privacy.ledger_chain import Entry, Ledger
from fedfinlora.privacy.ledger_files import BEGINNING, EVERY_ROW, LINES, hash_of, origins, refusal, unusable

log = logging.getLogger("fedfinlora.privacy")


@dataclass(frozen=True)
class Version1:
    """Where the old ledgers are, and what today's rows are called in them."""

    folders: tuple[Path, ...]
    """Folders with FINGERPRINT.jsonl files: one for each name that the bank had."""
    data_sets: Callable[[], Mapping[str, Rows]]
    """Account -> its rows of today, all of them: `fingerprint` of a task's rows, or "bank-NAME" in the server's ledger.
    Called only where there is something to take over."""


def fingerprint(rows: Iterable[tuple[str, str]]) -> str:
    """The name of an account: SHA-256 of a data set's (prompt, target) pairs in any order."""
    hashes = sorted(
        hashlib.sha256(f"{len(prompt)}:{prompt}{target}".encode("utf-8", "surrogatepass")).hexdigest()
        for prompt, target in rows
    )
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def take_over(ledger: Ledger, version_1: Version1) -> None:
    """Book every line of the old files that the ledger does not have yet. LedgerError for an old ledger that is damaged
    or was changed.

    Where everything is booked as spent already, nothing is left to add, and old files are not read.
    """
    if everything_is_spent(ledger):
        return
    known = {(origin.get("account"), origin["hash"]) for line in ledger.lines for origin in origins(line)}
    data_sets: Mapping[str, Rows] | None = None
    for file, lines in _old_files(ledger.folder, version_1.folders):
        missing = [line for line in lines if (file.stem, line["hash"]) not in known]
        if not missing:
            continue
        data_sets = version_1.data_sets() if data_sets is None else data_sets
        rows = data_sets.get(file.stem)
        for line in missing:
            ledger.append(_entry(ledger, file.stem, line, rows))
        where = (
            "every row, those that come later included" if rows is None else f"its {len(rows.prompts)} rows of today"
        )
        log.info("The old privacy ledger %s was taken over: %d lines, booked on %s.", file, len(missing), where)
        ledger.commit()


def everything_is_spent(ledger: Ledger) -> bool:
    """Whether a line without noise counts for every row."""
    return any(line["cohort"] == EVERY_ROW and line["noise_multiplier"] == 0 and line["steps"] for line in ledger.lines)


def _entry(ledger: Ledger, account: str, line: Mapping[str, Any], rows: Rows | None) -> Entry:
    noise = 0.0 if line.get("reproducible_noise") else line["noise_multiplier"]
    steps = Steps(line["sampling_rate"], noise, line["steps"])
    by_customer = line["unit"] == "customer"
    cohort = None
    if rows is not None:
        hashed = hash_rows(rows, ledger.key)
        # Without the customers of today nothing says who they were: the line then counts for every row.
        if not by_customer or hashed.customers.all():
            cohort = cohort_of(hashed, by_customer, np.ones(len(rows.prompts), dtype=bool))
    origin = {"account": account, "number": line["number"], "hash": line["hash"]}
    return Entry(line["run"], line["round"], line["bank"], line["mechanism"], line["unit"], steps, cohort, origin)


def _old_files(ledger_folder: Path, folders: Iterable[Path]) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    for folder in folders:
        for file in sorted(folder.glob("*.jsonl")) if folder.is_dir() else []:
            if file.name != LINES:
                yield file, _checked(ledger_folder, file)


def _checked(ledger_folder: Path, file: Path) -> list[dict[str, Any]]:
    """The lines of an old file. A last line that a crash cut off was never spent and is ignored."""
    head_file = file.with_suffix(".head.json")
    try:
        content = file.read_bytes()
        head_text = head_file.read_bytes() if head_file.exists() else b""
    except OSError as error:
        raise unusable(file, error) from error
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(content.split(b"\n")[:-1], 1):
        try:
            line = json.loads(text)
            sound = line["number"] == number and line["previous"] == (lines[-1]["hash"] if lines else BEGINNING)
            sound = sound and line["hash"] == hash_of({key: value for key, value in line.items() if key != "hash"})
            Steps(line["sampling_rate"], line["noise_multiplier"], line["steps"])
            sound = sound and {"run", "round", "bank", "mechanism", "unit"} <= set(line)
        except (ValueError, KeyError, TypeError, AttributeError):
            sound = False
        if not sound:
            raise refusal(
                ledger_folder,
                f"line {number} of the old ledger {file.name} is damaged or was changed",
                history_helps=False,
            )
        lines.append(line)
    if not head_text:
        if len(lines) > 1:
            raise refusal(ledger_folder, f"{head_file.name} of an old ledger is missing", history_helps=False)
        return lines
    try:
        head = json.loads(head_text)
        number, last = int(head["number"]), str(head["hash"])
    except (ValueError, KeyError, TypeError) as error:
        raise refusal(ledger_folder, f"{head_file.name} of an old ledger is damaged", history_helps=False) from error
    if number not in (len(lines), len(lines) - 1) or (number > 0 and lines[number - 1]["hash"] != last):
        raise refusal(ledger_folder, f"the old ledger {file.name} has {len(lines)} lines, {number} were written", False)
    return lines
