"""FedYogi (Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021, algorithm 2)."""

from __future__ import annotations

import numpy as np

from server_app.strategies.adaptive import AdaptiveMean
from server_app.strategies.strategy import Vector64


class FedYogi(AdaptiveMean):
    """v <- v - (1-b2) delta^2 sign(v - delta^2): it forgets large second moments more slowly than FedAdam."""

    def second(self, before: Vector64, square: Vector64) -> Vector64:
        return before - (1 - self.config.beta2) * square * np.sign(before - square)
