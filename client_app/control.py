"""SCAFFOLD at the bank (Karimireddy, Kale, Mohri, Reddi, Stich and Suresh 2020, algorithm 1, option II): each SGD step
is corrected by c - c_k, the difference between where all banks and where this bank has moved.

Nothing but adapters crosses the network. The server's control variate c, the mean gradient of the last round, is minus
the server's last step over its rate, the banks' rate and their steps: a bank computes it from the last two adapters
that it received. Its own c_k stays on its disk (`client_app.kept_state`). A bank that missed rounds takes the mean of c
over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedfinlora.config.schema import Config
from fedfinlora.model.adapter import Vector, trainable
from fedfinlora.train.gradient_step import PLAIN, GradientStep, LocalRows, StepTaken
from fedfinlora.train.loop import schedule_factor

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Control:
    """What a bank remembers of its last round."""

    round: int
    own: Vector
    """c_k, (size,) float32: the mean gradient of the bank's steps in its last round."""
    adapter: Vector
    """The global one that it received then, (size,) float32."""
    steps: int
    """That it took."""


@dataclass(frozen=True)
class CorrectedStep:
    """A gradient step whose gradient is corrected by c - c_k."""

    correction: Vector
    """(size,) float32, in the order of the layout."""
    inner: GradientStep = PLAIN

    @property
    def is_private(self) -> bool:
        return self.inner.is_private

    def take(self, local: LocalRows, step: int) -> StepTaken:
        taken = self.inner.take(local, step)
        add_to_gradient(local.model, self.correction)
        return taken


def add_to_gradient(model: nn.Module, correction: Vector) -> None:
    """Add a vector of shape (size,) to the gradients of the trainable parameters."""
    import torch

    offset = 0
    for parameter in trainable(model).values():
        end = offset + parameter.numel()
        part = torch.from_numpy(correction[offset:end].copy()).reshape(parameter.shape).to(parameter.device)
        parameter.grad = part if parameter.grad is None else parameter.grad.add_(part)
        offset = end


def server_control(last: Control, adapter: Vector, round_number: int, config: Config) -> Vector:
    """c of a round: the negative of all that the server has stepped since `last`, as a gradient. (size,) float32."""
    strategy = config.strategy
    rates = sum(
        strategy.server_learning_rate
        * schedule_factor(done - 1, config.num_server_rounds, strategy.warmup_rounds, strategy.schedule)
        for done in range(last.round, round_number)
    )
    moved = last.adapter.astype(np.float64) - adapter
    return (moved / (rates * config.train.sgd_learning_rate * last.steps)).astype(np.float32)


def correction_of(last: Control | None, adapter: Vector, round_number: int, config: Config) -> Vector:
    """c - c_k, (size,) float32; zeros in a bank's first round."""
    if last is None:
        return np.zeros_like(adapter)
    return server_control(last, adapter, round_number, config) - last.own


def control_after(
    correction: Vector, adapter: Vector, delta: Vector, steps: int, round_number: int, config: Config
) -> Control:
    """What the bank remembers of a round of `steps` steps: c_k <- c_k - c - delta / (K rate)."""
    own = -correction - delta / np.float32(steps * config.train.sgd_learning_rate)
    return Control(round_number, own, adapter.copy(), steps)
