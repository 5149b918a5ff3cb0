"""FedAdam (Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021, algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedfinlora.config import StrategyConfig

Vector64 = NDArray[np.float64]


def fedadam_step(
    mean_delta: Vector64, state: Mapping[str, Vector64], config: StrategyConfig
) -> tuple[Vector64, dict[str, Vector64]]:
    """m <- b1 m + (1-b1) delta; v <- b2 v + (1-b2) delta^2; the step is rate · m / (sqrt(v) + tau), without bias correction.

    State: `first_moment` and `second_moment` of shape (size,), float64. As in the paper, v starts at tau^2.
    """
    first = config.beta1 * state.get("first_moment", np.zeros_like(mean_delta)) + (1 - config.beta1) * mean_delta
    start = np.full_like(mean_delta, config.tau**2)
    second = config.beta2 * state.get("second_moment", start) + (1 - config.beta2) * mean_delta**2
    return config.server_learning_rate * first / (np.sqrt(second) + config.tau), {
        "first_moment": first,
        "second_moment": second,
    }
