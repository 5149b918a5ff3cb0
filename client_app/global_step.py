"""strategy=fedadamw_local at the bank (FedAdamW: Liu, Shang, Zhu, Liu, Liu and Liu 2025, arXiv 2510.27486, algorithm
2): where AdamW starts in a round.

The second moments come from the server, one mean for each tensor; the first moment starts at zero. Each step is pulled
along Delta_G, the last global step as a gradient. The paper's server sends it; here a bank computes it from the last
two adapters that it received, as `client_app.control` does: the mean over rounds that it missed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedfinlora.config.schema import Config
from fedfinlora.model.adapter import Layout, Vector
from fedfinlora.model.block_means import spread
from fedfinlora.train.loop import Stretch, schedule_factor
from fedfinlora.train.optimizers import RestartedState


@dataclass(frozen=True)
class LastGlobal:
    """What a bank remembers of its last round."""

    round: int
    adapter: Vector
    """The global one that it received then, (size,) float32."""
    rates: float
    """Sum of the learning rates of the steps that it took (the paper's K eta)."""


def rates_of(stretch: Stretch, config: Config) -> float:
    """The sum of the learning rates of a round's steps."""
    train = config.train
    steps = range(stretch.first_step, stretch.first_step + stretch.steps)
    factors = (schedule_factor(step, stretch.total_steps, train.warmup_steps, train.schedule) for step in steps)
    return train.learning_rate * sum(factors)


def global_gradient(last: LastGlobal | None, adapter: Vector, round_number: int, config: Config) -> Vector:
    """Delta_G, (size,) float32: the negative of all that the server has stepped since `last`, over its rates and the
    banks'; zeros in a bank's first round.
    """
    if last is None:
        return np.zeros_like(adapter)
    strategy = config.strategy
    rates = sum(
        strategy.server_learning_rate
        * schedule_factor(done - 1, config.num_server_rounds, strategy.warmup_rounds, strategy.schedule)
        for done in range(last.round, round_number)
    )
    moved = last.adapter.astype(np.float64) - adapter
    return (moved / (rates * last.rates)).astype(np.float32) if rates * last.rates else np.zeros_like(adapter)


def started(
    last: LastGlobal | None,
    adapter: Vector,
    means: Vector,
    layout: Layout,
    stretch: Stretch,
    round_number: int,
    config: Config,
) -> RestartedState:
    """AdamW's state at the start of a round. `adapter`: the received one, (size,) float32; `means`: (tensors,), or (0,)
    where second moments start at zero.
    """
    zeros = np.zeros_like(adapter)
    pull = np.float32(config.strategy.local_correction) * global_gradient(last, adapter, round_number, config)
    if not means.size:
        return RestartedState(zeros, zeros.copy(), 0, pull)
    return RestartedState(zeros, spread(means, layout), stretch.first_step, pull)
