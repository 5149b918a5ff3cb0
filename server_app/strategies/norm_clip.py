"""Norm clipping (Sun, Kairouz, Suresh, McMahan 2019, section 3), on the products B A.

An update longer than strategy.clip_factor times the median length is shortened to that, and the mean is taken, each
bank the same. The length is the norm of (B + dB)(A + dA) - B A over all layers, and the same product is shortened. Its
cost is linear in the banks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedfinlora.model.adapter import Vector
from fedfinlora.wire.messages import Reply
from server_app.replies import Replies
from server_app.strategies.product import inner, layer_updates, outside_layers
from server_app.strategies.robust import along_products
from server_app.strategies.strategy import ServerState, Strategy


class NormClip(Strategy):
    """Guarantee: no update whose product is longer than clip_factor times the median counts as longer than that."""

    def weights(self, replies: Sequence[Reply]) -> list[float]:
        """Each bank the same; strategy.weighting is not used."""
        return [1.0] * len(replies)

    def aggregate(self, state: ServerState, replies: Replies) -> ServerState:
        lengths = lengths_of(state.adapter, replies)
        factors = clipped(lengths, self.config.clip_factor * float(np.median(lengths)))
        return along_products(state, replies, self.learning_rate(state) * factors / len(replies))


def lengths_of(adapter: Vector, replies: Replies) -> NDArray[np.float64]:
    """(banks,) norms of the updates of the products, over all layers and the numbers in no layer."""
    squares = np.zeros(len(replies))
    for layer in replies.layers:
        squares += [max(inner(update, update), 0.0) for update in layer_updates(adapter, replies, layer)]
    for block in outside_layers(replies.layers, adapter.size):
        wide = (update.astype(np.float64) for update in replies.updates(block))
        squares += [float(update @ update) for update in wide]
    return np.sqrt(squares)


def clipped(lengths: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """What each length is multiplied by so that none is above the limit.

    >>> clipped(np.array([0.0, 1.0, 4.0]), 2.0).tolist(), clipped(np.array([0.0, 4.0]), 0.0).tolist()
    ([1.0, 1.0, 0.5], [1.0, 0.0])
    """
    return np.divide(limit, lengths, out=np.ones(len(lengths)), where=lengths > limit)
