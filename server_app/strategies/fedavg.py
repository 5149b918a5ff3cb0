"""FedAvg (McMahan, Moore, Ramage, Hampson, Agüera y Arcas 2017, algorithm 1), on deltas instead of weights."""

from __future__ import annotations

from server_app.strategies.strategy import Arrays, MeanStrategy, Vector64


class FedAvg(MeanStrategy):
    """The mean delta times the server learning rate; at 1.0 the new adapter is the mean of the banks' adapters.
    Remembers nothing.
    """

    def step(self, mean: Vector64, own: Arrays, learning_rate: float) -> tuple[Vector64, dict[str, Vector64]]:
        return learning_rate * mean, {}
