"""FedAvgM (Hsu, Qi, Brown 2019, section 4.3): momentum on the server, with Nesterov's look-ahead as in DiLoCo
(Douillard et al. 2023).

For many short rounds: K banks that each take s steps move the mean by about s steps, not K·s; momentum gives the
distance back.
"""

from __future__ import annotations

import numpy as np

from server_app.strategies.strategy import Arrays, MeanStrategy, Vector64


class FedAvgM(MeanStrategy):
    """v <- momentum v + delta; the step is rate · v, or rate · (delta + momentum v) with Nesterov.

    Remembers `velocity`, (size,), zero at the start. With momentum 0 it is FedAvg.
    """

    def step(self, mean: Vector64, own: Arrays, learning_rate: float) -> tuple[Vector64, dict[str, Vector64]]:
        momentum = self.config.momentum
        velocity = momentum * own.get("velocity", np.zeros_like(mean)) + mean
        ahead = mean + momentum * velocity if self.config.nesterov else velocity
        return learning_rate * ahead, {"velocity": velocity}
