"""Which rows of A and columns of B a bank trains: without the last strategy.residual_rank of them, which hold what
averaging lost (`server_app.strategies.residual`), and of the others as many as its own rank (strategy.ranks).

The adapter travels whole in both cases, so the wire and its checks know nothing of either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from fedfinlora.config.schema import Config
from fedfinlora.model.adapter import Layout, Vector, trainable

if TYPE_CHECKING:
    import torch
    from torch import nn


@contextmanager
def frozen_columns(model: nn.Module, count: int) -> Iterator[None]:
    """While inside, the gradients of the last `count` rows of each A and columns of each B are zeros, so that neither
    clipping nor Adam sees them. They are still computed with.
    """
    handles = []
    for name, parameter in trainable(model).items() if count else ():
        if ".lora_A." in name:
            handles.append(parameter.register_hook(lambda gradient: _zeroed(gradient, count, 0)))
        elif ".lora_B." in name:
            handles.append(parameter.register_hook(lambda gradient: _zeroed(gradient, count, 1)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
    return ""
