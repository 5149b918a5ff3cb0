"""FedAdam (Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021, algorithm 2).

Algorithm 2 has plain SGD at the banks (train.optimizer=sgd). With one bank step a round the delta is a gradient, and the server's
rule is Adam on the gradient of all banks together.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedfinlora.config import StrategyConfig

Vector64 = NDArray[np.float64]


def fedadam_step(
    mean_delta: Vector64, state: Mapping[str, Vector64], config: StrategyConfig
) -> tuple[Vector64, dict[str, Vector64]]:
    """m <- b1 m + (1-b1) delta; v <- b2 v + (1-b2) delta^2; the step is rate · m / (sqrt(v) + tau).

    As in the paper, v starts at tau^2 and nothing is corrected; with `bias_correction` v starts at 0 and m and v are divided by
    1 - b1^t and 1 - b2^t (Kingma and Ba 2015, algorithm 1; our deviation). State: `first_moment` and `second_moment` of shape
    (size,) and `rounds` of shape (1,), float64.
    """
    rounds = state.get("rounds", np.zeros(1)) + 1
    start = np.full_like(mean_delta, 0.0 if config.bias_correction else config.tau**2)
    first = config.beta1 * state.get("first_moment", np.zeros_like(mean_delta)) + (1 - config.beta1) * mean_delta
    second = config.beta2 * state.get("second_moment", start) + (1 - config.beta2) * mean_delta**2
    following = {"first_moment": first, "second_moment": second, "rounds": rounds}
    if config.bias_correction:
        first, second = first / (1 - config.beta1 ** rounds[0]), second / (1 - config.beta2 ** rounds[0])
    return config.server_learning_rate * first / (np.sqrt(second) + config.tau), following
