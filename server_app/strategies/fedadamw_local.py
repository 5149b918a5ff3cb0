"""FedAdamW (Liu, Shang, Zhu, Liu, Liu and Liu 2025, arXiv 2510.27486, algorithm 2): AdamW at the banks, each started
from the mean of the banks' second moments, and pulled along the last global step.

The bank's side is `client_app.global_step` and `fedfinlora.train.optimizers.RestartedState`. Second moments travel as
one mean for each tensor (`fedfinlora.model.block_means`): a few hundred numbers in each direction.
"""

from __future__ import annotations

import numpy as np

from fedfinlora.model.adapter import Vector
from fedfinlora.model.block_means import NO_MEANS, averaged
from server_app.replies import Replies
from server_app.strategies.strategy import ServerState, Strategy, Vector64

MEANS = "second_moments"


class FedAdamWLocal(Strategy):
    """The adapter steps as under fedavg. Remembers `second_moments`, (tensors,): the mean of the banks', with the
    shares of their updates (the paper's are equal).
    """

    def second_moments(self, state: ServerState) -> Vector:
        return state.arrays.get(MEANS, NO_MEANS).astype(np.float32)

    def aggregate(self, state: ServerState, replies: Replies) -> ServerState:
        rate = self.learning_rate(state)

        def step(block: slice) -> Vector64:
            return rate * replies.mean(block)

        arrays = {MEANS: averaged(replies.second_moments, replies.weights)} if replies.second_moments else {}
        return state.moved(step, arrays)
