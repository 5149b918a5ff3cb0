"""The files of a ledger's folder, one by one: lock, lines, head and key, and what is said where one cannot be believed
or written.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedfinlora.errors import UserError
from fedfinlora.files import made_as, sync_folder, write_bytes
from fedfinlora.privacy.accounting import Steps
from fedfinlora.privacy.head import Head
from fedfinlora.system.locks import wait_for

BEGINNING = "0" * 64
"""`previous` of the first line."""
EVERY_ROW = "*"
"""The cohort of a line that counts for every row, later ones included."""
LINES, HEAD, KEY, INDEX, COHORTS, RENEWED, LOCK = (
    "ledger.jsonl",
    "head.json",
    "key",
    "index",
    "cohorts",
    "renewed",
    "lock",
)


class LedgerError(UserError):
    """A ledger that cannot be believed or written: nothing private may leave."""


@contextmanager
def locked(folder: Path, writing: bool = True) -> Iterator[None]:
    """Hold a folder against all other processes, and complete a repair that was interrupted."""
    try:
        if writing and not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            sync_folder(folder.parent)
        lock = wait_for(folder / LOCK, f"The privacy ledger {folder}", writing)
    except (OSError, UserError) as error:
        raise unusable(folder, error) from error
    with lock, made_as(folder):
        complete_renewal(folder)
        yield


def begin(folder: Path) -> None:
    """Head and key of a new ledger, and the torn last line of an old one taken away: what was cut off by a crash never
    left.

    The head comes first: a ledger that was cut to its first line and lost its head is not taken for a new one.
    """
    try:
        if not any((folder / name).exists() for name in (HEAD, KEY, LINES, INDEX)):
            write_head(folder, Head(0, BEGINNING))
        if not any((folder / name).exists() for name in (KEY, LINES, INDEX)) and read_head(folder) == Head(
            0, BEGINNING
        ):
            write_key(folder, secrets.token_bytes(32))
        if (folder / LINES).exists():
            content = (folder / LINES).read_bytes()
            if torn := len(content) - len(content.rpartition(b"\n")[0]) - (b"\n" in content):
                os.truncate(folder / LINES, len(content) - torn)
    except (OSError, UserError) as error:
        raise unusable(folder, error) from error


def complete_renewal(folder: Path) -> None:
    """Put the files that a repair has made into their places. A repair counts from the moment that their folder has its
    name.
    """
    renewed = folder / RENEWED
    if not renewed.is_dir():
        return
    try:
        for name in (KEY, LINES, INDEX, HEAD):
            if (renewed / name).exists():
                os.replace(renewed / name, folder / name)
        sync_folder(folder)
        renewed.rmdir()
        sync_folder(folder)
    except OSError as error:
        raise unusable(folder, error) from error


def sound_lines(content: bytes) -> list[dict[str, Any]] | int:
    """The lines of a chain, or the number of the first that is damaged. What follows the last line break is
    ignored.
    """
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(content.split(b"\n")[:-1], 1):
        line = sound_line(text)
        previous = lines[-1]["hash"] if lines else BEGINNING
        if line is None or line["number"] != number or line["previous"] != previous:
            return number
        lines.append(line)
    return lines


def sound_line(text: bytes) -> dict[str, Any] | None:
    """One line whose own hash is right and whose fields are all there, else None."""
    try:
        line: dict[str, Any] = json.loads(text)
        Steps(line["sampling_rate"], line["noise_multiplier"], line["steps"])
        right = line["hash"] == hash_of({key: value for key, value in line.items() if key != "hash"})
        known = all(
            isinstance(line[key], str) for key in ("run", "bank", "mechanism", "unit", "cohort", "index", "key")
        )
        return line if right and known and isinstance(line["number"], int) and isinstance(line["round"], int) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def has_line(lines: list[dict[str, Any]], head: Head) -> bool:
    """Whether the chain has the line that a head speaks of."""
    if head.number == 0:
        return head.hash == BEGINNING
    return 0 < head.number <= len(lines) and bool(lines[head.number - 1]["hash"] == head.hash)


def origins(line: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What a line also represents: lines of an old ledger, or lines that were lost and booked again."""
    origin = line.get("origin")
    while isinstance(origin, Mapping):
        yield origin
        origin = origin.get("before")


def read_head(folder: Path) -> Head | None:
    """head.json; None where it is missing or damaged."""
    try:
        values = json.loads((folder / HEAD).read_bytes())
        return Head(int(values["number"]), str(values["hash"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write_head(folder: Path, head: Head) -> None:
    """Replace head.json."""
    write_bytes(
        folder / HEAD, (json.dumps({"number": head.number, "hash": head.hash}, allow_nan=False) + "\n").encode()
    )


def read_key(folder: Path) -> bytes | None:
    """The key; None where it is missing or damaged."""
    try:
        key = bytes.fromhex((folder / KEY).read_text("ascii"))
    except (FileNotFoundError, ValueError):
        return None
    return key if len(key) == 32 else None


def write_key(folder: Path, key: bytes) -> None:
    """Write the key, readable for its owner only from the first byte on."""
    temporary = folder / f".{KEY}.{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        _write_whole(descriptor, key.hex().encode() + b"\n")
    finally:
        os.close(descriptor)
    os.replace(temporary, folder / KEY)
    sync_folder(folder)


def append_synced(file: Path, content: bytes) -> None:
    """Append to a file (mode 0600) and sync it, and its folder where it is new."""
    new = not file.exists()
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        _write_whole(descriptor, content)
    finally:
        os.close(descriptor)
    if new:
        sync_folder(file.parent)


def _write_whole(descriptor: int, content: bytes) -> None:
    if os.write(descriptor, content) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(descriptor)


def fingerprint_of(key: bytes) -> str:
    """16 hex digits that identify a key and say nothing about it."""
    return hashlib.sha256(b"fedfinlora ledger key" + key).hexdigest()[:16]


def hash_of(line: Mapping[str, Any]) -> str:
    """SHA-256 of a line without its hash."""
    return hashlib.sha256(json.dumps(line, sort_keys=True, allow_nan=False).encode()).hexdigest()


def refusal(folder: Path, what: str, history_helps: bool = True) -> LedgerError:
    """What is wrong with a ledger, and the ways out. An older copy is none: it would forget what was spent since."""
    command = f"python -m fedfinlora privacy ledger {folder}"
    reconcile = f"`{command} --reconcile HISTORY.jsonl`, which books again what the bank's history knows, or "
    return LedgerError(
        f"The privacy ledger {folder} cannot be believed: {what}. Nothing private may leave until the bank's privacy "
        "officer has run "
        f"{reconcile if history_helps else ''}`{command} --book-as-spent`."
    )


def unusable(folder: Path, error: Exception) -> LedgerError:
    """A full disk, a read-only mount and the like."""
    if isinstance(error, LedgerError):
        return error
    reason = error.strerror if isinstance(error, OSError) else str(error).partition(" Free space")[0].rstrip(".")
    return LedgerError(
        f"The privacy ledger {folder} cannot be opened or written ({reason}): nothing private may leave. Free space, "
        "or make the folder "
        "writable."
    )
