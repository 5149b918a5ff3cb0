"""The files of a ledger, held against all other processes.

    ledger.jsonl   a line for each booking; never changed, only added to
    head.json      number and hash of the last line, so that lines cut off at the end are noticed
    key            64 hex digits, mode 0600: the key of the row hashes; its fingerprint is in every line
    cohorts/       who took part, by content (`cohorts.py`)
    index          which lines each row is in (`ledger_index.py`); its hash is in every line, and it is built from the
    lines where it is missing lock           held while one process reads or books

A booking writes cohort, line, index and head, each synced before the next. Killed between two of them, the ledger has
the whole line, or none of it and nothing has left. Clock times are for people and decide nothing.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfinlora.errors import UserError
from fedfinlora.files import sha256_of, write_bytes
from fedfinlora.privacy.accounting import Steps
from fedfinlora.privacy.cohorts import Cohort, CohortError, CohortFiles
from fedfinlora.privacy.head import Head
from fedfinlora.privacy.ledger_files import (
    BEGINNING,
    COHORTS,
    EVERY_ROW,
    HEAD,
    INDEX,
    KEY,
    LINES,
    append_synced,
    begin,
    fingerprint_of,
    has_line,
    hash_of,
    locked,
    read_head,
    read_key,
    refusal,
    sound_lines,
    unusable,
    write_head,
)  # fmt: skip
from fedfinlora.privacy.ledger_index import Index

RECENT_COHORTS = 4
"""Cohorts that a new one may be written as a difference to."""


@dataclass(frozen=True)
class Entry:
    """What a line says, before it has a place in the chain."""

    run: str
    round: int
    bank: str
    mechanism: str
    unit: str
    """example, customer or bank."""
    steps: Steps
    cohort: Cohort | None
    """None = every row."""
    origin: Mapping[str, Any] | None = None
    """Of a line that was taken over or booked again: where it comes from."""


class Ledger:
    """A ledger that is open, checked and locked."""

    def __init__(self, folder: Path, cohorts: Path | None = None) -> None:
        """Check everything that is cheap to check. LedgerError: it cannot be believed."""
        self.folder, self.files = folder, CohortFiles(cohorts or folder / COHORTS)
        try:
            self.lines = self._checked_lines()
            self.key = self._checked_key()
            missing = {line["cohort"] for line in self.lines} - {EVERY_ROW} - self.files.names()
        except OSError as error:
            raise unusable(folder, error) from error
        if missing:
            raise refusal(folder, f"cohort {min(missing)[:12]} is missing")
        self._index: Index | None = None
        self._index_file = b""

    @property
    def head(self) -> Head:
        """Number and hash of the last line."""
        return Head(len(self.lines), self.lines[-1]["hash"] if self.lines else BEGINNING)

    @property
    def index(self) -> Index:
        """The index after the last line, from its file or, as far as that is behind, from the cohorts."""
        if self._index is None:
            self._index = self._checked_index()
        return self._index

    def append(self, entry: Entry) -> None:
        """Write one line, sync it, and apply it to the index in memory. LedgerError where the disk does not take it."""
        index = self.index.after(entry.cohort)
        index_file = index.to_bytes()
        try:
            line: dict[str, Any] = {
                "number": len(self.lines) + 1,
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "run": entry.run,
                "round": entry.round,
                "bank": entry.bank,
                "mechanism": entry.mechanism,
                "unit": entry.unit,
                "sampling_rate": entry.steps.sampling_rate,
                "noise_multiplier": entry.steps.noise_multiplier,
                "steps": entry.steps.count,
                "cohort": self._write_cohort(entry.cohort),
                "index": sha256_of(index_file),
                "key": fingerprint_of(self.key),
                **({"origin": dict(entry.origin)} if entry.origin else {}),
                # So that a ledger which was rolled back cannot come by the lines that it lost, not even with its clock
                # set back.
                "nonce": secrets.token_hex(16),
                "previous": self.head.hash,
            }
            line["hash"] = hash_of(line)
            append_synced(self.folder / LINES, (json.dumps(line, allow_nan=False) + "\n").encode())
        except (OSError, UserError) as error:
            raise unusable(self.folder, error) from error
        self.lines.append(line)
        self._index, self._index_file = index, index_file

    def commit(self) -> None:
        """Write index and head after the last lines."""
        try:
            write_bytes(self.folder / INDEX, self._index_file)
            write_head(self.folder, self.head)
        except UserError as error:
            raise unusable(self.folder, error) from error

    def _write_cohort(self, cohort: Cohort | None) -> str:
        if cohort is None:
            return EVERY_ROW
        address = cohort.address
        if all(line["cohort"] != address for line in self.lines):
            recent: dict[str, int] = {}
            for line in reversed(self.lines[-4 * RECENT_COHORTS :]):
                if line["cohort"] != EVERY_ROW and len(recent) < RECENT_COHORTS:
                    recent.setdefault(line["cohort"], line["number"])
            try:
                self.files.write(cohort, ((name, self.index.members(number)) for name, number in recent.items()))
            except CohortError as error:
                raise refusal(self.folder, str(error)) from error
        return address

    def _checked_lines(self) -> list[dict[str, Any]]:
        lines = sound_lines((self.folder / LINES).read_bytes() if (self.folder / LINES).exists() else b"")
        if isinstance(lines, int):
            raise refusal(self.folder, f"line {lines} is damaged or was changed")
        head_file = self.folder / HEAD
        if not head_file.exists():
            if lines or (self.folder / KEY).exists() or (self.folder / INDEX).exists():
                raise refusal(self.folder, f"{HEAD} is missing")
            return []
        head = read_head(self.folder)
        if head is None:
            raise refusal(self.folder, f"{HEAD} is damaged")
        # One line more than the head: a crash came between the two. Fewer, or others: somebody changed the files.
        if head.number not in (len(lines), len(lines) - 1) or not has_line(lines, head):
            raise refusal(self.folder, f"it has {len(lines)} lines, {head.number} were written")
        return lines

    def _checked_key(self) -> bytes:
        key = read_key(self.folder)
        if key is None and (self.lines or (self.folder / KEY).exists()):
            raise refusal(self.folder, "its key is missing or damaged")
        if key is None:
            return b""
        if any(line["key"] != fingerprint_of(key) for line in self.lines):
            raise refusal(self.folder, "its key was replaced")
        return key

    def _checked_index(self) -> Index:
        index, done = Index(), 0
        try:
            content = (self.folder / INDEX).read_bytes() if (self.folder / INDEX).exists() else b""
        except OSError as error:
            raise unusable(self.folder, error) from error
        if content:
            found = sha256_of(content)
            done = next((line["number"] for line in reversed(self.lines) if line["index"] == found), 0)
            if not done:
                raise refusal(
                    self.folder, f"{INDEX} is damaged or was replaced (where it is missing it is built again)"
                )
            index = Index.from_bytes(content)
        try:
            for line in self.lines[done:]:
                index = index.after(None if line["cohort"] == EVERY_ROW else self.files.read(line["cohort"]))
        except CohortError as error:
            raise refusal(self.folder, str(error)) from error
        if self.lines and sha256_of(index.to_bytes()) != self.lines[-1]["index"]:
            raise refusal(self.folder, f"line {len(self.lines)} does not fit the cohorts")
        return index


@contextmanager
def opened(folder: Path, writing: bool = True) -> Iterator[Ledger]:
    """Open, and where `writing` begin, the ledger of a folder, and hold it against all other processes."""
    with locked(folder, writing):
        if writing:
            begin(folder)
        yield Ledger(folder)
