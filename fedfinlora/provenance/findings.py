"""What a check of a folder has looked at, what it has found wrong, and what it could not prove."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedfinlora.config import Config
from fedfinlora.errors import UserError
from fedfinlora.provenance.folder import contents_of, file_bytes
from fedfinlora.provenance.lines import Attempt, Audited
from fedfinlora.provenance.signatures import WrongSignature, check

PROVEN, WRONG, NOT_ALL_PROVEN = 0, 1, 3
"""Exit status of `verify`; 2 is bad usage."""
MOST_NAMED = 12
"""Files of one kind of finding whose names are printed."""


@dataclass
class Findings:
    """What was looked at, what is wrong, and of what nothing shows whether it is right."""

    checked: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Each names a file."""
    unproven: list[str] = field(default_factory=list)
    """Likewise: nothing that is signed or hashed speaks of it, so anyone who can write to the folder may have made or removed it."""

    def add(self, where: Path | str, what: str) -> None:
        """One thing more is wrong, at a file or at a line of one."""
        self.wrong.append(f"{where}: {what}")

    def not_proven(self, where: Path | str, what: str) -> None:
        """One thing more cannot be proven."""
        self.unproven.append(f"{where}: {what}")

    def signed(self, where: str, what: str, key: Any, purpose: str, statement: Any, signature: str) -> bool:
        """Whether a statement bears the signature of a key; named if not. False without a name where there is no key."""
        try:
            if key is not None:
                check(key, purpose, statement, signature)
            return key is not None
        except WrongSignature as error:
            self.add(where, f"{what}: {error}")
            return False

    @property
    def status(self) -> int:
        """The exit status."""
        return WRONG if self.wrong else NOT_ALL_PROVEN if self.unproven else PROVEN


@dataclass
class Round:
    """A round that counts."""

    line: Attempt
    where: str
    """File and line."""
    config: Config | None
    asked: int = 0
    """Requests whose signature was checked."""
    answered: int = 0
    """Replies whose signature was checked."""


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
            where, f"it cannot be checked: something in it is damaged, missing or of another kind ({type(error).__name__})"
        )


def lines_of(file: Path, found: Findings) -> list[bytes]:
    """The whole lines of a file, without their ends; what is cut off at its end is named. OSError."""
    *lines, rest = file_bytes(file).split(b"\n")
    if rest:
        found.add(file, "its last line is cut off")
    return lines


def time_of(text: str) -> datetime:
    """The time that a line was written at, UTC. ValueError."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def first_names(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")


def no_other_kinds(folder: Path, found: Findings) -> bool:
    """Whether there are files and folders only; all else is named. Nothing of such a folder may be opened otherwise."""
    odd = contents_of(folder).odd
    for name, what in odd.items():
        found.add(folder / name, f"it is {what}")
    if odd:
        found.checked.append(f"{folder}: nothing else was looked at")
    return not odd
