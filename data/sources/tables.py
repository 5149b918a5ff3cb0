"""Records of tables of text, CSV and TSV: the standard library's csv, strict, with the separator found by the names in
the first line.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

from data.sources.records import NO_UTF8, BadLine, Record, Unreadable, missing_columns

LARGEST_CELL = 1 << 30
"""Letters of one cell: csv's own limit of 131,072 is less than a filing."""
_ESCAPED = re.compile("[\udc80-\udcff]")
"""Bytes that are no UTF-8, as `surrogateescape` decodes them."""


def table(
    stream: io.BufferedReader, separators: str, wanted: frozenset[str], needed: tuple[frozenset[str], ...]
) -> Iterator[Record]:
    """The lines below the first one, each as column -> cell, always as the text in the file: "007", "1.0" and "NA" stay
    what they are.

    The separator is that of `separators` with which the first line has the columns that are needed: one of the sets
    `needed`.
    """
    csv.field_size_limit(LARGEST_CELL)
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
    first_line = text.readline()
    skipped = 0
    if hint := re.fullmatch(r'"?sep=(.)"?\r?\n?', first_line, re.IGNORECASE):
        separators, first_line, skipped = hint[1], text.readline(), 1
    while first_line and not first_line.strip():
        first_line, skipped = text.readline(), skipped + 1
    if not first_line:
        return
    names, separator = _columns(first_line, separators, wanted, needed, skipped + 1)
    lines = csv.reader(text, delimiter=separator, strict=True)
    places = [(place, name) for place, name in enumerate(names) if name in wanted]
    position, begins = 0, skipped + 2
    while True:
        try:
            cells = next(lines)
        except StopIteration:
            break
        except csv.Error as error:
            reason = "a quote that never closes" if "end of data" in str(error) else "text after a closing quote"
            if "field larger" in str(error):
                reason = "a cell that is too large"
            raise Unreadable(f"{reason}; no row of the file is read", begins) from None
        line, begins = begins, lines.line_num + skipped + 2
        if any(cell.strip() for cell in cells):
            yield Record(position, line, _cells(cells, names, places))
            position += 1
    if not position:
        raise Unreadable("no rows below its first line")


def _cells(cells: list[str], names: list[str], places: list[tuple[int, str]]) -> dict[str, str] | BadLine:
    if len(cells) != len(names) and (len(cells) < len(names) or any(cells[len(names) :])):
        return BadLine(f"{len(cells)} cells, but the first line names {len(names)} columns")
    found = {name: cells[place] for place, name in places}
    if any(not cell.isascii() and _ESCAPED.search(cell) for cell in found.values()):
        return BadLine(NO_UTF8)
    return found


def _columns(
    first_line: str, separators: str, wanted: frozenset[str], needed: tuple[frozenset[str], ...], line: int
) -> tuple[list[str], str]:
    """(the names of the columns, the separator), or Unreadable."""
    tried: list[tuple[list[str], str]] = []
    for separator in separators:
        try:
            cells = next(csv.reader([first_line], delimiter=separator, strict=True))
        except csv.Error:
            continue
        names = [name.strip() for name in cells]
        if any(have <= set(names) for have in needed):
            twice = [name for name in names if names.count(name) > 1 and name in wanted]
            if twice:
                raise Unreadable(f"two columns are called {twice[0]}", line)
            return names, separator
        tried.append((names, separator))
    if _ESCAPED.search(first_line):
        raise Unreadable(NO_UTF8, line)
    raise Unreadable(missing_columns(max((names for names, _ in tried), key=len, default=[]), needed[0]), line)
