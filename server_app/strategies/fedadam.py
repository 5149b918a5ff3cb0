"""FedAdam (Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021, algorithm 2).

Algorithm 2 has plain SGD at the banks (train.optimizer=sgd). With one bank step a round the delta is a gradient, and the server's
rule is Adam on the gradient of all banks together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedfinlora.checkpoint import load_checkpoint
from fedfinlora.config import StrategyConfig
from fedfinlora.errors import UserError
from fedfinlora.runfolder import read_config

Vector64 = NDArray[np.float64]


def fedadam_step(
    mean_delta: Vector64, state: Mapping[str, Vector64], config: StrategyConfig
) -> tuple[Vector64, dict[str, Vector64]]:
    """m <- b1 m + (1-b1) delta; v <- b2 v + (1-b2) delta^2; the step is rate · m / (sqrt(v) + tau).

    As in the paper, v starts at tau^2 and nothing is corrected; with `bias_correction` v starts at 0 and m and v are divided by
    1 - b1^t and 1 - b2^t (Kingma and Ba 2015, algorithm 1; our deviation). State: `first_moment` and `second_moment` of shape
    (size,) and `rounds` of shape (1,), float64.

    With `second_moments` v stays as it came from public rows (`public_state`), neither moved nor corrected: under privacy every delta^2 is the noise's
    variance and a little more, so a mixed v would soon be the same number everywhere, and Adam nothing but momentum.
    """
    rounds = state.get("rounds", np.zeros(1)) + 1
    corrects_second = config.bias_correction and not config.second_moments
    start = np.full_like(mean_delta, 0.0 if config.bias_correction else config.tau**2)
    first = config.beta1 * state.get("first_moment", np.zeros_like(mean_delta)) + (1 - config.beta1) * mean_delta
    second = state.get("second_moment", start)
    if not config.second_moments:
        second = config.beta2 * second + (1 - config.beta2) * mean_delta**2
    following = {"first_moment": first, "second_moment": second, "rounds": rounds}
    if config.bias_correction:
        first = first / (1 - config.beta1 ** rounds[0])
    if corrects_second:
        second = second / (1 - config.beta2 ** rounds[0])
    return config.server_learning_rate * first / (np.sqrt(second) + config.tau), following


def public_state(config: StrategyConfig, layout_id: str) -> dict[str, Vector64]:
    """What the rule starts from: `second_moment` (size,) of the run in config.second_moments, Adam's bias taken out; {} where none is named.

    Public second moments keep Adam's geometry where private ones would be noise (compare Ganesh, McMahan and Thakurta 2025, arXiv 2507.01129, who
    scale before the noise is added; here the server scales afterwards, and banks know nothing of it). The run's last checkpoint has them. UserError
    for a run without them or with another adapter's.
    """
    if not config.second_moments:
        return {}
    run = Path(config.second_moments)
    checkpoint, where = load_checkpoint(run), f"strategy.second_moments={run}"
    if checkpoint.layout_id != layout_id:
        raise UserError(f"{where} is of another adapter. Name a run with the same model=, peft= and peft.target_modules=.")
    if "second_moment" not in checkpoint.arrays or "steps" not in checkpoint.arrays:
        raise UserError(f"{where} has no moments of AdamW. Name a finished run of `centralized` on public rows.")
    steps, beta2 = int(checkpoint.arrays["steps"][0]), read_config(run).train.beta2
    return {"second_moment": checkpoint.arrays["second_moment"].astype(np.float64) / (1 - beta2**steps)}
