"""Which rows a deployed bank holds out to measure the adapters that it receives.

The bank chooses them by a secret key, the same in every round and run: a server that could move the choice by one row
would learn that row's loss from the difference of two figures. A request decides only whether they are scored
(train.holdout_max_rows above 0) and of which tasks. A task is scored whole or not at all.

| a task's distinct prompts | held out |
|---|---|
| fewer than TIMES times the number | none |
| more | as many as min_rows of bank.yaml, and no fewer than HELD_OUT |
| one of the drawn is longer than the context window | none of this task is scored |
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from data.rows import Row
from fedfinlora.seeds import derive_seed

HELD_OUT = 16
"""Rows of each task where min_rows is smaller: the mean loss of one row would be that row's."""
TIMES = 10
"""A task must have so many times the rows that are held out, or training would miss too many of them."""
RowName = tuple[str, str]
"""(Task, prompt): copies of a row are one row."""


def drawn(rows: Sequence[Row], key: int, min_rows: int) -> frozenset[RowName]:
    """The held-out rows of a bank's whole data set: of each task those with the lowest keyed hashes. `key` is secret.

    >>> rows = [Row(f"fpb/train/{number}", "fpb", f"prompt {number}", "up") for number in range(200)]
    >>> len(drawn(rows, 1, 20)), drawn(rows, 1, 20) == drawn(rows[::-1], 1, 20), len(drawn(rows[1:], 1, 20))
    (20, True, 0)
    """
    number = max(min_rows, HELD_OUT)
    prompts: dict[str, set[str]] = {}
    for row in rows:
        prompts.setdefault(row.task, set()).add(row.prompt)
    return frozenset(
        (task, prompt)
        for task, own in prompts.items()
        if len(own) >= TIMES * number
        for prompt in sorted(own, key=lambda prompt: derive_seed(key, "held out", task, prompt))[:number]
    )


def once(rows: Sequence[Row], names: Collection[RowName], tasks: Collection[str]) -> list[Row]:
    """The first row of each name, of these tasks alone where there are some, in the order of `rows`."""
    found: dict[RowName, Row] = {}
    for row in rows:
        if (row.task, row.prompt) in names and (not tasks or row.task in tasks):
            found.setdefault((row.task, row.prompt), row)
    return list(found.values())


def whole_tasks(rows: Sequence[Row], usable: Sequence[Row]) -> set[str]:
    """The tasks of `rows` all of whose rows are among `usable`."""
    left = {(row.task, row.prompt) for row in rows} - {(row.task, row.prompt) for row in usable}
    return {row.task for row in rows} - {task for task, _ in left}
