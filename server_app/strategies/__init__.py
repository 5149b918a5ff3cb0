"""Server rules by name. Each takes the mean delta of a round and gives the step to add to the global adapter.

To add one: write `server_app/strategies/NAME.py` with such a function, list it here and in `fedfinlora.config.STRATEGIES`, add
`conf/strategy/NAME.yaml` and a test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fedfinlora.config import StrategyConfig
from server_app.strategies.fedadam import fedadam_step
from server_app.strategies.fedavg import fedavg_step
from server_app.strategies.fedavgm import fedavgm_step

Vector64 = NDArray[np.float64]
State = Mapping[str, Vector64]
ServerStep = Callable[[Vector64, State, StrategyConfig], tuple[Vector64, dict[str, Vector64]]]

STEPS: dict[str, ServerStep] = {"fedavg": fedavg_step, "fedavgm": fedavgm_step, "fedadam": fedadam_step}
