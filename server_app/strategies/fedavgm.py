"""FedAvgM (Hsu, Qi, Brown 2019, section 4.3): momentum on the server, with Nesterov's look-ahead as in DiLoCo (Douillard et al. 2023).

For many short rounds: K banks that each take s steps move the mean by about s steps, not K·s; momentum gives the distance back.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedfinlora.config import StrategyConfig

Vector64 = NDArray[np.float64]


def fedavgm_step(
    mean_delta: Vector64, state: Mapping[str, Vector64], config: StrategyConfig
) -> tuple[Vector64, dict[str, Vector64]]:
    """v <- momentum v + delta; the step is rate · v, or rate · (delta + momentum v) with Nesterov.

    State: `velocity` of shape (size,), float64, zero at the start. With momentum 0 it is FedAvg.
    """
    velocity = config.momentum * state.get("velocity", np.zeros_like(mean_delta)) + mean_delta
    ahead = mean_delta + config.momentum * velocity if config.nesterov else velocity
    return config.server_learning_rate * ahead, {"velocity": velocity}
