"""Rows as they were answered: right, wrong and unparsed ones.

The choice is by a hash of the row's id, so it is the same for every system and in every report.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from fedfinlora.report.formats import decimal
from fedfinlora.run.evaluation import RowRecord

EXAMPLES = 3
"""Rows of each kind."""
SHORT = 160
"""Characters shown at once; the rest unfolds."""
LONGEST = 1200
"""Characters kept of one text; the whole of it is in the run folder."""


@dataclass(frozen=True)
class Kind:
    name: str
    mark: str
    rows: tuple[RowRecord, ...]

    @staticmethod
    def parts_of(record: RowRecord) -> list[tuple[str, str | Quote]]:
        """(name, content) of everything that is shown of a row."""
        parts: list[tuple[str, str | Quote]] = [("Target", _quote(record.target))]
        if record.output is not None:
            read = "no answer found" if record.parsed is None else _plain(record.parsed)
            parts += [("Output", _quote(record.output)), ("Read as", _quote(read))]
        if record.label_choice is not None:
            parts.append(("Most probable label", _quote(record.label_choice)))
        if record.finlora_correct is not None:
            ambiguous = ", ambiguous" if record.finlora_ambiguous else ""
            parts.append(("FinLoRA", ("right" if record.finlora_correct else "wrong") + ambiguous))
        if record.bertscore_f1 is not None:
            parts.append(("BERTScore F1", decimal(record.bertscore_f1)))
        if record.tags is not None:
            parts.append(("Tags right", f"{record.tags_correct} of {record.tags}"))
        return parts


def choose_examples(records: Iterable[RowRecord], most: int = EXAMPLES) -> list[Kind]:
    """Up to `most` rows of each kind; of BERTScore sets the closest and the farthest."""
    found: dict[str, list[tuple[str, int, RowRecord]]] = {
        "right": [],
        "wrong": [],
        "unparsed": [],
        "scored": [],
        "ranked": [],
    }
    for index, record in enumerate(records):
        found[_kind(record)].append((_order(record), index, record))

    def first(kind: str) -> tuple[RowRecord, ...]:
        return tuple(record for _, _, record in heapq.nsmallest(most, found[kind]))

    scored = sorted(found["scored"], key=lambda item: (-(item[2].bertscore_f1 or 0.0), item[0]))
    kinds = [
        Kind("Right", "✓", first("right")),
        Kind("Wrong", "✕", first("wrong")),
        Kind("Closest to the target", "✓", tuple(record for _, _, record in scored[:most])),
        Kind("Farthest from the target", "✕", tuple(record for _, _, record in scored[most:][-most:])),
        Kind("Unparsed", "?", first("unparsed")),
        Kind("Labels ranked", "≡", first("ranked")),
    ]
    return [kind for kind in kinds if kind.rows]


def _kind(record: RowRecord) -> str:
    if record.output is None and record.label_choice is not None:
        return "ranked"  # nothing was generated
    if record.parsed is None:
        return "unparsed"
    if record.correct is None:
        return "scored"
    return "right" if record.correct else "wrong"


def _order(record: RowRecord) -> str:
    return hashlib.sha256(record.id.encode(errors="replace")).hexdigest()


class Quote(NamedTuple):
    """A text of a row, its end folded away."""

    line: str
    """On one line; line breaks are shown as ⏎."""
    whole: str = ""
    """"" where `line` has all."""
    left: int = 0
    """Characters that are in the run folder only."""


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)


def _quote(words: str) -> Quote:
    whole = words.strip()
    cut = whole[:LONGEST]
    line = cut.replace("\r\n", "\n").replace("\n", " ⏎ ").replace("\t", " ")
    return Quote(line) if len(line) <= SHORT else Quote(f"{line[:SHORT]}…", cut, len(whole) - len(cut))
