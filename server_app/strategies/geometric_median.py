"""Geometric median (Pillutla, Kakade, Harchaoui 2022, RFA, algorithm 2: smoothed Weiszfeld), on the products B A.

The point with the least sum of distances to the banks' updates. It is a mean of them, so only its shares are sought,
and the inner products are all that is needed. Half of the banks and more must be honest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server_app.strategies.product import distances
from server_app.strategies.robust import RobustStrategy

MOST_STEPS = 1000
SMALLEST_DISTANCE = 1e-6
"""Of an update from the median, as a part of the median distance between updates: nearer ones count as this far."""
CONVERGED = 1e-10
"""Weiszfeld's algorithm ends when no share moves by more."""


class GeometricMedian(RobustStrategy):
    """Has no knob. Of two banks each counts half; where all agree, each the same."""

    def shares(self, inner: NDArray[np.float64], banks: Sequence[str]) -> NDArray[np.float64]:
        return weiszfeld(inner)


def weiszfeld(inner: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) shares, of sum 1, of the geometric median of n vectors with these inner products (n, n)."""
    count = len(inner)
    shares = np.full(count, 1 / count)
    between = np.sqrt(distances(inner)[np.triu_indices(count, 1)])
    floor = SMALLEST_DISTANCE * float(np.median(between[between > 0])) if (between > 0).any() else 0.0
    if not floor:
        return shares
    for _ in range(MOST_STEPS):
        nearness = 1 / np.maximum(to_mean(inner, shares), floor)
        following = nearness / nearness.sum()
        moved = np.abs(following - shares).max()
        shares = following
        if moved <= CONVERGED:
            break
    return shares


def to_mean(inner: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) distances of n vectors from their mean with these shares."""
    along = inner @ shares
    return np.sqrt(np.maximum(np.diag(inner) - 2 * along + shares @ along, 0.0))
