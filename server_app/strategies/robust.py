"""What the robust rules have in common: from the inner products of the banks' updates to a share of each in the step.

Coordinate-wise medians on A and B apart depend on how a bank writes its product: (B Q)(Q^-1 A) is the same update and
another vote. Here updates are compared as (B + dB)(A + dA) - B A (`server_app.strategies.product`). The step is the
mean of the changes of A and of B, each bank with its share. Shares do not follow the rows that a bank reports, since it
could report any.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedfinlora.wire.messages import Reply
from server_app.replies import Replies
from server_app.strategies.product import gram
from server_app.strategies.strategy import ServerState, Strategy, Vector64


class RobustStrategy(Strategy):
    """A rule that decides from the geometry of the updates how much of each is taken."""

    def weights(self, replies: Sequence[Reply]) -> list[float]:
        """Each bank the same; strategy.weighting is not used."""
        return [1.0] * len(replies)

    @abstractmethod
    def shares(self, inner: NDArray[np.float64], banks: Sequence[str]) -> NDArray[np.float64]:
        """(banks,) factors of the updates in the step, from their inner products (banks, banks)."""

    def aggregate(self, state: ServerState, replies: Replies) -> ServerState:
        shares = self.shares(gram(state.adapter, replies), replies.banks)
        rate = self.learning_rate(state)
        return state.moved(lambda block: rate * combined(replies.updates(block), shares))


def combined(updates: Iterable[NDArray[np.float32]], shares: NDArray[np.float64]) -> Vector64:
    """sum_k share_k update_k in float64; updates (n,) each, as many as shares. One of share 0 is not read."""
    total: Vector64 | None = None
    for update, share in zip(updates, shares, strict=True):
        if total is None:
            total = np.zeros(update.shape, np.float64)
        if share:
            total += share * update.astype(np.float64)
    assert total is not None
    return total
