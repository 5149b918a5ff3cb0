"""A bank's own record of what was signed, `state/signed/BANK.jsonl`: each line holds the hash of the line before it,
under the bank's signature.

Lines cut off at the end leave no trace here: `verify` compares the record with the bank's history and its privacy
ledger (`fedfinlora.provenance.verify_history`).
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfinlora.files import append_synced
from fedfinlora.provenance.lines import FIRST, UnknownLine
from fedfinlora.provenance.signatures import LINE, Signer, WrongSignature, canonical, check, digest, public_key_of
from fedfinlora.system.locks import wait_for

PREVIOUS, SEAL = "previous", "seal"
"""Keys of a line: SHA-256 of the bytes of the line before, and the bank's signature of all else in the line."""


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    asked: Mapping[str, Any]
    """Its statement (`fedfinlora.provenance.evidence.request_statement`)."""
    signature: str
    """The coordinator's."""
    certificate_sha256: str
    """Names the file with the coordinator's certificate, which is next to the record."""

    @property
    def run_and_round(self) -> tuple[str, int]:
        """Of which round of which run."""
        return str(self.asked["run"]), int(self.asked["round"])


@dataclass(frozen=True)
class Answered:
    """A reply before it left."""

    answered: Mapping[str, Any]
    """Its statement (`fedfinlora.provenance.evidence.reply_statement`)."""
    signature: str
    """The bank's."""

    @property
    def head(self) -> Mapping[str, Any]:
        """The head of the reply."""
        return self.answered["reply"]  # type: ignore[no-any-return]


Entry = Asked | Answered


def values_of(entry: Entry) -> dict[str, Any]:
    """An entry as JSON, without its place in the record."""
    if isinstance(entry, Answered):
        return {"answered": entry.answered, "signature": entry.signature}
    return {"asked": entry.asked, "signature": entry.signature, "certificate-sha256": entry.certificate_sha256}


def entry_of(values: Any) -> Entry:
    """An entry from a line's JSON. UnknownLine for anything else."""
    try:
        if ("asked" in values) == ("answered" in values):
            raise UnknownLine("it is neither a request nor an answer")
        if "asked" in values:
            return Asked(dict(values["asked"]), str(values["signature"]), str(values["certificate-sha256"]))
        answered = Answered(dict(values["answered"]), str(values["signature"]))
        dict(answered.head)
        return answered
    except KeyError as error:
        raise UnknownLine(f"it lacks {error.args[0]}") from error
    except (TypeError, ValueError) as error:
        raise UnknownLine(f"it is neither a request nor an answer ({type(error).__name__})") from error


def append(file: Path, entry: Entry, signer: Signer) -> None:
    """Add one line and sync it, after removing one that a crash cut off. OSError where the disk does not take it,
    UserError where it has no locks.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with wait_for(file.with_suffix(".lock"), f"The record {file}"):
        body = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **values_of(entry),
            PREVIOUS: _last_hash(file),
        }
        append_synced(file, canonical({**body, SEAL: signer.sign(LINE, digest(body))}) + b"\n")


def _last_hash(file: Path) -> str:
    """SHA-256 of the last whole line; what comes after it is cut off."""
    if not file.exists() or not file.stat().st_size:
        return FIRST
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = content.rfind(b"\n")
        line = content[content.rfind(b"\n", 0, end) + 1 : end] if end >= 0 else b""
    if end + 1 < file.stat().st_size:
        os.truncate(file, end + 1)
    return hashlib.sha256(line).hexdigest() if end >= 0 else FIRST


def check_links(lines: Sequence[bytes], public_key: str) -> list[tuple[int, str]]:
    """(number of a line from 1, what is wrong with it): each follows the one before it and is sealed by the bank.

    Lines without link and seal are wrong too: else whoever takes them off all lines could take out any line.
    """
    wrong: list[tuple[int, str]] = []
    unchained = 0
    key, expected = public_key_of(public_key), FIRST
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            body = {name: value for name, value in values.items() if name != SEAL}
            if PREVIOUS not in body and unchained == number - 1:
                unchained = number
            elif body.get(PREVIOUS) != expected:
                wrong.append(
                    (number, "it does not follow the line before it: lines are missing, were added or were changed")
                )
            else:
                check(key, LINE, digest(body), str(values.get(SEAL, "")))
        except WrongSignature as error:
            wrong.append((number, f"its seal is wrong: {error}"))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            wrong.append((number, f"it cannot be read ({type(error).__name__})"))
        expected = hashlib.sha256(line).hexdigest()
    if unchained:
        wrong.insert(
            0, (1, f"the first {unchained} lines are not chained: nothing shows whether some of them are missing")
        )
    return wrong
