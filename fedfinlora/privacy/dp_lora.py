"""DP-LoRA as it was published (Liu, Zhu, Zha et al. 2023, arXiv 2312.17493, algorithm 1), for comparison.

A bank clips the gradient of its whole minibatch to norm C, that of all A together and that of all B together, adds N(0,
(sigma C)^2 I) to both, and steps; the server averages. The paper's epsilon takes C for what one row can change. But a
row can reverse the clipped gradient of a minibatch, 2 C, in A and B at once: 2 sqrt(2) C. Epsilon is stated here for
that, with every row in every step: the order of the rows comes from the run's public seed, so sampling gains nothing.
It then holds for any change of the bank's rows, since no minibatch can move the clipped gradients by more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedfinlora.model.adapter import trainable
from fedfinlora.privacy.accounting import Steps
from fedfinlora.privacy.grid import Grid
from fedfinlora.privacy.randomness import Stream, reproducible_keys, secret_keys

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from fedfinlora.model.packing import Example
    from fedfinlora.train.gradient_step import LocalRows, StepTaken

SENSITIVITY = 2 * math.sqrt(2)
"""How far (clipped gradient of A, clipped gradient of B) can move, over C."""
KINDS = (".lora_A.", ".lora_B.")
"""Clipped apart."""


@dataclass(frozen=True)
class PublishedMechanism:
    """What a bank does to the gradient of a minibatch."""

    clip_norm: float
    """C."""
    noise_multiplier: float
    """sigma, over C as in the paper."""
    seed: int
    bank: str
    reproducible: bool = False
    """Noise from the run's seed: for tests, and worth nothing as a guarantee."""

    is_private = True
    sensitivity = SENSITIVITY

    def spends(self, count: int) -> Steps:
        """What `count` steps are, as steps of a Gaussian mechanism that every row is in."""
        return Steps(1.0, self.noise_multiplier / SENSITIVITY, count)

    def among(
        self, rows: Sequence[Example], taking_part: NDArray[np.bool_]
    ) -> tuple[PublishedMechanism, Sequence[Example]]:
        """The same, and the rows that may take part."""
        return self, [row for row, is_in in zip(rows, taking_part, strict=True) if is_in]

    def take(self, local: LocalRows, step: int) -> StepTaken:
        """The noisy gradient of the rows whose turn it is (`fedfinlora.train.gradient_step`)."""
        taken = local.add_gradient(step)
        clip_and_noise(local.model, self, step)
        return taken


def clip_and_noise(model: nn.Module, mechanism: PublishedMechanism, step: int) -> None:
    """Change the parameters' `grad`, the gradient of a minibatch's mean loss, in place, on the integer grid. One that
    is not finite becomes noise alone.
    """
    import torch

    keys = reproducible_keys(mechanism.seed, mechanism.bank, step) if mechanism.reproducible else secret_keys()
    stream = Stream(keys.noise)
    for kind in KINDS:
        gradients = [
            parameter.grad
            for name, parameter in trainable(model).items()
            if kind in name and parameter.grad is not None
        ]
        if not gradients:
            continue
        grid = Grid(mechanism.clip_norm, mechanism.noise_multiplier, sum(gradient.numel() for gradient in gradients))
        norm = float(
            torch.stack([gradient.float().square().sum(dtype=torch.float64) for gradient in gradients]).sum().sqrt()
        )
        factor = grid.factor(norm)
        steps = [
            gradient.double().mul(factor).round_() if factor else torch.zeros_like(gradient, dtype=torch.float64)
            for gradient in gradients
        ]
        assert float(torch.stack([part.square().sum() for part in steps]).sum()) <= grid.bound_squared, (
            "longer than C after the clip"
        )
        for gradient, part in zip(gradients, steps, strict=True):
            noise = torch.from_numpy(grid.noise(gradient.numel(), stream)).reshape(gradient.shape).to(gradient.device)
            gradient.copy_((part + noise.to(torch.float64)) * grid.step)
