"""What was spent on each unit, by its history in the ledger's lines; epsilon once for each distinct history.

Block composition (Lécuyer et al. 2019, Sage, section 3): what counts for a row are the lines that name it. A unit whose
budget is exhausted is excluded, by its own history alone (Feldman and Zrnic 2021, algorithm 1).

How a line counts for a unit, by the weight (`Cohort.weights`) with which it names it:

| line by | unit | counts as | because |
|---|---|---|---|
| row | row | Steps(q, sigma) | the line's own guarantee |
| customer | customer | Steps(q, sigma) | the line's own guarantee |
| row | customer, k of its rows | Steps(1-(1-q)^k, sigma/k) | see `group` |
| customer | row, its customer's only one | Steps(q, sigma) | without the row the customer is gone |
| customer | row, one of several | Steps(q, sigma/2) | the clipped sum moves from one point of a ball of radius C to another: by 2C |

The last is replacement, not removal, for which there are no equal Steps. That the exact loss (Zhu, Dong and Wang 2022)
lies below the one used here is not proved; a test computes it for five settings and three deltas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfinlora.privacy.accounting import Steps, epsilon, rdp_epsilon
from fedfinlora.privacy.cohorts import CUSTOMER_BIT, HashedRows
from fedfinlora.privacy.ledger_files import EVERY_ROW
from fedfinlora.privacy.ledger_index import Index

Lines = Sequence[Mapping[str, Any]]
CHUNK = 4096
"""Units whose weights in all lines are in memory at once: 4,096 units and 1,000 lines are 16 MiB."""


def group(steps: Steps, size: int) -> Steps:
    """An upper bound for `size` rows that belong together, out of the steps by row (group privacy).

    At least one of the rows is in a step with probability 1-(1-q)^k. The number j of those that are is at most k, and
    they move the clipped sum by at most j C. The divergence between N(j C) and N(0) grows with j (add noise to N(k C)
    and shrink it: N(j C) comes out), and a mixture over j is no further away than its furthest part (joint convexity).
    So nothing is further away than k C with that probability.

    >>> group(Steps(0.5, 3.0, 10), 2)
    Steps(sampling_rate=0.75, noise_multiplier=1.5, count=10)
    """
    if size == 1 or steps.sampling_rate == 1:
        return Steps(steps.sampling_rate, steps.noise_multiplier / size, steps.count)
    rate = -math.expm1(size * math.log1p(-steps.sampling_rate))
    return Steps(min(1.0, rate), steps.noise_multiplier / size, steps.count)


@dataclass(frozen=True, eq=False)
class Histories:
    """The distinct histories of some units."""

    by_customer: bool
    pairs: tuple[tuple[float, float], ...]
    """(sampling rate, noise multiplier) that occur, as in the lines."""
    levels: tuple[int, ...]
    """Weights that occur, ascending, beginning with 1."""
    counts: NDArray[np.int64]
    """(histories, levels x pairs): steps of each pair with at least that weight. Who has no less of any has spent no
    less.
    """
    of_unit: NDArray[np.intp]
    """(units,): the history of each."""

    def epsilon(self, history: int, delta: float) -> float:
        """What one history has spent."""
        return epsilon(self._spent(history), delta)

    def _spent(self, history: int) -> list[Steps]:
        counts = np.vstack(
            [self.counts[history].reshape(len(self.levels), -1), np.zeros(len(self.pairs), dtype=np.int64)]
        )
        spent = []
        for place, level in enumerate(self.levels):
            for pair, count in zip(self.pairs, counts[place] - counts[place + 1], strict=True):
                steps = Steps(*pair, int(count))
                spent.append(group(steps, level) if self.by_customer else Steps(pair[0], pair[1] / level, steps.count))
        return [steps for steps in spent if steps.count]

    def _stays_within(self, history: int, limit: float, delta: float) -> bool:
        """RDP's looser bound first: PRV makes a table of each different step."""
        return rdp_epsilon(self._spent(history), delta) <= limit or self.epsilon(history, delta) <= limit

    def within(self, limit: float, delta: float) -> NDArray[np.bool_]:
        """(histories,): whether each stays within a limit, with few epsilons: one that is within vouches for all that
        have spent less.
        """
        verdict = np.zeros(len(self.counts), dtype=bool)
        open_ones = self._heaviest_first()
        while len(open_ones):
            # All are within, most of the time, which the first shows; where not, halving finds the border.
            tried = open_ones[0] if len(open_ones) == len(self.counts) else open_ones[len(open_ones) // 2]
            fits = self._stays_within(int(tried), limit, delta)
            others = self.counts[open_ones]
            decided = (others <= self.counts[tried] if fits else others >= self.counts[tried]).all(axis=1)
            verdict[open_ones[decided]] = fits
            open_ones = open_ones[~decided]
        return verdict

    def largest(self, delta: float, among: NDArray[np.bool_] | None = None) -> float:
        """The largest epsilon of those histories; 0 where there is none."""
        largest = 0.0
        open_ones = self._heaviest_first()
        if among is not None:
            open_ones = open_ones[among[open_ones]]
        while len(open_ones):
            heaviest = open_ones[0]
            largest = max(largest, self.epsilon(int(heaviest), delta))
            open_ones = open_ones[~(self.counts[open_ones] <= self.counts[heaviest]).all(axis=1)]
        return largest

    def _heaviest_first(self) -> NDArray[np.intp]:
        """By a figure that grows with what is spent; ties in a fixed order."""
        weight = np.array([rate**2 / max(noise, 1e-9) ** 2 for rate, noise in self.pairs])
        return np.argsort(-(self.counts @ np.tile(weight, len(self.levels))), kind="stable")


@dataclass(frozen=True, eq=False)
class Units:
    """The units of now, as the index knows them."""

    by_customer: bool
    of_row: NDArray[np.intp]
    """(rows,): the unit of each row."""
    atoms: NDArray[np.int32]
    """(units,): each unit's own."""
    row_units: NDArray[np.intp]
    row_atoms: NDArray[np.int32]
    """(different rows,): unit and atom of each row of a customer; empty by row."""
    sizes: NDArray[np.int32]
    """(units,): rows of each."""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.atoms)


def units_of(index: Index, hashed: HashedRows, by_customer: bool) -> Units:
    """Rows with one hash are one unit by row; all rows of a customer are one by customer."""
    names, of_row, sizes = np.unique(
        hashed.customers if by_customer else hashed.rows, return_inverse=True, return_counts=True
    )
    row_units, row_atoms = np.array([], dtype=np.intp), np.array([], dtype=np.int32)
    if by_customer:
        order = np.lexsort((hashed.rows, of_row))
        units, rows = of_row[order], hashed.rows[order]
        different = np.concatenate([[True], (units[1:] != units[:-1]) | (rows[1:] != rows[:-1])])
        row_units, row_atoms = units[different], index.atoms_of(rows[different])
    return Units(by_customer, of_row, index.atoms_of(names), row_units, row_atoms, sizes.astype(np.int32))


def members(index: Index, by_customer: bool) -> Units:
    """Everything that the index knows, a unit for each atom: rows, or customers as far as the lines name them."""
    of_kind = (index.hashes >= CUSTOMER_BIT) == by_customer
    atoms = np.unique(index.atoms[of_kind])
    none = np.array([], dtype=np.intp)
    return Units(by_customer, none, atoms, none, none.astype(np.int32), np.ones(len(atoms), dtype=np.int32))


def histories(
    lines: Lines, index: Index, units: Units, next_steps: Steps | None = None, run: str | None = None
) -> Histories:
    """What the lines (of one run, or of all) and then `next_steps` spend on each unit."""
    collapsed = np.arange(units.count)
    if not units.by_customer:  # rows of one atom have one history
        atoms, collapsed = np.unique(units.atoms, return_inverse=True)
        units = replace(units, atoms=atoms)
    counted = [line for line in lines if run is None or line["run"] == run]
    groups: dict[tuple[str, bool], list[Mapping[str, Any]]] = {}
    for line in counted:
        groups.setdefault((line["cohort"], line["unit"] == "customer"), []).append(line)
    all_steps = [_pair(line) for line in counted] + ([_pair_of(next_steps)] if next_steps else [])
    pairs = tuple(sorted(set(all_steps))) or ((1.0, 1.0),)
    steps = np.zeros((len(groups), len(pairs)))
    for place, group_lines in enumerate(groups.values()):
        for line in group_lines:
            steps[place, pairs.index(_pair(line))] += line["steps"]

    at_level: dict[int, NDArray[np.float64]] = {1: np.zeros((units.count, len(pairs)))}
    for start in range(0, units.count, CHUNK):
        part = slice(start, min(start + CHUNK, units.count))
        levels = _levels(groups, index, units, part)
        for level in np.unique(levels[levels > 0]).tolist():
            at_level.setdefault(level, np.zeros((units.count, len(pairs))))[part] = (levels == level).astype(
                float
            ) @ steps
    if next_steps:
        at_level[1][:, pairs.index(_pair_of(next_steps))] += next_steps.count
    ascending = sorted(at_level)
    exact = np.stack([at_level[level] for level in ascending], axis=1)
    counts = np.cumsum(exact[:, ::-1], axis=1)[:, ::-1].astype(np.int64).reshape(units.count, -1)
    distinct, of_unit = np.unique(counts, axis=0, return_inverse=True)
    return Histories(units.by_customer, pairs, tuple(ascending), distinct, of_unit.reshape(-1)[collapsed])


def _levels(
    groups: Mapping[tuple[str, bool], Sequence[Mapping[str, Any]]], index: Index, units: Units, part: slice
) -> NDArray[np.int32]:
    """(units of the part, groups of lines): the weight at which each group of lines counts for each unit; 0 = not at
    all.
    """
    named = [place for place, (cohort, _) in enumerate(groups) if cohort != EVERY_ROW]
    by_customer = np.array([customer for _, customer in groups], dtype=bool)
    # All lines of a group have one cohort, so any of them shows who is in it; the index wants them ascending.
    first = np.array([groups[key][0]["number"] for key in groups], dtype=np.int64)
    columns = np.array(sorted(named, key=lambda place: first[place]), dtype=np.intp)
    levels = np.zeros((part.stop - part.start, len(groups)), dtype=np.int32)
    levels[:, columns] = index.weights(units.atoms[part], first[columns])
    everywhere = np.array([cohort == EVERY_ROW for cohort, _ in groups], dtype=bool)
    if not units.by_customer:
        levels = np.minimum(levels, np.where(by_customer, 2, 1)).astype(np.int32)
        levels[:, everywhere] = np.where(by_customer[everywhere], 2, 1)
        return levels
    rows = slice(*np.searchsorted(units.row_units, [part.start, part.stop]))
    of_rows = np.zeros_like(levels)
    weights = np.zeros((rows.stop - rows.start, len(groups)), dtype=np.int32)
    weights[:, columns] = index.weights(units.row_atoms[rows], first[columns])
    np.add.at(of_rows, units.row_units[rows] - part.start, weights)
    # A customer that a line by customer names is one unit of it; one that goes by another name now counts by its rows.
    levels = np.where(by_customer & (levels > 0), 1, np.maximum(levels, of_rows)).astype(np.int32)
    levels[:, everywhere] = np.where(by_customer[everywhere], 1, units.sizes[part, None])
    return levels


def _pair(line: Mapping[str, Any]) -> tuple[float, float]:
    return float(line["sampling_rate"]), float(line["noise_multiplier"])


def _pair_of(steps: Steps) -> tuple[float, float]:
    return steps.sampling_rate, steps.noise_multiplier
