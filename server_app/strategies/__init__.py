"""Server rules by name. Each takes the mean delta of a round and gives the step to add to the global adapter.

To add one: write `server_app/strategies/NAME.py` with such a function, list it here and in `fedfinlora.config.STRATEGIES`, add
`conf/strategy/NAME.yaml` and a test.

Before that step, the accepted deltas of a round become one by a rule of their own, strategy.aggregation. To add one (a trimmed
mean, a median): write the function, give it a line in AGGREGATES below and its name in `fedfinlora.config.AGGREGATIONS`. It is called for a block
of numbers at a time, which suits rules that work number by number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedfinlora.config import StrategyConfig
from server_app.strategies.fedadam import fedadam_step
from server_app.strategies.fedavg import fedavg_step, weighted_mean
from server_app.strategies.fedavgm import fedavgm_step

Vector64 = NDArray[np.float64]
State = Mapping[str, Vector64]
ServerStep = Callable[[Vector64, State, StrategyConfig], tuple[Vector64, dict[str, Vector64]]]

Aggregate = Callable[[Iterable[NDArray[np.float32]], Sequence[float]], Vector64]
"""(a block of each accepted delta in the order of their banks, their weights) -> the block of the round's delta."""

AGGREGATES: dict[str, Aggregate] = {"mean": weighted_mean}

STEPS: dict[str, ServerStep] = {"fedavg": fedavg_step, "fedavgm": fedavgm_step, "fedadam": fedadam_step}
