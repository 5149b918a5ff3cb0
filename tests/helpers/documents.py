"""The documents, the commands in their sh blocks, and the files that docs/running.md lists of a run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from fedfinlora.compose import PROJECT_ROOT

README = PROJECT_ROOT / "README.md"
RUNNING = PROJECT_ROOT / "docs" / "running.md"
DOCUMENTS = [
    README,
    PROJECT_ROOT / "CONTRIBUTING.md",
    PROJECT_ROOT / "CHANGELOG.md",
    RUNNING,
    *sorted(set((PROJECT_ROOT / "docs").rglob("*.md")) - {RUNNING}),
]


class Command(NamedTuple):
    """One line of a sh block."""

    document: Path
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        """As it is in the document, on one line."""
        return shlex.join(self.words)


def commands_of(document: Path) -> list[Command]:
    blocks = re.findall(r"^```sh\n(.*?)^```", document.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    words = [tuple(shlex.split(line, comments=True)) for line in lines]
    return [Command(document, line) for line in words if line]


COMMANDS = [command for document in DOCUMENTS for command in commands_of(document)]
OURS = [command for command in COMMANDS if command.words[:3] == ("python", "-m", "fedfinlora")]


def left_behind() -> list[str]:
    """The files and folders that docs/running.md lists as those of every run."""
    listed = RUNNING.read_text("utf-8").split("## What a run leaves behind")[1].split("```")[1]
    return [line.split()[0].rstrip("/") for line in listed.strip().splitlines()]
