"""Public validation rows: train rows that are set aside before any bank gets its part, for choosing a round without the
test rows.

The rows are the run's, not a bank's: the server may read them, and no bank trains on them
(docs/adr/0010-public-validation.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from data.partition import original_id
from data.rows import Row
from fedfinlora.errors import UserError
from fedfinlora.seeds import generator


def set_aside(rows: Sequence[Row], benchmarks: Sequence[str], count: int, seed: int) -> tuple[list[Row], list[Row]]:
    """(the rest, validation rows): `count` seeded rows of each of `benchmarks` that has train rows, both in the order
    of `rows`.

    | where | what happens |
    |---|---|
    | a task would lose more than half of its rows | it gives fewer validation rows |
    | a row has copies (`equalize_tasks`, ids ending in #2, #3, …) | they leave with it; one of them is a validation row |
    | rows have an issuer | whole issuers leave, from every task, until there are enough rows: no validation filing is trained on |
    | whole issuers would cost some task more than half of its rows | single rows make up what is missing |
    | `count` is 0 | nothing is set aside |

    A leaving issuer's rows beyond `count` are not used. Raises UserError if no benchmark can give a row.
    """
    if count <= 0:
        return list(rows), []
    room = {task: total // 2 for task, total in Counter(row.task for row in rows).items()}
    filers = _leaving_filers(rows, benchmarks, count, seed, room)
    chosen: set[str] = set()
    for task in benchmarks:
        chosen.update(_chosen_rows(rows, task, filers, count, seed, room))
    if not chosen:
        raise UserError(
            f"evaluation.validation_rows={count}: no evaluated benchmark "
            f"({', '.join(benchmarks) or 'none is asked for'}) has train rows to spare. Evaluate one that is trained "
            "on (evaluation.benchmarks=, dataset.tasks=), or set validation_rows to 0."
        )
    rest = [row for row in rows if original_id(row) not in chosen and _filer(row) not in filers]
    return rest, [row for row in rows if row.id in chosen]


def _leaving_filers(
    rows: Sequence[Row], benchmarks: Sequence[str], count: int, seed: int, room: dict[str, int]
) -> frozenset[str]:
    """Issuers in a seeded order, each taken if a benchmark still needs its rows and every task can spare them. Lowers
    `room`.
    """
    rows_of: dict[str, list[Row]] = {}
    for row in rows:
        if row.issuer:
            rows_of.setdefault(_filer(row), []).append(row)
    filers = list(rows_of)
    needed = dict.fromkeys(benchmarks, count)
    taken: set[str] = set()
    for index in generator(seed, "validation filers").permutation(len(filers)).tolist():
        cost = Counter(row.task for row in rows_of[filers[index]])
        wanted = any(needed.get(task, 0) > 0 for task in cost)
        if not wanted or any(number > room[task] for task, number in cost.items()):
            continue
        taken.add(filers[index])
        for task, number in cost.items():
            room[task] -= number
        for task, number in Counter(row.task for row in _originals(rows_of[filers[index]])).items():
            if task in needed:
                needed[task] -= number
    return frozenset(taken)


def _chosen_rows(
    rows: Sequence[Row], task: str, filers: frozenset[str], count: int, seed: int, room: dict[str, int]
) -> list[str]:
    """Ids of one task's validation rows: those of leaving issuers first, then single rows while the task can spare
    them.
    """
    own = [row for row in rows if row.task == task]
    copies = Counter(original_id(row) for row in own)
    originals = _originals(own)
    order = [originals[index] for index in generator(seed, "validation", task).permutation(len(originals)).tolist()]
    chosen = [row.id for row in order if _filer(row) in filers][:count]
    for row in order:
        if len(chosen) < count and _filer(row) not in filers and copies[row.id] <= room[task]:
            chosen.append(row.id)
            room[task] -= copies[row.id]
    return chosen


def _originals(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.id == original_id(row)]


def _filer(row: Row) -> str:
    """Letter case does not distinguish issuers; "" for a row without one."""
    return row.issuer.casefold()
