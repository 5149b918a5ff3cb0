"""The forms in which rows may come: which file endings there are, and what to do with endings that are not read.

`FORMS` is their only list: readers are chosen by it, errors list it, docs/data.md shows it.
"""

from __future__ import annotations

from dataclasses import dataclass

GZIP = ".gz"


@dataclass(frozen=True)
class Form:
    """One way of writing rows into a file."""

    ending: str
    """In lower case, with its dot; a file's own ending may be in any case."""
    reader: str
    """lines, json, table or parquet: the function of `data.sources.files` that reads it."""
    meaning: str
    """What is in such a file, for people."""
    gzip: bool = True
    """Whether the same form may be gzip-compressed, with .gz after its ending."""
    separators: str = ""
    """Of a table of text: tried in this order."""


FORMS = (
    Form(".jsonl", "lines", "JSON Lines: one object a line"),
    Form(".ndjson", "lines", "the same under its other name"),
    Form(".json", "json", "an array of objects, or one object a line"),
    Form(
        ".csv",
        "table",
        "a table whose first line names the columns; separated by comma, semicolon or tab",
        separators=",;\t",
    ),
    Form(".tsv", "table", "the same, separated by tabs", separators="\t"),
    Form(
        ".parquet",
        "parquet",
        "a Parquet table; columns of text, whole numbers, decimals or lists of messages",
        gzip=False,
    ),
)

ADVICE = {
    ".xlsx": "an Excel workbook: save it as CSV UTF-8",
    ".xls": "an Excel workbook: save it as CSV UTF-8",
    ".ods": "a spreadsheet: save it as CSV UTF-8",
    ".arrow": "an Arrow file: write it with to_parquet or to_json",
    ".feather": "an Arrow file: write it as Parquet",
    ".pkl": "a pickle is never opened: it may run code. Write it as JSON Lines",
    ".pickle": "a pickle is never opened: it may run code. Write it as JSON Lines",
    ".zip": "an archive: unpack it",
    ".tar": "an archive: unpack it",
    ".tgz": "an archive: unpack it",
    ".7z": "an archive: unpack it",
    ".gz": "compressed, but of no known form: name it FILE.jsonl.gz, for example",
    ".bz2": "compressed with bzip2: unpack it, or compress it with gzip",
    ".xz": "compressed with xz: unpack it, or compress it with gzip",
    ".zst": "compressed with zstd: unpack it, or compress it with gzip",
    ".txt": "plain text: rows are JSON Lines, CSV or Parquet",
}
"""Ending that looks like rows but is not read -> what to do about it."""


def form_of(name: str) -> tuple[str, Form | None]:
    """(the file's name without its ending, its form), or (the name, None). Letter case of the ending does not matter.

    >>> form_of("fpb_train.JSONL.gz")[0], form_of("letters.v2.csv")[0], form_of("notes.txt")
    ('fpb_train', 'letters.v2', ('notes.txt', None))
    """
    plain = name.lower().removesuffix(GZIP)
    for form in FORMS:
        if plain.endswith(form.ending) and (form.gzip or plain == name.lower()):
            return name[: len(plain) - len(form.ending)], form
    return name, None


def endings() -> str:
    """The endings that are read, for messages."""
    return ", ".join(form.ending for form in FORMS)


def why_not_read(name: str) -> tuple[str, bool]:
    """(the reason why a file of this name is not read, whether it looks like rows all the same)."""
    lower = name.lower()
    for ending, advice in ADVICE.items():
        if lower.endswith(ending):
            return advice, True
    return f"its ending is none of {endings()}", False
