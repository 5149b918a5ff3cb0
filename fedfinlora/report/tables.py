"""A plain table as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of text under headings."""

    label: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[str] = ()
    """The columns after the first that hold words; all others hold numbers."""
    reason: str = ""
    """The column of words that may be long."""

    @property
    def all_words(self) -> Sequence[str]:
        """The columns that do not hold numbers."""
        return [self.head[0], *self.words, self.reason]

    def css_class(self, column: int) -> str:
        """How a column is set: reason, number, or "" for words."""
        name = self.head[column]
        return "reason" if name == self.reason else "" if name in self.all_words else "number"
