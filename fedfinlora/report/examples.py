"""Rows as they were answered: right, wrong and unparsed ones, the same rows for every system as far as they fit.

The choice is by a hash of the row's id: it says nothing about the answers, and is the same in every report.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable
from dataclasses import dataclass

from fedfinlora.report.markup import decimal, text
from fedfinlora.run.evaluation import RowRecord

EXAMPLES = 3
"""Rows of each kind."""
SHORT = 160
"""Characters shown at once; the rest unfolds."""
LONGEST = 1200
"""Characters kept of one text; the whole of it is in the run folder."""
NOT_STORED = "Prompts are not stored in run folders, only their hashes: find a row’s prompt by its id in the data that the run was scored on."


@dataclass(frozen=True)
class Kind:
    """One list of examples."""

    name: str
    mark: str
    rows: tuple[RowRecord, ...]


def choose_examples(records: Iterable[RowRecord], most: int = EXAMPLES) -> list[Kind]:
    """Up to `most` rows of each kind. BERTScore sets have no right and wrong: there the closest and the farthest stand."""
    found: dict[str, list[tuple[str, int, RowRecord]]] = {"right": [], "wrong": [], "unparsed": [], "scored": [], "ranked": []}
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


def examples_block(kinds: Iterable[Kind]) -> str:
    """The examples of one system on one benchmark; "" without any."""
    return "".join(
        f'<h5><span aria-hidden="true">{kind.mark}</span> {text(kind.name)}</h5>'
        f'<ol class="examples">{"".join(map(_example, kind.rows))}</ol>'
        for kind in kinds
    )


def _example(record: RowRecord) -> str:
    read = "no answer found" if record.parsed is None else _plain(record.parsed)
    parts = [("Target", _shortened(record.target))]
    if record.output is not None:
        parts += [("Output", _shortened(record.output)), ("Read as", _shortened(read))]
    if record.label_choice is not None:
        parts.append(("Most probable label", _shortened(record.label_choice)))
    verdict = _finlora_verdict(record)
    if verdict:
        parts.append(("FinLoRA", text(verdict)))
    if record.bertscore_f1 is not None:
        parts.append(("BERTScore F1", decimal(record.bertscore_f1)))
    if record.tags is not None:
        parts.append(("Tags right", f"{record.tags_correct} of {record.tags}"))
    items = "".join(f"<dt>{name}</dt><dd>{content}</dd>" for name, content in parts)
    return f"<li><code>{text(record.id[:120])}</code><dl>{items}</dl></li>"


def _finlora_verdict(record: RowRecord) -> str:
    if record.finlora_correct is None:
        return ""
    return ("right" if record.finlora_correct else "wrong") + (", ambiguous" if record.finlora_ambiguous else "")


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)


def _shortened(words: str) -> str:
    """The text on one line, its end folded away where it is long; line breaks are shown as ⏎."""
    whole = words.strip()
    if not whole:
        return "<i>empty</i>"
    cut = whole[:LONGEST]
    line = cut.replace("\r\n", "\n").replace("\n", " ⏎ ").replace("\t", " ")
    if len(line) <= SHORT:
        return f"<q>{text(line)}</q>"
    ending = "" if len(whole) <= LONGEST else f" <i>… {len(whole) - LONGEST:,} more characters in the run folder</i>"
    return f"<details><summary><q>{text(line[:SHORT])}…</q></summary><pre>{text(cut)}</pre>{ending}</details>"
