"""A bank's own record of what was signed, `state/signed/BANK.jsonl`: each line holds the hash of the line before it, under the bank's signature.

So no line can be taken out, put in or moved without notice. Lines cut off at the end leave no trace here: the newest are in the coordinator's chain
and in the bank's history.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfinlora.locks import wait_for
from fedfinlora.provenance.signatures import LINE, Signer, WrongSignature, canonical, check, digest, public_key_of
from fedfinlora.synced import append_synced

PREVIOUS, SEAL = "previous", "seal"
"""Keys of a line: SHA-256 of the bytes of the line before, and the bank's signature of all else in the line."""
FIRST = "0" * 64
"""`previous` of the first line."""


def append(file: Path, values: Mapping[str, Any], signer: Signer) -> None:
    """Add one line and sync it, after taking away one that a crash cut off. OSError where the disk does not take it, UserError where it has no locks."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with wait_for(file.with_suffix(".lock"), f"The record {file}"):
        body = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **values, PREVIOUS: _last_hash(file)}
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
    """(Number of a line from 1, what is wrong with it): each follows the one before it and is sealed by the bank, whose key is in OpenSSH's form.

    Lines without link and seal are wrong too: whoever takes them off all lines could take out any line.
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
                wrong.append((number, "it does not follow the line before it: lines are missing, were added or were changed"))
            else:
                check(key, LINE, digest(body), str(values.get(SEAL, "")))
        except WrongSignature as error:
            wrong.append((number, f"its seal is wrong: {error}"))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            wrong.append((number, f"it cannot be read ({type(error).__name__})"))
        expected = hashlib.sha256(line).hexdigest()
    if unchained:
        wrong.insert(0, (1, f"the first {unchained} lines are not chained: nothing shows whether some of them are missing"))
    return wrong
