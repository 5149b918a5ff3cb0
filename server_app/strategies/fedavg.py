"""FedAvg (McMahan, Moore, Ramage, Hampson, Agüera y Arcas 2017, algorithm 1), on deltas instead of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedfinlora.config import StrategyConfig

Vector64 = NDArray[np.float64]


def weighted_mean(deltas: Iterable[NDArray[np.float32]], weights: Sequence[float]) -> Vector64:
    """sum_k w_k delta_k / sum_k w_k in float64. Deltas: K vectors of shape (size,), one at a time; weights: K numbers above 0.

    Summed in the order given, so a caller that sorts by bank gets the same bytes whoever answers first. Raises ValueError for no
    deltas, another number of them, unequal shapes and weights that are not positive and finite.
    """
    if not weights or not all(np.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"weights must be positive and finite: {list(weights)}")
    total: Vector64 | None = None
    for delta, weight in zip(deltas, weights, strict=True):
        if total is None:
            total = np.zeros(delta.shape, np.float64)
        if delta.shape != total.shape:
            raise ValueError("the deltas have different shapes")
        total += np.float64(weight) * delta
    assert total is not None
    total /= np.float64(sum(weights))
    return total


def fedavg_step(
    mean_delta: Vector64, state: Mapping[str, Vector64], config: StrategyConfig
) -> tuple[Vector64, dict[str, Vector64]]:
    """The mean delta times the server learning rate; at 1.0 the new adapter is the mean of the banks' adapters. No state."""
    return config.server_learning_rate * mean_delta, {}
