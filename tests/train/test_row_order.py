"""Which rows meet in a step: every row once an epoch, groups together, and without groups the plain permutation to the
byte.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from conftest import EOS, text_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfinlora.model.packing import Example
from fedfinlora.seeds import generator
from fedfinlora.train.row_order import LONG_BEGINNING_TOKENS, Groups, groups_of, rows_of_step

LONG = LONG_BEGINNING_TOKENS


def tokens(count: int, seed: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(2, 258, count).tolist())


def filing_rows(sizes: list[int], beginning: int = LONG + 100, own: int = 20) -> list[Example]:
    """Rows of filings of these sizes, dealt out in turn, so that no two rows of one filing are neighbours as given."""
    rows = [
        (place, Example(tokens(beginning, filing) + tokens(own, 1000 * filing + place + 7), (5, EOS)))
        for filing, size in enumerate(sizes)
        for place in range(size)
    ]
    rows.sort(key=lambda row: row[0])
    return [Example(row.prompt_ids, row.answer_ids, index) for index, (_, row) in enumerate(rows)]


@st.composite
def grouped(draw: st.DrawFn) -> tuple[int, Groups]:
    """(rows, groups) with rows of no group among them, in no particular order."""
    sizes = draw(st.lists(st.integers(2, 25), max_size=5))
    singles = draw(st.integers(0 if sizes else 1, 20))
    rows = sum(sizes) + singles
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(rows).tolist()
    ends = np.cumsum([0, *sizes]).tolist()
    return rows, tuple(tuple(order[start:end]) for start, end in itertools.pairwise(ends))


# --- groups ---------------------------------------------------------------------------------------


def test_rows_of_a_filing_are_a_group_wherever_they_stand() -> None:
    rows = filing_rows([3, 1, 4])
    groups = groups_of(rows)
    assert sorted(map(len, groups)) == [3, 4], "a row without a neighbour is in no group"
    for group in groups:
        assert len({rows[place].prompt_ids[:LONG] for place in group}) == 1


def test_rows_with_a_short_beginning_in_common_are_in_no_group() -> None:
    assert groups_of(text_examples(20)) == ()
    assert groups_of(filing_rows([4], beginning=LONG - 30, own=100)) == ()
    assert len(groups_of(filing_rows([4], beginning=LONG))) == 1


def test_a_beginning_that_is_the_smaller_part_of_the_row_makes_no_group() -> None:
    assert groups_of(filing_rows([4], beginning=600, own=700)) == ()
    assert len(groups_of(filing_rows([4], beginning=600, own=500))) == 1


def test_groups_depend_on_tokens_and_places_not_on_the_callers_numbers() -> None:
    rows = filing_rows([3, 2])
    numbered = [Example(row.prompt_ids, row.answer_ids, 100 - index) for index, row in enumerate(rows)]
    assert groups_of(rows) == groups_of(numbered)
    assert groups_of([]) == ()


# --- the stream -----------------------------------------------------------------------------------


@given(grouped(), st.floats(1, 40), st.integers(1, 4), st.integers(0, 3))
def test_each_row_comes_once_in_each_epoch(
    drawn: tuple[int, Groups], rows_per_step: float, epochs: int, seed: int
) -> None:
    rows, groups = drawn
    steps = math.ceil(epochs * rows / rows_per_step) + 1
    taken = [rows_of_step(step, rows, rows_per_step, seed, "bank-0", groups) for step in range(steps)]
    if rows <= rows_per_step:
        assert taken == [list(range(rows))] * steps
        return
    plain = [rows_of_step(step, rows, rows_per_step, seed, "bank-0") for step in range(steps)]
    assert [len(step) for step in taken] == [len(step) for step in plain], "groups change which rows, not how many"
    stream = [row for step in taken for row in step]
    for epoch in range(epochs):
        assert sorted(stream[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@given(st.integers(2, 60), st.floats(0.3, 20), st.integers(0, 20), st.integers(0, 3))
def test_without_groups_the_stream_is_the_plain_permutation(
    rows: int, rows_per_step: float, step: int, seed: int
) -> None:
    """As it was before there were groups, written out once more, so that runs of old stay what they are."""
    if rows <= rows_per_step:
        return
    position = math.floor(step * rows_per_step + 1e-9)
    count = max(1, math.floor((step + 1) * rows_per_step + 1e-9) - position)
    expected = []
    for place in range(position, position + count):
        epoch, offset = divmod(place, rows)
        expected.append(int(generator(seed, "row order", "bank-0", epoch).permutation(rows)[offset]))
    assert rows_of_step(step, rows, rows_per_step, seed, "bank-0") == expected


@settings(max_examples=50)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(2, 8), st.integers(0, 9))
def test_groups_that_fill_steps_are_read_once(filled: list[int], size: int, seed: int) -> None:
    """Each step then holds rows of a single group, in every epoch."""
    sizes = [steps * size for steps in filled]
    rows = sum(sizes)
    if rows <= size:
        return
    ends = np.cumsum([0, *sizes]).tolist()
    groups = tuple(tuple(range(start, end)) for start, end in itertools.pairwise(ends))
    group_of = {row: number for number, group in enumerate(groups) for row in group}
    for step in range(3 * sum(filled)):
        assert len({group_of[row] for row in rows_of_step(step, rows, float(size), seed, "bank-0", groups)}) == 1


@given(grouped(), st.integers(2, 20), st.integers(0, 3))
def test_a_whole_bundle_keeps_a_step_to_itself_in_every_epoch(drawn: tuple[int, Groups], size: int, seed: int) -> None:
    """Though an epoch may begin in the middle of a step: at most one bundle an epoch has to share its steps with
    others.
    """
    rows, groups = drawn
    if rows <= size:
        return
    group_of = {row: number for number, group in enumerate(groups) for row in group}
    bundles = sum(len(group) // size for group in groups)
    epochs = 3
    alone = 0
    for step in range(epochs * rows // size):
        members = {group_of.get(row) for row in rows_of_step(step, rows, float(size), seed, "bank-0", groups)}
        alone += len(members) == 1 and None not in members
    assert alone >= epochs * (bundles - 1)


def test_the_order_differs_by_epoch_seed_and_bank_and_is_the_same_again() -> None:
    groups = (tuple(range(20)), tuple(range(20, 44)))

    def epoch(number: int = 0, seed: int = 0, bank: str = "bank-0") -> tuple[int, ...]:
        steps = range(number * 8, number * 8 + 8)
        return tuple(row for step in steps for row in rows_of_step(step, 64, 8.0, seed, bank, groups))

    assert epoch() == epoch()
    assert len({epoch(), epoch(number=1), epoch(seed=1), epoch(bank="bank-1")}) == 4


@pytest.mark.parametrize("size", [16, 35])
def test_filings_of_a_typical_bank_are_read_about_once_an_epoch(size: int) -> None:
    """Six filings of 35 and 45 questions: about as many readings as the steps that they fill, not one for every row."""
    rows = filing_rows([35, 45, 30, 25, 45, 35])
    groups = groups_of(rows)
    group_of = {row: number for number, group in enumerate(groups) for row in group}
    steps = len(rows) // size
    readings = sum(
        len({group_of[row] for row in rows_of_step(step, len(rows), size, 0, "bank-0", groups)})
        for step in range(steps)
    )
    plain = sum(
        len({group_of[row] for row in rows_of_step(step, len(rows), size, 0, "bank-0")}) for step in range(steps)
    )
    assert readings <= steps + 2 * len(groups)
    assert plain > 1.8 * readings
