"""Which prompts are read in one pass, and which passes are decoded together: known before anything is read, so that
memory for keys and values is taken once.

Sizes are in tokens: of the pass that is read, of each row's own buffer, and of long beginnings that are kept once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from eval.decoding.kv_cache import buffer_width, long_prefixes
from fedfinlora.model.packing import LEAST_SAVED_TOKENS, Tokens, common_prefix_tokens


class Cost(NamedTuple):
    """Most tokens whose keys and values are held."""

    reading: int
    """While a pass is read."""
    own: int
    """In the buffers of its rows, until they are decoded."""
    prefixes: int
    """In long beginnings that are kept once, until then."""


@dataclass(frozen=True)
class PoolPlan:
    """Rows that are decoded together."""

    passes: tuple[tuple[int, int], ...]
    """(first row, end) of each pass that reads them."""
    rows_by_width: Mapping[int, int]
    """Width of a buffer -> its rows."""
    own_tokens: int
    """Of all buffers."""
    other_tokens: int
    """Of the long beginnings and the largest pass, which are there at the same time."""


class Prompts:
    """Sorted prompts, and how they are cut."""

    def __init__(self, ordered: Sequence[Tokens], budget_tokens: int) -> None:
        self.ordered, self.budget = ordered, budget_tokens
        self.kept = long_prefixes(ordered)
        """Of each prompt, how many of its first tokens are kept once while decoding."""

    @cached_property
    def shared(self) -> list[int]:
        """Tokens that each prompt has in common with the one before."""
        return [0, *(common_prefix_tokens(one, other) for one, other in pairwise(self.ordered))]

    def width(self, row: int) -> int:
        """Of the row's buffer, without its new tokens."""
        return buffer_width(len(self.ordered[row]) - self.kept[row])

    def cost(self, first: int, last: int) -> Cost:
        """Of reading rows `first` to `last` (exclusive) in one pass and keeping them."""
        cached = self.shared[first]
        reading, own, prefixes = cached, 0, 0
        for row in range(first, last):
            reading += len(self.ordered[row]) - self.shared[row] + LEAST_SAVED_TOKENS
            own += self.width(row) + self.budget
            if row == first or self.kept[row] > self.shared[row] or self.kept[row] != self.kept[row - 1]:
                prefixes += self.kept[row]
        return Cost(reading, own, prefixes)

    def end_of_pass(self, first: int, batch_tokens: int, most_rows: int) -> int:
        """After its first prompt a pass reads at most `batch_tokens` further tokens."""
        used = 0
        for row in range(first + 1, min(len(self.ordered), first + most_rows)):
            used += len(self.ordered[row]) - self.shared[row]
            if used > batch_tokens:
                return row
        return min(len(self.ordered), first + most_rows)

    def pools(self, batch_tokens: int, most_rows: int, limit_tokens: float) -> list[PoolPlan]:
        """At most `most_rows` rows each, within `limit_tokens` where that has room for a row at all."""
        pools: list[PoolPlan] = []
        passes: list[tuple[int, int]] = []
        total = Cost(0, 0, 0)

        def close() -> None:
            nonlocal total
            widths = Counter(self.width(row) for first, last in passes for row in range(first, last))
            pools.append(PoolPlan(tuple(passes), widths, total.own, total.prefixes + total.reading))
            passes.clear()
            total = Cost(0, 0, 0)

        row = 0
        while row < len(self.ordered):
            end = self.end_of_pass(row, batch_tokens, most_rows)
            too_many = bool(passes) and end - passes[0][0] > most_rows
            if passes and (too_many or sum(_together(total, self.cost(row, end))) > limit_tokens):
                close()
            while end - row > 1 and sum(_together(total, self.cost(row, end))) > limit_tokens:
                end = row + (end - row + 1) // 2
            total = _together(total, self.cost(row, end))
            passes.append((row, end))
            row = end
        if passes:
            close()
        return pools


def _together(one: Cost, other: Cost) -> Cost:
    """Passes are read one after the other; what is kept of them adds up."""
    return Cost(max(one.reading, other.reading), one.own + other.own, one.prefixes + other.prefixes)
