"""One file becomes rows and bad rows: strict about what a row is, and never stopped by what is wrong with one.

A row is a JSON object, or a line of a table, with a text `context` (the whole prompt) and a `target` (text, or a number
that becomes its own text), or with a conversation or FLARE's keys (`data.sources.flare`) in their place, and may have
`task` and `issuer`. `dataset.columns` gives these other names. Everything else is ignored. Reasons never quote a row:
they may be shown outside the bank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.catalog import BENCHMARKS
from data.merged import classify_merged
from data.rows import BadRow, Row
from data.sources import flare
from data.sources.forms import FORMS, GZIP, form_of
from data.sources.issuers import issuer_of
from data.sources.json_records import json_document, json_lines
from data.sources.listing import special_file
from data.sources.messages import context_and_target, is_conversation
from data.sources.numbers import number_fault
from data.sources.parquet import parquet_rows
from data.sources.records import (
    GZIP_FAULTS,
    BadLine,
    HashedFile,
    NumberText,
    Record,
    Unreadable,
    damaged,
    missing_columns,
    opened,
)
from data.sources.tables import table
from data.sources.wrapped import advice
from fedfinlora.config.dataset import ColumnsConfig

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
    """The task of every row; empty = each row says its own."""
    merged: str = ""
    """Stem of a merged FinLoRA file, whose rows `classify_merged` separates."""
    wanted: frozenset[str] = frozenset()
    """Rows of other tasks are passed over; empty = none are."""
    folder: str = ""
    """Row.path of its rows."""
    id_prefix: str = ""
    """Row ids are this and the record's position; empty = task/split."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)


@dataclass(frozen=True)
class FileRows:
    """What one file held."""

    file: SourceFile
    rows: tuple[Row, ...]
    bad_rows: tuple[BadRow, ...]
    sha256: str
    """Of the file's bytes; empty where it cannot be read."""
    lines: tuple[int, ...] = ()
    """Where each of the rows begins, from 1, as BadRow.line."""


def read_file(file: SourceFile) -> FileRows:
    """Read one file. Nothing in it and nothing about it raises: faults come back as bad rows."""
    if special := special_file(file.path):
        return _nothing(file, f"cannot be read: {special}")
    try:
        with open(file.path, "rb", buffering=0) as source:
            raw = HashedFile(source)
            try:
                rows, bad_rows, lines = _rows(file, raw)
            except Unreadable as reason:
                rows, bad_rows, lines = [], [BadRow(file.name, reason.line, str(reason))], []
            return FileRows(file, tuple(rows), tuple(bad_rows), raw.hexdigest(), tuple(lines))
    except OSError as error:
        return _nothing(file, f"cannot be read: {error.strerror or type(error).__name__}")


def _nothing(file: SourceFile, reason: str) -> FileRows:
    return FileRows(file, (), (BadRow(file.name, WHOLE_FILE, reason),), "")


def _rows(file: SourceFile, raw: HashedFile) -> tuple[list[Row], list[BadRow], list[int]]:
    """Rows, bad rows and the rows' lines of a file that can be opened. Unreadable where none of it can be used."""
    rows: list[Row] = []
    bad_rows: list[BadRow] = []
    lines: list[int] = []
    seen, lacking, conversations = 0, "", flare.Conversations()
    try:
        for record in _records(file, raw):
            seen += 1
            try:
                for row in _rows_of(file, record, conversations):
                    if not file.wanted or row.task in file.wanted:
                        rows.append(row)
                        lines.append(record.line)
            except BadLine as reason:
                bad_rows.append(BadRow(file.name, record.line, str(reason)))
                if seen == 1 and not (isinstance(record.values, dict) and flare.is_flare(record.values)):
                    lacking = _lacking(file.columns, record.values)
    except GZIP_FAULTS as error:
        raise damaged(error) from error
    if not seen:
        raise Unreadable("the file is empty")
    if lacking and len(bad_rows) == seen:  # not one row has the columns: say which there are
        bad_rows[0] = BadRow(file.name, bad_rows[0].line, lacking)
    return rows, bad_rows, lines


def _records(file: SourceFile, raw: HashedFile) -> Iterator[Record]:
    """The file's records, by the reader of its form; a file of another ending is taken for JSON Lines."""
    columns = file.columns
    form = form_of(file.path.name)[1] or FORMS[0]
    named = (columns.context, columns.target, columns.task, columns.issuer, columns.messages)
    wanted = frozenset(named) | flare.WANTED
    needed = (frozenset((columns.context, columns.target)), frozenset((columns.messages,)), flare.COLUMNS)
    stream = opened(raw, file.path.name.lower().endswith(GZIP), is_parquet=form.reader == "parquet")
    if form.reader == "lines":
        return json_lines(stream)
    if form.reader == "json":
        return json_document(stream.read())
    if not stream.peek(1):
        return iter(())
    return (
        table(stream, form.separators, wanted, needed)
        if form.reader == "table"
        else parquet_rows(file.path, wanted, needed)
    )


def _rows_of(file: SourceFile, record: Record, conversations: flare.Conversations) -> Iterator[Row]:
    """The rows of a record: one, or one for each turn of a raw conversation."""
    values, columns = record.values, file.columns
    if isinstance(values, BadLine):
        raise values
    if is_conversation(values):
        values = {columns.messages: values}
    if not isinstance(values, dict):
        raise BadLine("not a JSON object")
    if flare.is_flare(values) and not {columns.context, columns.target, columns.messages} & set(values):
        for turn in conversations.turns(values):
            made = {columns.context: turn.prompt, columns.target: turn.answer}
            named = {key: values[key] for key in (columns.task, columns.issuer) if key in values}
            yield _row(file, {columns.issuer: turn.issuer, **made, **named}, record.position, turn.turn)
        return
    if _has_messages_only(values, columns):
        context, target = context_and_target(values[columns.messages])
        values = {**values, columns.context: context, columns.target: target}
    yield _row(file, values, record.position)


def _row(file: SourceFile, values: dict[str, Any], position: int, turn: int = 0) -> Row:
    columns = file.columns
    prompt = _text(values, columns.context)
    if isinstance(prompt, NumberText):
        raise BadLine(f"{columns.context} is not text")
    target = str(_text(values, columns.target))
    task = file.task or (
        classify_merged(file.merged, prompt, target) if file.merged else _optional(values, columns.task) or CUSTOM_TASK
    )
    if task == "xbrl_term" and target.strip().lower() == "nan":
        raise BadLine('target is the text "nan", a missing value')
    prompt = flare.reworded(task, prompt)
    parser = BENCHMARKS[task].parser if task in BENCHMARKS else ""
    if fault := number_fault(parser, target):
        raise BadLine(fault)
    return Row(
        id=f"{file.id_prefix or f'{task}/{file.split}'}/{position:06d}{f'-{turn}' if turn else ''}",
        task=task,
        prompt=prompt,
        target=target,
        issuer=_optional(values, columns.issuer) or issuer_of(prompt),
        path=file.folder,
        reference=flare.reference_of(prompt, target) if parser == "entities" else "",
    )


def _has_messages_only(values: dict[str, Any], columns: ColumnsConfig) -> bool:
    """Whether a record's context and target are to be made of its messages."""
    if columns.messages not in values:
        return False
    filled = [name for name in (columns.context, columns.target) if values.get(name)]
    if len(filled) == 1 and values[columns.messages]:
        raise BadLine(f"it has {columns.messages} and {filled[0]}: which of them is meant is a guess")
    if filled:
        return False
    return bool(values[columns.messages]) or columns.context not in values


def _lacking(columns: ColumnsConfig, values: Any) -> str:
    """What to say if no row of the file has the columns: where they are, or which there are; "" where this one has
    them.
    """
    needed = frozenset((columns.context, columns.target))
    if isinstance(values, dict) and columns.messages in values:
        return ""
    if wrapped := advice(values, columns):
        return wrapped
    if not isinstance(values, dict) or needed <= set(values):
        return ""
    return missing_columns(list(values), needed, is_table=False)


INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
"""Characters without width, which editors and web pages leave behind: a text of them alone is empty."""


def _text(values: dict[str, Any], key: str) -> str:
    if key not in values:
        raise BadLine(f"no {key}")
    value = values[key]
    if not isinstance(value, str):
        raise BadLine(f"{key} is not text")
    if not value.strip().strip(INVISIBLE).strip():
        raise BadLine(f"{key} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadLine(f"{key} holds half a character (a lone surrogate)") from None
    return value


def _optional(values: dict[str, Any], key: str) -> str:
    """A text that may be absent, null or blank, all of which mean the same."""
    value = values.get(key)
    if value is None:
        return ""
    return "" if isinstance(value, str) and not value.strip() else str(_text(values, key)).strip()
