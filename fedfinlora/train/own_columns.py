"""Which rows of A and columns of B a bank trains: without the last strategy.residual_rank of them, which hold what
averaging lost (`server_app.strategies.residual`), or the last peft.frozen_rank, which hold an earlier stage's adapter
(`fedfinlora.model.stacked`), and of the others as many as its own rank (strategy.ranks).

The adapter travels whole in all cases, so the wire and its checks know nothing of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.schema import Config
from fedfinlora.model.adapter import FROZEN_ENTRIES, Layout, Vector, trainable

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedfinlora.train.gradient_step import GradientStep, LocalRows, StepTaken

NOTHING_FROZEN = PeftConfig()


@contextmanager
def frozen_columns(model: nn.Module, count: int, peft: PeftConfig = NOTHING_FROZEN) -> Iterator[None]:
    """While inside, the gradients of the last `count` rows of each A and columns of each B, and of what `peft` says is
    frozen, are zeros, so that neither clipping nor Adam sees them. They are still computed with.
    """
    handles, marked = [], []
    for name, parameter in trainable(model).items():
        axis, frozen = _frozen_entries(name, parameter.shape, count, peft)
        if frozen:
            handles.append(parameter.register_hook(partial(_zeroed, count=frozen, axis=axis)))
            parameter.__dict__[FROZEN_ENTRIES] = axis, frozen
            marked.append(parameter)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in marked:
            del parameter.__dict__[FROZEN_ENTRIES]


def _frozen_entries(name: str, shape: Sequence[int], count: int, peft: PeftConfig) -> tuple[int, int]:
    """(axis of the ranks, how many entries at its end get no gradient) of a tensor with this saved name and shape."""
    layer, is_a, _ = name.partition(".lora_A.")
    axis = 0 if is_a else 1
    if not is_a and ".lora_B." not in name:
        return axis, 0
    layer = layer.partition(".lora_B.")[0]
    return axis, count + peft.frozen_rank if peft.trains(layer) else shape[axis]


@dataclass(frozen=True)
class OwnRanksStep:
    """A private step without the noise on ranks that are not trained: what is done to a private gradient costs no
    epsilon.
    """

    inner: GradientStep
    peft: PeftConfig

    @property
    def is_private(self) -> bool:
        return self.inner.is_private

    def take(self, local: LocalRows, step: int) -> StepTaken:
        taken = self.inner.take(local, step)
        for name, parameter in trainable(local.model).items():
            axis, frozen = _frozen_entries(name, parameter.shape, 0, self.peft)
            if parameter.grad is not None and frozen:
                parameter.grad.narrow(axis, parameter.shape[axis] - frozen, frozen).zero_()
        return taken


def trained_size(layout: Layout, config: Config) -> int:
    """How many numbers of the adapter the run's banks train: all but the ranks that strategy.residual_rank and
    peft.frozen_rank hold, and layers that peft.trained_modules leaves out.
    """
    size = 0
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        axis, frozen = _frozen_entries(name, shape, config.strategy.residual_rank, config.peft)
        size += prod(shape) - (prod(shape) // shape[axis] * frozen if frozen else 0)
    return size


def of_own_ranks(gradient: GradientStep, peft: PeftConfig) -> GradientStep:
    """A gradient step that moves no frozen rank. Plain ones see none of it already (`frozen_columns`)."""
    return OwnRanksStep(gradient, peft) if peft.frozen_rank and gradient.is_private else gradient


def _zeroed(gradient: torch.Tensor, count: int, axis: int) -> torch.Tensor:
    """A copy whose last `count` entries along `axis` are zeros."""
    kept = gradient.clone()
    kept.narrow(axis, gradient.shape[axis] - count, count).zero_()
    return kept


def start_of(adapter: Vector, layout: Layout, config: Config, bank: str) -> Vector:
    """The adapter that a bank begins with, (size,): the global one, without the ranks beyond its own. Where A's row and
    B's column are both zero their gradients are too, so they stay so.
    """
    rank = config.rank_of(bank)
    if rank == config.trained_rank:
        return adapter
    start = adapter.copy()
    for layer in layout.layers:
        a, b = layer.of(start)
        a[rank : config.trained_rank], b[:, rank : config.trained_rank] = 0.0, 0.0
    return start


def foreign_rank(delta: Vector, adapter: Vector, layout: Layout, config: Config, bank: str) -> str:
    """What is wrong with a reply whose local adapter, adapter + delta, has another rank than its bank announced, or
    moved what no bank trains; "" where nothing is. Both (size,).
    """
    rank, trained = config.rank_of(bank), config.trained_rank
    if rank == config.peft.rank:
        return ""
    for layer in layout.layers:
        (a, b), (change_a, change_b) = layer.of(adapter), layer.of(delta)
        beyond = (a[rank:trained] + change_a[rank:trained], b[:, rank:trained] + change_b[:, rank:trained])
        if any(np.any(part) for part in beyond):
            return f"The update has more than the {rank} ranks that strategy.ranks announces for the bank."
        if np.any(change_a[trained:]) or np.any(change_b[:, trained:]):
            return f"The update moves the last {config.peft.rank - trained} ranks, which no bank trains."
        if not config.peft.trains(layer.layer) and (np.any(change_a) or np.any(change_b)):
            return "The update moves layers that peft.trained_modules does not name."
    return ""


def with_frozen_ranks(moved: Vector, before: Vector, layout: Layout, config: Config) -> Vector:
    """`moved`, (size,), with the ranks of `before` that peft.frozen_rank and peft.trained_modules leave as they are:
    the noise of privacy=bank falls on them too, and what is done to a private sum costs no epsilon.
    """
    kept = moved.copy()
    for layer in layout.layers:
        (a, b), (before_a, before_b) = layer.of(kept), layer.of(before)
        first = config.trained_rank if config.peft.trains(layer.layer) else 0
        a[first:], b[:, first:] = before_a[first:], before_b[:, first:]
    return kept
