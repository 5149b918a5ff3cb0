"""Shapley values (Shapley 1953) as fixed linear combinations of the scores of coalitions.

    phi_k = sum over coalitions S without k of |S|! (N - |S| - 1)! / N! · (v(S + k) - v(S))

All 2^N coalitions for few players; a seeded sample of permutations for many (Castro, Gómez, Tejada 2009), with the
standard error over the permutations. Being linear in v, they hold row by row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedfinlora.seeds import generator

Coalition = frozenset[str]
EXACT_UP_TO = 6
"""Players; 2^6 - 1 = 63 coalitions are scored."""


@dataclass(frozen=True)
class Combination:
    """Shapley values of `players` from the scores of `coalitions`."""

    players: tuple[str, ...]
    coalitions: tuple[Coalition, ...]
    """The empty one first, then the whole one."""
    coefficients: NDArray[np.float64]
    """(players, coalitions)."""
    permutations: NDArray[np.float64] | None = None
    """(permutations, players, coalitions) of each permutation drawn; None where all coalitions are there."""

    def errors(self, scores: Sequence[float]) -> list[float] | None:
        """The standard error of each value over the permutations, from the scores of the coalitions."""
        if self.permutations is None:
            return None
        values = self.permutations @ np.asarray(scores)  # (permutations, players)
        count = len(values)
        return [float(one) for one in values.std(axis=0, ddof=1) / math.sqrt(count)] if count > 1 else None


def combination(players: Sequence[str], permutations: int, seed: int) -> Combination:
    """All coalitions of up to EXACT_UP_TO players, else those that `permutations` seeded permutations visit.

    >>> made = combination(["a", "b"], 0, 0)
    >>> (made.coefficients @ [0.0, 1.0, 0.3, 0.5]).round(3).tolist()  # none, both, a, b
    [0.4, 0.6]
    """
    return _all(players) if len(players) <= EXACT_UP_TO else _sampled(players, permutations, seed)


def _all(players: Sequence[str]) -> Combination:
    sizes = range(1, len(players))
    subsets = [frozenset(one) for size in sizes for one in itertools.combinations(players, size)]
    coalitions = list(dict.fromkeys([frozenset[str](), frozenset(players), *subsets]))
    place = {coalition: number for number, coalition in enumerate(coalitions)}
    coefficients = np.zeros((len(players), len(coalitions)))
    count = len(players)
    for row, player in enumerate(players):
        for coalition in coalitions:
            if player not in coalition:
                share = 1 / (count * math.comb(count - 1, len(coalition)))
                coefficients[row, place[coalition | {player}]] += share
                coefficients[row, place[coalition]] -= share
    return Combination(tuple(players), tuple(coalitions), coefficients)


def _sampled(players: Sequence[str], permutations: int, seed: int) -> Combination:
    rng = generator(seed, "shapley permutations")
    orders = [[players[index] for index in rng.permutation(len(players))] for _ in range(max(2, permutations))]
    coalitions: dict[Coalition, int] = {frozenset(): 0, frozenset(players): 1}
    for order in orders:
        for size in range(1, len(order)):
            coalitions.setdefault(frozenset(order[:size]), len(coalitions))
    each = np.zeros((len(orders), len(players), len(coalitions)))
    for number, order in enumerate(orders):
        for size, player in enumerate(order):
            row = players.index(player)
            each[number, row, coalitions[frozenset(order[: size + 1])]] += 1
            each[number, row, coalitions[frozenset(order[:size])]] -= 1
    return Combination(tuple(players), tuple(coalitions), each.mean(axis=0), each)
