"""What a check of a folder has looked at, and what it has found wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedfinlora.config import Config
from fedfinlora.provenance.folder import contents_of


@dataclass
class Findings:
    """What was looked at, and what is wrong."""

    checked: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Each names a file."""

    def add(self, where: Path | str, what: str) -> None:
        """One thing more is wrong, at a file or at a line of one."""
        self.wrong.append(f"{where}: {what}")


@dataclass
class Round:
    """A round that counts."""

    line: dict[str, Any]
    where: str
    """File and line."""
    config: Config | None
    asked: int = 0
    """Requests whose signature was checked."""
    answered: int = 0
    """Replies whose signature was checked."""

    @property
    def accepted(self) -> list[str]:
        """Names of the banks whose replies were averaged, sorted."""
        return sorted(bank for bank, entry in self.line["banks"].items() if entry["code"] == "")


@dataclass(frozen=True)
class Ended:
    """What the chain had come to when a run was completed."""

    config: Config
    run: str
    """The run's id."""
    code_sha256: str
    """Of the app bundle that the run began with."""
    previous: str
    """The hash of the line before the last one, which is what a release names."""
    rounds: Mapping[int, Round]


def no_other_kinds(folder: Path, found: Findings) -> bool:
    """Whether there are files and folders only; whatever else there is, is named. Nothing of such a folder may be opened otherwise."""
    odd = contents_of(folder).odd
    for name, what in odd.items():
        found.add(folder / name, f"it is {what}")
    if odd:
        found.checked.append(f"{folder}: nothing else was looked at")
    return not odd
