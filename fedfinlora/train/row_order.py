"""Which rows meet in an optimiser step: seeded permutations that keep rows with a long common beginning together.

A filing is read once for all its questions only if they come in the same step
(docs/adr/0011-rows-with-a-long-common-beginning-travel-together.md). What a step takes depends on the run's seed, the
bank's name, its rows and the step's number alone, so an interrupted run resumes with the same rows. Where no row has a
long beginning in common with another, the stream is a plain permutation of each epoch.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

from fedfinlora.model.packing import Example, common_prefix_tokens, in_order
from fedfinlora.seeds import generator

LONG_BEGINNING_TOKENS = 512
"""A shorter common beginning, such as the instructions of the short sets (50 to 200 tokens), costs less to read again
than what a step loses when its rows resemble each other.
"""
LONG_BEGINNING_SHARE = 0.5
"""Nor does one of no more than this share of a row count."""

Groups = tuple[tuple[int, ...], ...]
"""Rows with a long common beginning, by their places among the bank's rows. A row is in one group at most; the others
travel alone.
"""


def groups_of(examples: Sequence[Example]) -> Groups:
    """The rows that have a long beginning in common with a neighbour in sorted order, as do questions on a filing."""
    if all(len(example.read_ids) < LONG_BEGINNING_TOKENS for example in examples):
        return ()
    return _groups_of(tuple(examples))


@lru_cache(maxsize=8)
def _groups_of(examples: tuple[Example, ...]) -> Groups:
    """Kept in memory: a bank asks once a round, and sorting long rows takes a good part of a second."""
    numbered = [Example(row.prompt_ids, row.answer_ids, place) for place, row in enumerate(examples)]
    groups: list[list[int]] = []
    before: tuple[int, ...] = ()
    for row in in_order([row for row in numbered if len(row.read_ids) >= LONG_BEGINNING_TOKENS]):
        read = row.read_ids
        common = common_prefix_tokens(before, read)
        if common >= LONG_BEGINNING_TOKENS and common > LONG_BEGINNING_SHARE * max(len(before), len(read)):
            groups[-1].append(row.index)
        else:
            groups.append([row.index])
        before = read
    return tuple(tuple(group) for group in groups if len(group) > 1)


def rows_of_step(step: int, rows: int, rows_per_step: float, seed: int, bank: str, groups: Groups = ()) -> list[int]:
    """Indices of the rows of one step: consecutive pieces of an endless stream in which each epoch has every row once.

    A step has at least one row. A bank with no more rows than a step wants uses all of them in each step, once.
    """
    if rows <= rows_per_step:
        return list(range(rows))
    position = _first_row(step, rows_per_step)
    count = max(1, _first_row(step + 1, rows_per_step) - position)
    indices: list[int] = []
    while len(indices) < count:
        epoch, offset = divmod(position, rows)
        order = _order_of_epoch(epoch, rows, rows_per_step, seed, bank, groups)
        piece = order[offset : offset + count - len(indices)]
        indices += piece
        position += len(piece)
    return indices


def _first_row(step: int, rows_per_step: float) -> int:
    """Where in the stream a step begins."""
    return math.floor(step * rows_per_step + 1e-9)


@lru_cache(maxsize=8)
def _order_of_epoch(
    epoch: int, rows: int, rows_per_step: float, seed: int, bank: str, groups: Groups
) -> tuple[int, ...]:
    """The rows of one epoch in the order of training.

    Each group is shuffled and cut into bundles that each fill a random step. The other rows fill the rest in the order
    of the permutation, what is left of a group in one piece.
    """
    draw = generator(seed, "row order", bank, epoch)
    permutation: list[int] = draw.permutation(rows).tolist()
    size = math.floor(rows_per_step)
    if not groups or size < 2:
        return tuple(permutation)
    bundles, others = _bundles(permutation, groups, size)
    steps = _steps_of_epoch(epoch, rows, rows_per_step)
    whole = [number for number, (start, end) in enumerate(steps) if end - start >= size]
    drawn = draw.permutation(whole).tolist()
    for bundle in bundles[
        len(drawn) :
    ]:  # more bundles than whole steps: the first and the last step are shared with other epochs
        others += bundle
    bundle_of_step = dict(zip(drawn, bundles, strict=False))
    left = iter(others)
    order: list[int] = []
    for number, (_, end) in enumerate(steps):
        order += bundle_of_step.get(number, [])
        order += itertools.islice(left, end - len(order))
    return tuple(order)


def _bundles(permutation: Sequence[int], groups: Groups, size: int) -> tuple[list[list[int]], list[int]]:
    """(bundles of `size` rows of one group, all other rows), in the order of the permutation; leftovers of a group stay
    together.
    """
    group_of = {row: number for number, group in enumerate(groups) for row in group}
    members: dict[int, list[int]] = defaultdict(list)
    for row in permutation:
        if row in group_of:
            members[group_of[row]].append(row)
    bundles: list[list[int]] = []
    others: list[int] = []
    for row in permutation:
        if row not in group_of:
            others.append(row)
            continue
        group = members[group_of[row]]
        if row == group[0]:
            left = len(group) % size
            bundles += [group[start : start + size] for start in range(0, len(group) - left, size)]
            others += group[len(group) - left :]
    return bundles, others


def _steps_of_epoch(epoch: int, rows: int, rows_per_step: float) -> list[tuple[int, int]]:
    """(first row, end) of the steps of an epoch, counted from its beginning; the first and the last may be parts of
    steps.
    """
    start = epoch * rows
    first = math.floor(start / rows_per_step)
    last = math.ceil((start + rows) / rows_per_step)
    begins = (_first_row(step, rows_per_step) - start for step in range(first, last + 1))
    cuts = [0, *sorted({begin for begin in begins if 0 < begin < rows}), rows]
    return list(itertools.pairwise(cuts))
