"""HetLoRA (Cho, Liu, Xu, Fahrezi, Joshi 2024, section 3.3): banks of different ranks, padded with zeros, each weighing
as much as its product is long.

A bank of rank r_k (strategy.ranks) trains the first r_k rows of A and columns of B and gives the others back as zeros
(`fedfinlora.train.own_columns`). The weights are the Frobenius norms of the banks' B A over all layers.
"""

from __future__ import annotations

import math

import numpy as np

from server_app.replies import Replies
from server_app.strategies.product import Product, norm_of
from server_app.strategies.robust import combined
from server_app.strategies.strategy import ServerState, Strategy


class HetLora(Strategy):
    """Difference: a bank's rank is what strategy.ranks says during the whole run; the paper lets banks prune theirs. A
    bank can raise its weight by a longer product, as in the paper: strategy.max_update_norm bounds that.
    """

    def aggregate(self, state: ServerState, replies: Replies) -> ServerState:
        squares = np.zeros(len(replies))
        for layer in replies.layers:
            a, b = (factor.astype(np.float64) for factor in layer.of(state.adapter))
            squares += [norm_of(Product(b + db, a + da)) ** 2 for da, db in replies.factors(layer)]
        lengths = np.array([math.sqrt(square) for square in squares])
        shares = lengths / lengths.sum() if lengths.any() else np.full(len(replies), 1 / len(replies))
        rate = self.learning_rate(state)
        return state.moved(lambda block: rate * combined(replies.updates(block), shares))
