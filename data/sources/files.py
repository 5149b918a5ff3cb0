"""One JSON-lines file becomes rows and bad rows: strict about what a row is, and never stopped by what is wrong with one.

A row is a JSON object with a string `context` (the whole prompt) and a `target` (text, or a number that becomes its own text), and
may have `task` and `issuer`. Whatever else it has is ignored. Reasons never quote a row: they may be shown outside the bank.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from data.catalog import classify_merged
from data.rows import BadRow, Row
from data.sources.issuers import issuer_of

WHOLE_FILE = 0
"""`BadRow.line` of a fault that is not one line's: unreadable or empty."""
CUSTOM_TASK = "custom"
"""Task of a bank's own rows that belong to no benchmark."""


@dataclass(frozen=True)
class SourceFile:
    """A file to read, and what its place and name already say about its rows."""

    path: Path
    name: str
    """Path below the root with forward slashes: what reports, fingerprints and bad rows call the file."""
    split: str
    """train or test."""
    task: str = ""
    """The task of every row; empty = told row by row."""
    merged: str = ""
    """Stem of a merged FinLoRA file, whose rows `classify_merged` tells apart."""
    wanted: frozenset[str] = frozenset()
    """Rows of other tasks are passed over; empty = none are."""
    folder: str = ""
    """Row.path of its rows."""
    id_prefix: str = ""
    """Row ids are this and the line number; empty = task/split."""


@dataclass(frozen=True)
class FileRows:
    """What one file held."""

    file: SourceFile
    rows: tuple[Row, ...]
    bad_rows: tuple[BadRow, ...]
    sha256: str
    """Of the file's bytes; empty where it cannot be read."""


class _BadLine(Exception):
    """The reason why a line is not a row."""


class _NumberText(str):
    """A JSON number as it is spelled in the file: 5.10 stays 5.10."""


def read_file(file: SourceFile) -> FileRows:
    """Read one file. Nothing in it and nothing about it raises: faults come back as bad rows."""
    try:
        raw = file.path.read_bytes()
    except OSError as error:
        return FileRows(
            file, (), (BadRow(file.name, WHOLE_FILE, f"cannot be read: {error.strerror or type(error).__name__}"),), ""
        )
    rows: list[Row] = []
    bad_rows: list[BadRow] = []
    seen = 0
    for line, text in _lines(raw):
        seen += 1
        try:
            row = _row(file, line, text)
        except _BadLine as reason:
            bad_rows.append(BadRow(file.name, line, str(reason)))
            continue
        if not file.wanted or row.task in file.wanted:
            rows.append(row)
    if not seen:
        bad_rows.append(BadRow(file.name, WHOLE_FILE, "the file is empty"))
    return FileRows(file, tuple(rows), tuple(bad_rows), hashlib.sha256(raw).hexdigest())


def _lines(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Line number from 1 and the bytes of each line that is not blank, without the mark some editors put before UTF-8."""
    for line, text in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if text.strip():
            yield line, text


def _row(file: SourceFile, line: int, text: bytes) -> Row:
    values = _object(text)
    prompt = _text(values, "context")
    if isinstance(prompt, _NumberText):
        raise _BadLine("context is not text")
    target = str(_text(values, "target"))
    task = file.task or (
        classify_merged(file.merged, prompt, target) if file.merged else _optional(values, "task") or CUSTOM_TASK
    )
    if task == "xbrl_term" and target.strip().lower() == "nan":
        raise _BadLine('target is the text "nan", a missing value')
    return Row(
        id=f"{file.id_prefix or f'{task}/{file.split}'}/{line - 1:06d}",
        task=task,
        prompt=prompt,
        target=target,
        issuer=_optional(values, "issuer") or issuer_of(prompt),
        path=file.folder,
    )


def _object(text: bytes) -> dict[str, Any]:
    try:
        values = json.loads(text.decode("utf-8"), parse_int=_NumberText, parse_float=_NumberText, parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise _BadLine(f"not UTF-8 at byte {error.start + 1} of the line") from None
    except json.JSONDecodeError as error:
        raise _BadLine(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise _BadLine("not JSON that can be read: nested too deeply") from None
    if not isinstance(values, dict):
        raise _BadLine("not a JSON object")
    return values


def _refuse(constant: str) -> NoReturn:
    raise _BadLine(f"not JSON: {constant} is not a number")


def _text(values: dict[str, Any], key: str) -> str:
    if key not in values:
        raise _BadLine(f"no {key}")
    value = values[key]
    if not isinstance(value, str):
        raise _BadLine(f"{key} is not text")
    if not value.strip():
        raise _BadLine(f"{key} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _BadLine(f"{key} holds half a character (a lone surrogate)") from None
    return value


def _optional(values: dict[str, Any], key: str) -> str:
    """A text that may be absent, null or blank, all of which mean the same."""
    value = values.get(key)
    if value is None:
        return ""
    return "" if isinstance(value, str) and not value.strip() else str(_text(values, key)).strip()
