"""Answers on disk, one line each, as they come: nothing is asked twice, and a killed evaluation resumes where it was.

A file holds the answers that one model gave under one set of settings, by the hash of the prompt. Its name, or the
settings in its first line, say which. A line that a crash cut off is ignored; equal lines of two processes do no harm.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedfinlora.errors import UserError
from fedfinlora.run.typed import OMITTED, to_json
from fedfinlora.system.locks import wait_for

FORMAT = 4
"""Raised when the decoding or the lines change their meaning, so that old answers are left alone."""


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """What a model answered to one prompt: a text, or the log-probability of each label."""

    text: str | None = field(default=None, metadata=OMITTED)
    stopped: str | None = field(default=None, metadata=OMITTED)
    """end, budget, settled (early stopping), or a server's own word; `eval.models.TOO_LONG` where it says that the
    prompt does not fit.
    """
    api: str | None = field(default=None, metadata=OMITTED)
    served_model: str | None = field(default=None, metadata=OMITTED)
    label_logprobs: Mapping[str, float] | None = field(default=None, metadata=OMITTED)
    """Label -> log-probability, nats."""


def settings_id(settings: Mapping[str, Any]) -> str:
    """SHA-256 of everything, besides the prompt, that decides an answer."""
    return hashlib.sha256(
        json.dumps({"format": FORMAT, **settings}, sort_keys=True, allow_nan=False).encode()
    ).hexdigest()


def prompt_id(prompt: str | Iterable[int]) -> str:
    """SHA-256 of a prompt: its text, or its token ids."""
    content = prompt if isinstance(prompt, str) else ",".join(map(str, prompt))
    return hashlib.sha256(content.encode()).hexdigest()


class AnswerFile:
    """`path` opened to append to. A file of other settings is started over.

    Raises UserError where the file cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.known: dict[str, ModelAnswer] = {}
        """Prompt id -> answer."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            with _locked(path):  # or two processes that begin a file would each throw away the other's lines
                self._begin({"format": FORMAT, "settings": settings_id(settings)})
        except BaseException:
            self._stream.close()
            raise

    def _begin(self, head: Mapping[str, Any]) -> None:
        try:
            content = self.path.read_bytes() if self.path.is_file() else b""
            lines = _lines_of(content)
            if lines and lines[0] == head:
                self.known = _answers_in(lines)
                if not content.endswith(b"\n"):
                    self._stream.write(b"\n")
                return
            if content:
                os.ftruncate(self._stream.fileno(), 0)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._write(head)

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def add(self, prompt: str, answer: ModelAnswer) -> None:
        """Keep the answer to a prompt, given by its id."""
        if prompt not in self.known:
            self.known[prompt] = answer
            self._write({"prompt": prompt, "answer": to_json(answer)})

    def _write(self, values: Mapping[str, Any]) -> None:
        """One line in one write, so that a kill leaves whole lines or one broken one."""
        content = (json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "surrogatepass")
        try:
            if self._stream.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _unwritable(self.path, error) from error


def read_answers(path: Path) -> dict[str, ModelAnswer]:
    """Prompt id -> answer of a file that is only looked at; {} where there is none."""
    try:
        return _answers_in(_lines_of(path.read_bytes())) if path.is_file() else {}
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}. Use evaluation.reuse=false to do without it."
        ) from error


def _answers_in(lines: Sequence[Mapping[str, Any]]) -> dict[str, ModelAnswer]:
    """Those of the lines that hold one: not the first, and none of another form."""
    found = {}
    for line in lines:
        if isinstance(prompt := line.get("prompt"), str):
            with contextlib.suppress(KeyError, TypeError):
                found[prompt] = ModelAnswer(**line["answer"])
    return found


def _lines_of(content: bytes) -> list[dict[str, Any]]:
    found = []
    for line in content.split(b"\n"):
        try:
            values = json.loads(line.decode("utf-8", "surrogatepass"))
        except ValueError:
            continue
        if isinstance(values, dict):
            found.append(values)
    return found


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file against other processes, by a lock next to it that is taken away again."""
    lock_file = path.with_name(f"{path.name}.lock")
    try:
        lock = wait_for(lock_file, f"The file of answers {path}")
    except OSError as error:
        raise _unwritable(path, error) from error
    with lock:
        yield
        lock_file.unlink(missing_ok=True)  # while it is held: who waits for it makes another


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"Cannot write {path}: {error.strerror or error}. Free space or choose another folder with output_dir=FOLDER "
        "or evaluation.answers_dir=FOLDER."
    )
