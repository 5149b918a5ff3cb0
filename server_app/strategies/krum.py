"""Krum (Blanchard, El Mhamdi, Guerraoui, Stainer 2017, section 4), on the products B A.

The paper's guarantee needs n >= 2 f + 3 banks of which f lie: four banks tolerate none. With fewer the rule still takes
the update whose nearest neighbours are nearest, which one liar alone cannot be, and two who agree can.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server_app.strategies.product import distances
from server_app.strategies.robust import RobustStrategy


def scores(inner: NDArray[np.float64], liars: int) -> NDArray[np.float64]:
    """(n,) sums of the squared distances to the n - liars - 2 nearest other updates, to one at least."""
    squared = np.sort(distances(inner) + np.diag(np.full(len(inner), np.inf)), axis=1)
    return np.asarray(squared[:, : max(len(inner) - liars - 2, 1)].sum(axis=1))


class Krum(RobustStrategy):
    """The one update with the lowest score; of equal ones the first by name. A single bank's is taken as it is."""

    def shares(self, inner: NDArray[np.float64], banks: Sequence[str]) -> NDArray[np.float64]:
        return chosen(scores(inner, self.config.liars), 1)


def chosen(score: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """(n,): 1 / count for the `count` lowest scores, else 0.

    >>> chosen(np.array([3.0, 1.0, 2.0]), 2).tolist()
    [0.0, 0.5, 0.5]
    """
    shares = np.zeros(len(score))
    shares[np.argsort(score, kind="stable")[:count]] = 1 / count
    return shares
