"""The replies of a round as the server's rules see them, and their deltas on the aggregator's disk until all have come.

The mean must not depend on who answers first, so it is summed in a fixed order. In memory there is one delta at a time.
The file has no name: it ends with the process.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedfinlora.errors import UserError
from fedfinlora.files import unwritable
from fedfinlora.model.adapter import Factors, Layout, Vector
from fedfinlora.wire.messages import Figures, Reply


class StoredDeltas:
    """Deltas by bank, each of shape (size,) float32."""

    def __init__(self, folder: Path, size: int) -> None:
        """Keep them in `folder`. UserError where nothing can be written there."""
        self._folder, self._bytes = folder, 4 * size
        self._places: dict[str, int] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise unwritable(folder, error) from error

    def keep(self, bank: str, delta: Vector) -> None:
        """Write one down. UserError where the disk does not take it."""
        content = memoryview(np.ascontiguousarray(delta, np.float32).view(np.uint8).data)
        assert bank not in self._places
        assert len(content) == self._bytes
        place = len(self._places) * self._bytes
        try:
            written = 0
            while written < len(content):
                written += os.pwrite(self._file.fileno(), content[written:], place + written)
        except OSError as error:
            raise unwritable(self._folder, error) from error
        self._places[bank] = place

    def read(self, banks: Iterable[str], block: slice) -> Iterator[Vector]:
        """Numbers block.start to block.stop of the deltas of `banks`, in that order, one after the other in the same
        memory: each is good until the next is asked for.
        """
        numbers = np.empty(block.stop - block.start, np.float32)
        content = memoryview(numbers.view(np.uint8).data)
        for bank in banks:
            read, place = 0, self._places[bank] + 4 * block.start
            while read < len(content):
                got = os.preadv(self._file.fileno(), [content[read:]], place + read)
                if not got:
                    raise UserError(f"A delta in {self._folder} cannot be read again.")
                read += got
            yield numbers

    def one(self, bank: str, block: slice) -> Vector:
        """Those numbers of one bank's delta."""
        return next(iter(self.read([bank], block)))

    def __enter__(self) -> StoredDeltas:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class Mean(Protocol):
    """The weighted sum of a round's updates over their weights, all that privacy=bank and secure aggregation leave."""

    def mean(self, block: slice) -> NDArray[np.float64]:
        """Numbers block.start to block.stop of it, float64."""


@dataclass(frozen=True)
class Replies:
    """The checked replies of a round, in the order of their banks. The updates are on the disk: ask for a block or a
    layer at a time.
    """

    banks: tuple[str, ...]
    weights: tuple[float, ...]
    """As strategy.weighting and strategy.max_share have it; empty where nothing is weighed."""
    metrics: tuple[Figures, ...]
    """Rows, tokens, losses, seconds, epsilon, as each bank reports them; NaN where it does not."""
    read: Callable[[slice], Iterable[Vector]]
    """Block -> these numbers of each update."""
    layout: Layout | None = None
    """None where only vectors are known (an audit, `verify`)."""
    second_moments: tuple[Vector, ...] = ()
    """Each bank's means by tensor, (tensors,) float32; empty where the round sends none."""

    def __len__(self) -> int:
        return len(self.banks)

    def updates(self, block: slice) -> Iterable[Vector]:
        """These numbers of each bank's update (local adapter minus global one), float32, one after the other: each is
        good until the next is asked for.
        """
        return self.read(block)

    def mean(self, block: slice) -> NDArray[np.float64]:
        """These numbers of the weighted mean."""
        return weighted_mean(self.updates(block), self.weights)

    @property
    def layers(self) -> tuple[Factors, ...]:
        """Where A and B of each layer are in a vector. UserError where that is not known."""
        if self.layout is None:
            raise UserError(
                "This rule reads A and B of each layer, and here only the adapter's numbers are known, not its layers."
            )
        return self.layout.layers

    def factors(self, layer: Factors) -> Iterator[tuple[Vector, Vector]]:
        """Of each bank's update the change of A, (rank, d_in), and of B, (d_out, rank), in a layer; each is good until
        the next is asked for.
        """
        for a, b in zip(self.updates(layer.a), self.updates(layer.b), strict=True):
            yield a.reshape(layer.a_shape), b.reshape(layer.b_shape)


def replies_of(
    checked: Sequence[Reply],
    weights: Sequence[float] | None,
    layout: Layout | None = None,
    read: Callable[[slice], Iterable[Vector]] | None = None,
) -> Replies:
    """`checked` as a rule sees them; `read` gives their updates in the same order where they do not hold them."""
    return Replies(
        tuple(reply.bank for reply in checked),
        tuple(weights or ()),
        tuple(reply.figures for reply in checked),
        read or (lambda block: (reply.delta[block] for reply in checked)),
        layout,
        tuple(reply.second_moments for reply in checked if reply.second_moments.size),
    )


def weighted_mean(deltas: Iterable[NDArray[np.float32]], weights: Sequence[float]) -> NDArray[np.float64]:
    """sum_k w_k delta_k / sum_k w_k in float64. Deltas: K vectors of shape (size,), one at a time; weights: K numbers
    above 0.

    Summed in the order given, so a caller that sorts by bank gets the same bytes whoever answers first. Raises
    ValueError for no deltas, another number of them, unequal shapes and weights that are not positive and finite.
    """
    if not weights or not all(np.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"weights must be positive and finite: {list(weights)}")
    total: NDArray[np.float64] | None = None
    for delta, weight in zip(deltas, weights, strict=True):
        if total is None:
            total = np.zeros(delta.shape, np.float64)
        if delta.shape != total.shape:
            raise ValueError("the deltas have different shapes")
        total += np.float64(weight) * delta
    assert total is not None
    total /= np.float64(sum(weights))
    return total
