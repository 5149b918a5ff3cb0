"""Answers on disk, one line each, written as they come: nothing is asked twice, and an evaluation that is killed goes on where it was.

A file holds the answers that one model gave under one set of settings, by the hash of the prompt. Its name, or the settings in its
first line, say which. A line that a crash cut off is left out; equal lines of two processes do no harm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from fedfinlora.errors import UserError
from fedfinlora.runfolder import unwritable

FORMAT = 1
"""Raised when the decoding or the lines change their meaning, so that old answers are left alone."""


def settings_id(settings: Mapping[str, Any]) -> str:
    """SHA-256 of everything, besides the prompt, that decides an answer."""
    return hashlib.sha256(json.dumps({"format": FORMAT, **settings}, sort_keys=True).encode()).hexdigest()


def prompt_id(prompt: str | Iterable[int]) -> str:
    """SHA-256 of a prompt: its text, or its token ids."""
    content = prompt if isinstance(prompt, str) else ",".join(map(str, prompt))
    return hashlib.sha256(content.encode()).hexdigest()


class AnswerFile:
    """`path` opened to go on with. A file of other settings is begun anew.

    Raises UserError where the file cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.known: dict[str, dict[str, Any]] = {}
        """Prompt id -> answer."""
        head = {"format": FORMAT, "settings": settings_id(settings)}
        lines = _lines(path)
        fresh = not lines or lines[0] != head
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = open(path, "wb" if fresh else "ab", buffering=0)  # noqa: SIM115 - closed by close()
            if fresh:
                self._write(head)
            else:
                self._stream.write(b"\n" if not path.read_bytes().endswith(b"\n") else b"")
        except OSError as error:
            raise unwritable(path, error) from error
        if not fresh:
            self.known = _answers_in(lines)

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()

    def add(self, prompt: str, answer: dict[str, Any]) -> None:
        """Keep the answer to a prompt, given by its id."""
        if prompt not in self.known:
            self.known[prompt] = answer
            self._write({"prompt": prompt, "answer": answer})

    def _write(self, values: Mapping[str, Any]) -> None:
        """One line in one write, so that a kill leaves whole lines or one broken one."""
        content = (json.dumps(values, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
        try:
            if self._stream.write(content) != len(content):
                raise UserError(f"Cannot write {self.path}: the disk is full. Free space and give the same command again.")
        except OSError as error:
            raise unwritable(self.path, error) from error


def read_answers(path: Path) -> dict[str, dict[str, Any]]:
    """Prompt id -> answer of a file that is only looked at; {} where there is none."""
    return _answers_in(_lines(path))


def _answers_in(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {line["prompt"]: line["answer"] for line in lines if "prompt" in line and "answer" in line}


def _lines(path: Path) -> list[dict[str, Any]]:
    """The readable lines of a file, [] where there is none."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_bytes().split(b"\n"):
        try:
            values = json.loads(line.decode("utf-8", "surrogatepass"))
        except ValueError:
            continue
        if isinstance(values, dict):
            found.append(values)
    return found
