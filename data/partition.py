"""How simulated banks divide the train rows, and how a bank sets some of its own aside.

Every partitioner is a partition in the strict sense: each row goes to exactly one bank, each bank gets at least one,
rows keep their order inside a bank, and the same seed gives the same banks.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Sequence

from data.catalog import BENCHMARKS
from data.rows import Row
from fedfinlora.config.dataset import PartitionConfig
from fedfinlora.errors import UserError, choose
from fedfinlora.seeds import generator

Positions = list[int]
"""Positions of rows in the whole list."""


def partition(rows: Sequence[Row], banks: int, config: PartitionConfig, seed: int) -> list[list[Row]]:
    """One list of rows for each bank. A single bank gets all rows as they are, with any partitioner.

    Raises UserError when there are more banks than rows (or issuers, or a number of folders other than that of the
    banks).
    """
    choose(config.name, PARTITIONERS, "partition")
    if banks < 1:
        raise UserError(f"banks must be 1 or more, not {banks}.")
    if banks > len(rows):
        raise UserError(f"There are more banks ({banks}) than train rows ({len(rows)}): lower banks or give more rows.")
    if banks == 1:
        return [list(rows)]
    shares = PARTITIONERS[config.name](rows, banks, config, seed)
    return [[rows[position] for position in sorted(share)] for share in shares]


def hold_out(
    rows: Sequence[Row], fraction: float, max_rows: int, seed: int, bank: str | int
) -> tuple[list[Row], list[Row]]:
    """(train rows, held-out rows) of one bank, both in the order of `rows`; train is never left empty.

    The held-out share is rounded up and at most `max_rows`; a fraction or `max_rows` of 0 means no hold-out. Copies of
    a row made by `equalize_tasks` (ids ending in #2, #3, …) are one row here: with a row that is held out, its copies
    leave the train rows.
    """
    originals: dict[str, Row] = {}
    for row in rows:
        originals.setdefault(original_id(row), row)
    # The product is rounded first: 0.1 x 30 is a little more than 3.
    count = min(math.ceil(round(fraction * len(originals), 9)), max_rows, len(originals) - 1)
    if count <= 0:
        return list(rows), []
    drawn = set(generator(seed, "hold_out", bank).choice(len(originals), size=count, replace=False).tolist())
    held_out = {name: row for index, (name, row) in enumerate(originals.items()) if index in drawn}
    return [row for row in rows if original_id(row) not in held_out], list(held_out.values())


def _iid(rows: Sequence[Row], banks: int, config: PartitionConfig, seed: int) -> list[Positions]:
    """A shuffle cut into parts whose sizes differ by one at most."""
    return _cut(_shuffled(range(len(rows)), seed, "iid"), banks)


def _dirichlet(rows: Sequence[Row], banks: int, config: PartitionConfig, seed: int) -> list[Positions]:
    """Label skew after Hsu et al. 2019 (arXiv 1909.06335), in the form of Yurochkin et al. 2019 (arXiv 1905.12022).

    Each class, a (task, label) pair for tasks with a closed label set and a task otherwise, is divided among the banks
    in proportions drawn from Dirichlet(alpha, …, alpha). A bank left without rows takes one from the bank that then has
    most.
    """
    # Beyond these alpha changes nothing that can be seen, and the draw would run out of floating-point range.
    alpha = min(max(config.alpha, 1e-3), 1e6)
    shares: list[Positions] = [[] for _ in range(banks)]
    for number, positions in enumerate(_group(rows, _label_class)):
        shuffled = _shuffled(positions, seed, "dirichlet order", number)
        proportions = generator(seed, "dirichlet", number).dirichlet([alpha] * banks)
        ends = [round(end * len(shuffled)) for end in proportions.cumsum().tolist()]
        ends[-1] = len(shuffled)
        for share, start, end in zip(shares, [0, *ends[:-1]], ends, strict=True):
            share += shuffled[start:end]
    return _fill_empty(shares)


def _by_task(rows: Sequence[Row], banks: int, config: PartitionConfig, seed: int) -> list[Positions]:
    """Whole tasks, the largest first, each to the bank with the fewest rows so far.

    With more banks than tasks, the tasks with the most rows a bank are shared out among several banks, in equal
    shuffled parts.
    """
    tasks = _group(rows, lambda row: row.task)
    # Heap of (-rows a part, task number): the task whose parts are largest gets one more part until there is one for
    # each bank.
    parts = [1] * len(tasks)
    largest = [(-len(task), number) for number, task in enumerate(tasks)]
    heapq.heapify(largest)
    for _ in range(banks - len(tasks)):
        number = heapq.heappop(largest)[1]
        parts[number] += 1
        heapq.heappush(largest, (-len(tasks[number]) // parts[number], number))
    desks = [
        desk
        for number, task in enumerate(tasks)
        for desk in ([task] if parts[number] == 1 else _cut(_shuffled(task, seed, "by_task", number), parts[number]))
    ]
    return _balance(desks, banks)


def _by_issuer(rows: Sequence[Row], banks: int, config: PartitionConfig, seed: int) -> list[Positions]:
    """Each issuer's rows with one bank, the largest issuers first, to the bank with the fewest rows so far.

    Letter case does not distinguish issuers. Rows without an issuer follow one by one, shuffled, and so even the banks
    out.
    """
    issuers = _group([row for row in rows if row.issuer], lambda row: row.issuer.casefold())
    with_issuer = [position for position, row in enumerate(rows) if row.issuer]
    groups = [[with_issuer[index] for index in issuer] for issuer in issuers]
    without = _shuffled([position for position, row in enumerate(rows) if not row.issuer], seed, "by_issuer")
    if banks > len(groups) + len(without):
        raise UserError(
            f"partition=by_issuer: more banks ({banks}) than issuers ({len(groups)}) and rows without one "
            f"({len(without)}). Lower banks or choose another partition."
        )
    return _balance([*groups, *([position] for position in without)], banks)


def _by_path(rows: Sequence[Row], banks: int, config: PartitionConfig, seed: int) -> list[Positions]:
    """Each bank one folder, in the order of their names."""
    folders: dict[str, Positions] = {}
    for position, row in enumerate(rows):
        folders.setdefault(row.path, []).append(position)
    if len(folders) != banks:
        listed = ", ".join(name or "(no folder)" for name in sorted(folders))
        raise UserError(
            f"partition=by_path needs one folder for each bank, but there are {len(folders)} folders and "
            f"banks={banks}. "
            f"Folders with train rows: {listed}. Set banks={len(folders)} or sort the files into {banks} folders."
        )
    return [folders[name] for name in sorted(folders)]


PARTITIONERS: dict[str, Callable[[Sequence[Row], int, PartitionConfig, int], list[Positions]]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "by_task": _by_task,
    "by_issuer": _by_issuer,
    "by_path": _by_path,
}


def original_id(row: Row) -> str:
    """The id of the row that a copy made by `equalize_tasks` repeats; a row's own id if it is no copy."""
    return row.id.partition("#")[0]


def _label_class(row: Row) -> tuple[str, str]:
    """What dirichlet skews: the answer where answers are labels, else the task."""
    entry = BENCHMARKS.get(row.task)
    return (row.task, row.target if entry and entry.labels else "")


def _group(rows: Sequence[Row], key: Callable[[Row], Hashable]) -> list[Positions]:
    """Positions by key, the keys in the order in which they first occur."""
    groups: dict[Hashable, Positions] = {}
    for position, row in enumerate(rows):
        groups.setdefault(key(row), []).append(position)
    return list(groups.values())


def _shuffled(positions: Iterable[int], seed: int, purpose: str, number: int = 0) -> Positions:
    listed = list(positions)
    return [listed[index] for index in generator(seed, "partition", purpose, number).permutation(len(listed))]


def _cut(positions: Positions, parts: int) -> list[Positions]:
    ends = [len(positions) * part // parts for part in range(parts + 1)]
    return [positions[start:end] for start, end in itertools.pairwise(ends)]


def _balance(groups: list[Positions], banks: int) -> list[Positions]:
    """Whole groups, the largest first, each to the bank with the fewest rows (Graham 1969: at most 4/3 of the best
    balance).
    """
    shares: list[Positions] = [[] for _ in range(banks)]
    fewest = [(0, bank) for bank in range(banks)]
    for group in sorted(groups, key=len, reverse=True):
        size, bank = fewest[0]
        shares[bank] += group
        heapq.heapreplace(fewest, (size + len(group), bank))
    return shares


def _fill_empty(shares: list[Positions]) -> list[Positions]:
    """Give each empty bank the last row of the bank that has most at that moment."""
    for share in shares:
        if not share:
            share.append(max(shares, key=len).pop())
    return shares
