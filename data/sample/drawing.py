"""How rows are drawn: one generator a row, seeded by the row's own name, so that no row depends on another."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")

MAX_ATTEMPTS = 200
"""Draws of one row until its prompt is new; more would mean that a template has too few variants."""


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One prompt and its right answer, as one line of a file."""

    context: str
    target: str
    issuer: str = ""
    """The invented filer; empty where a row has none."""

    def line(self) -> str:
        """The row as one line of JSON, without the line break."""
        fields = {"context": self.context, "target": self.target}
        if self.issuer:
            fields["issuer"] = self.issuer
        return json.dumps(fields, ensure_ascii=False, allow_nan=False)


Draw = Callable[[random.Random, str, int], SampleRow]
"""(generator, split, index of the row in its file) -> row. The index is what classes are balanced by."""


def pool(items: Sequence[Item], split: str) -> list[Item]:
    """The items that `split` may use: every third belongs to test, so that test names are never seen in training."""
    return [item for position, item in enumerate(items) if (position % 3 == 2) == (split == "test")]


def collect(key: str, split: str, count: int, draw: Draw, taken: set[str]) -> list[SampleRow]:
    """Draw `count` rows whose prompts are not in `taken`, and add them to it."""
    rows = []
    for index in range(count):
        for attempt in range(MAX_ATTEMPTS):
            row = draw(random.Random(f"fedfinlora sample/{key}/{split}/{index}/{attempt}"), split, index)
            if row.context not in taken:
                break
        else:
            raise RuntimeError(
                f"{key}/{split}: no new prompt for row {index} in {MAX_ATTEMPTS} draws. Add templates or names."
            )
        taken.add(row.context)
        rows.append(row)
    return rows
