"""Norm clipping (Sun, Kairouz, Suresh, McMahan 2019, section 3), on the products B A.

An update longer than strategy.clip_factor times the median length is shortened to that, and the mean is taken, each
bank the same. The length is the norm of (B + dB)(A + dA) - B A over all layers. Its cost is linear in the banks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedfinlora.model.adapter import Vector
from fedfinlora.wire.messages import Reply
from server_app.replies import Replies
from server_app.strategies.product import Matrix, Product, inner, outside_layers
from server_app.strategies.robust import combined
from server_app.strategies.strategy import ServerState, Strategy


class NormClip(Strategy):
    """Guarantee: no update whose product is longer than clip_factor times the median counts as longer than that."""

    def weights(self, replies: Sequence[Reply]) -> list[float]:
        """Each bank the same; strategy.weighting is not used."""
        return [1.0] * len(replies)

    def aggregate(self, state: ServerState, replies: Replies) -> ServerState:
        lengths = squared_lengths(state.adapter, replies)
        limit = self.config.clip_factor * float(np.median(np.sqrt(lengths.sum(axis=1))))
        shares = np.array([shortened(p, q, r, limit) for p, q, r in lengths]) / len(replies)
        rate = self.learning_rate(state)
        return state.moved(lambda block: rate * combined(replies.updates(block), shares))


def squared_lengths(adapter: Vector, replies: Replies) -> Matrix:
    """(banks, 3): of c times the changes of A and B the squared norm of the product's update is p c^2 + q c^3 + r c^4;
    the row of a bank is (p, q, r).

    The update is c (dB A + B dA) + c^2 dB dA. Numbers in no layer are in p.
    """
    powers = np.zeros((len(replies), 3))
    for layer in replies.layers:
        a, b = (factor.astype(np.float64) for factor in layer.of(adapter))
        for number, changes in enumerate(replies.factors(layer)):
            da, db = (change.astype(np.float64) for change in changes)
            linear, both = Product(np.hstack([db, b]), np.vstack([a, da])), Product(db, da)
            powers[number] += inner(linear, linear), 2 * inner(linear, both), inner(both, both)
    for block in outside_layers(replies.layers, adapter.size):
        powers[:, 0] += [float(update.astype(np.float64) @ update) for update in replies.updates(block)]
    return np.maximum(powers, [0.0, -np.inf, 0.0])


def shortened(p: float, q: float, r: float, limit: float) -> float:
    """The largest c <= 1 up to which p c^2 + q c^3 + r c^4 never exceeds limit^2.

    >>> round(shortened(4.0, 0.0, 0.0, 1.0), 9), shortened(4.0, 0.0, 0.0, 3.0)
    (0.5, 1.0)
    """
    if not limit:
        return float(p + q + r <= 0)
    roots: NDArray[np.complex128] = np.asarray(np.roots([r, q, p, 0.0, -(limit**2)]), np.complex128)
    real = roots.real[(np.abs(roots.imag) <= 1e-9 * np.abs(roots)) & (roots.real > 0)]
    return float(min(real.min(initial=1.0), 1.0))
