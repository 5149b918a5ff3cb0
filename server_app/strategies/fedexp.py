"""FedExP (Jhunjhunwala, Wang and Joshi 2023, arXiv 2301.09604, algorithm 1): the server goes further along the mean
update the less the banks' updates agree, because a mean of unlike updates is short.

Norms are those of the change of the product B A, which is what the model computes with, and which does not depend on
how a layer's update is divided between A and B.
"""

from __future__ import annotations

import numpy as np

from server_app.replies import Replies
from server_app.strategies.product import bank_update, layer_updates, norm_of, outside_layers
from server_app.strategies.strategy import ServerState, Strategy, Vector64


class FedExP(Strategy):
    """The step is rate · eta · mean update, with eta = sum_k p_k |W_k|^2 / (2 |W|^2) between 1 and N/2.

    W_k is the change of the product at bank k of N, p_k its share of the weights, W the change that the mean update
    makes. In the last round the adapter is the mean of the last two iterates, as the paper's section 4.2 recommends:
    extrapolation makes them swing around where they go. Keeps the last `eta`, (1,), to be read.

    Our differences: the paper has equal weights, norms of parameters, and, in the place of the upper bound N/2 (eta
    where the banks' updates are orthogonal), an epsilon in the denominator, which has a unit and must be tuned. Without
    a bound one bank that sends the others' mean reversed could make eta arbitrarily large.
    """

    def aggregate(self, state: ServerState, replies: Replies) -> ServerState:
        eta = self.extrapolation(state, replies)
        rate = self.learning_rate(state) * eta
        # The mean of x and x + step is x + step / 2.
        kept = 0.5 if state.round + 1 == self.rounds > 1 else 1.0

        def step(block: slice) -> Vector64:
            return kept * rate * replies.mean(block)

        return state.moved(step, {"eta": np.array([eta])})

    def extrapolation(self, state: ServerState, replies: Replies) -> float:
        """eta. One layer of all banks is read at a time."""
        shares = np.asarray(replies.weights) / sum(replies.weights)
        own, mean = np.zeros(len(replies)), 0.0
        for layer in replies.layers:
            for bank, update in enumerate(layer_updates(state.adapter, replies, layer)):
                own[bank] += norm_of(update) ** 2
            a, b = (factor.astype(np.float64) for factor in layer.of(state.adapter))
            mean_a, mean_b = replies.mean(layer.a).reshape(layer.a_shape), replies.mean(layer.b).reshape(layer.b_shape)
            mean += norm_of(bank_update(a, b, mean_a, mean_b)) ** 2
        for block in outside_layers(replies.layers, state.adapter.size):
            for bank, numbers in enumerate(replies.updates(block)):
                own[bank] += float(numbers.astype(np.float64) @ numbers)
            part = replies.mean(block)
            mean += float(part @ part)
        most = max(1.0, len(replies) / 2)
        total = float(shares @ own)
        if not mean:
            return most if total else 1.0
        return min(most, max(1.0, total / (2 * mean)))
