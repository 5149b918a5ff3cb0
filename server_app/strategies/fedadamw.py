"""AdamW at the server (Loshchilov and Hutter 2019, algorithm 2), with the mean update as its negative gradient.

With one SGD step a round at the banks (train.optimizer=sgd, train.steps_per_round=1, train.clip_norm=0) and
strategy.weighting=answer_tokens the mean update is the negative gradient of the banks' rows pooled. A run is then
centralised AdamW on the pooled batches, however the rows are divided.
"""

from __future__ import annotations

import math

import numpy as np

from fedfinlora.model.adapter import blocks
from server_app.replies import Mean
from server_app.strategies.strategy import Arrays, MeanStrategy, ServerState, Vector64

CLIP_FLOOR = 1e-6
"""Added to a norm before it divides, as `torch.nn.utils.clip_grad_norm_` does."""


class FedAdamW(MeanStrategy):
    """m and v as Adam's, both corrected; the step is rate · (m / (sqrt(v) + tau) - weight_decay · adapter).

    The mean is clipped to strategy.clip_norm, as centralised training clips the gradient of all rows: the clip of the
    mean is not the mean of clips, so the banks must not clip. Remembers `first_moment` and `second_moment`, (size,),
    and `rounds`, (1,).
    """

    def scale(self, state: ServerState, replies: Mean) -> float:
        limit = self.config.clip_norm
        if not limit:
            return 1.0
        parts = (replies.mean(block) for block in blocks(state.adapter.size))
        length = math.sqrt(sum(float(part @ part) for part in parts))
        return min(1.0, limit / (length + CLIP_FLOOR))

    def decay(self, adapter: Vector64, learning_rate: float) -> Vector64 | None:
        return learning_rate * self.config.weight_decay * adapter if self.config.weight_decay else None

    def step(self, mean: Vector64, own: Arrays, learning_rate: float) -> tuple[Vector64, dict[str, Vector64]]:
        config = self.config
        rounds = own.get("rounds", np.zeros(1)) + 1
        first = config.beta1 * own.get("first_moment", np.zeros_like(mean)) + (1 - config.beta1) * mean
        second = config.beta2 * own.get("second_moment", np.zeros_like(mean)) + (1 - config.beta2) * mean**2
        ahead = first / (1 - config.beta1 ** rounds[0])
        spread = np.sqrt(second / (1 - config.beta2 ** rounds[0])) + config.tau
        return learning_rate * ahead / spread, {"first_moment": first, "second_moment": second, "rounds": rounds}
