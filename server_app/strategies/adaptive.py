"""What FedAdagrad and FedYogi have in common (Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021,
algorithm 2): momentum over a root of second moments. They differ in how the second moments follow.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from server_app.strategies.strategy import Arrays, MeanStrategy, Vector64


class AdaptiveMean(MeanStrategy):
    """m <- b1 m + (1-b1) delta; the step is rate · m / (sqrt(v) + tau). v starts at tau^2, and nothing is corrected.

    Remembers `first_moment` and `second_moment`, (size,).
    """

    @abstractmethod
    def second(self, before: Vector64, square: Vector64) -> Vector64:
        """v after a round, (n,), from v before it and delta^2."""

    def step(self, mean: Vector64, own: Arrays, learning_rate: float) -> tuple[Vector64, dict[str, Vector64]]:
        config = self.config
        first = config.beta1 * own.get("first_moment", np.zeros_like(mean)) + (1 - config.beta1) * mean
        second = self.second(own.get("second_moment", np.full_like(mean, config.tau**2)), mean**2)
        step = learning_rate * first / (np.sqrt(second) + config.tau)
        return step, {"first_moment": first, "second_moment": second}
