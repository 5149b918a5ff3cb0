"""What a check of a folder has looked at, found wrong, and could not verify."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.provenance.compared import Difference
from fedfinlora.provenance.folder import contents_of, file_bytes, regular
from fedfinlora.provenance.lines import Attempt, Audited, sealed_of
from fedfinlora.provenance.signatures import WrongSignature, check

PROVEN, WRONG, NOT_ALL_PROVEN = 0, 1, 3
"""Exit status of `verify`; 2 is bad usage."""
MOST_LINE_BYTES = 2**26
"""Of a line of provenance.jsonl: 1.2 KB a bank, and the hash of every file of the run."""
MOST_NAMED = 12
"""Files of one kind of finding whose names are printed."""


@dataclass
class Findings:
    """What was looked at, what is wrong, and what nothing shows to be right."""

    checked: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Each names a file."""
    unproven: list[str] = field(default_factory=list)
    """Likewise: nothing signed or hashed speaks of it, so anyone who can write to the folder may have made or removed
    it.
    """

    def add(self, where: Path | str, what: str) -> None:
        """One thing more is wrong, at a file or a line of one."""
        self.wrong.append(f"{where}: {what}")

    def not_proven(self, where: Path | str, what: str) -> None:
        self.unproven.append(f"{where}: {what}")

    def differs(self, differences: Iterable[Difference], same_version: bool = True) -> int:
        """Name each; returns how many. What another version of the program has made, perhaps by other rules, is only
        not proven.
        """
        named = list(differences)
        for one in named:
            if same_version:
                self.add(one.where, str(one))
            else:
                self.not_proven(one.where, f"{one}; another version of the program has made it, perhaps by other rules")
        return len(named)

    def signed(self, where: str, what: str, key: Any, purpose: str, statement: Any, signature: str) -> bool:
        """Whether a statement bears the signature of a key; named if not."""
        try:
            if key is not None:
                check(key, purpose, statement, signature)
            return key is not None
        except WrongSignature as error:
            self.add(where, f"{what}: {error}")
            return False

    @property
    def status(self) -> int:
        return WRONG if self.wrong else NOT_ALL_PROVEN if self.unproven else PROVEN


@dataclass(slots=True)
class Round:
    """A round that counts. Its whole line is read again where it is needed: of a hundred thousand rounds this is all
    that is held.
    """

    number: int
    file: ChainFile
    place: tuple[int, int, int]
    """Of its line: number from 1, offset and length in bytes."""
    config: Config | None
    begin: int
    """Which `begin` it follows, from 1."""
    banks: tuple[str, ...]
    """Those that were asked, sorted."""
    accepted: tuple[str, ...]
    """Banks whose replies were averaged, sorted."""
    adapter_sha256: str
    """After the round."""
    asked: int = 0
    """Requests whose signature was checked."""
    answered: int = 0
    """Replies whose signature was checked."""

    @property
    def where(self) -> str:
        return self.file.where(self.place[0])

    @property
    def line(self) -> Attempt:
        line = sealed_of(json.loads(self.file.read(*self.place[1:]))).line
        assert isinstance(line, Attempt)
        return line


@dataclass(frozen=True)
class Ended:
    """What the chain had come to when a run was completed."""

    config: Config
    run: str
    """The run's id."""
    code_sha256: str
    """Of the app bundle that the run began with."""
    version: str
    """Of the program that completed it; "" in older chains."""
    previous: str
    """The hash of the line before the last one, which is what a release names."""
    rounds: Mapping[int, Round]
    audits: tuple[Audited, ...]


@contextmanager
def naming(where: Path | str, found: Findings) -> Iterator[None]:
    """What a damaged or forged file makes of a check is one thing more that is wrong, and the next check follows."""
    try:
        yield
    except OSError as error:
        found.add(error.filename or where, f"cannot be read ({error.strerror or type(error).__name__})")
    except (UserError, WrongSignature) as error:
        found.add(where, str(error))
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        found.add(
            where,
            f"it cannot be checked: something in it is damaged, missing or of another kind ({type(error).__name__})",
        )


def lines_of(file: Path, found: Findings) -> list[bytes]:
    """The whole lines of a file; what is cut off at its end is named. OSError."""
    *lines, rest = file_bytes(file).split(b"\n")
    if rest:
        found.add(file, "its last line is cut off")
    return lines


class ChainFile:
    """provenance.jsonl, read line by line: one of a million rounds has gigabytes."""

    def __init__(self, path: Path) -> None:
        """OSError where it cannot be opened."""
        self.path = path
        self._stream = regular(path)

    def where(self, number: int) -> str:
        return f"{self.path}, line {number}"

    def lines(self) -> Iterator[tuple[tuple[int, int, int], bytes, bool]]:
        """(number from 1, offset and length in bytes; the line without its end; whether it is whole)."""
        self._stream.seek(0)
        offset = 0
        for number, line in enumerate(iter(lambda: self._stream.readline(MOST_LINE_BYTES), b""), 1):
            content = line.removesuffix(b"\n")
            yield (number, offset, len(content)), content, content != line
            offset += len(line)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._stream.fileno(), length, offset)


def time_of(text: str) -> datetime:
    """The time that a line was written at, UTC. ValueError."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def first_names(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")


def no_other_kinds(folder: Path, found: Findings) -> bool:
    """Whether there are files and folders only; all else is named, and must not be opened."""
    odd = contents_of(folder).odd
    for name, what in odd.items():
        found.add(folder / name, f"it is {what}")
    if odd:
        found.checked.append(f"{folder}: nothing else was looked at")
    return not odd
