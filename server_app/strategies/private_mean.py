"""Bank-level central privacy: the trusted server hides whether a bank took part (McMahan, Ramage, Talwar and Zhang
2018, DP-FedAvg).

Each round every connected bank is drawn with probability q, secretly; the whole delta of each is clipped to norm S and
rounded to a grid of integers, the clipped deltas are summed with equal weights, noise of standard deviation z S is
added to the sum, and the sum is divided by the expected number of banks q K, however many replied. One bank moves the
sum by at most S, so a round is one step of the Poisson-subsampled Gaussian mechanism. Sums and noise are integers, the
noise discrete Gaussian (`fedfinlora.privacy.grid`), drawn from ChaCha20. How many banks were connected at the start, K,
is taken as known.

S is fixed, or follows a quantile of the norms (Andrew, Thakkar, McMahan and Ramaswamy 2021, algorithm 1): the number of
deltas within S is counted with its own noise, and S is multiplied by exp(-eta (share within S - quantile)). Both noises
together cost what z alone would cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from fedfinlora.errors import UserError
from fedfinlora.model.adapter import Vector, blocks, norm
from fedfinlora.privacy.grid import Grid
from fedfinlora.privacy.randomness import Stream
from fedfinlora.wire.messages import Reply
from server_app.central_privacy import BookedRound, CentralMechanism, book_round
from server_app.replies import Replies
from server_app.strategies.strategy import Arrays, ServerState, Strategy, Vector64

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedfinlora.run.opening import OpenRun

CLIP_NORM = "bank_clip_norm"
"""Name under which an adaptive clip norm, shape (1,), passes from round to round with the inner rule's vectors."""
LARGEST_EXACT = 2**62
"""Sums of squares below this are exact in int64."""


@dataclass(frozen=True)
class PrivateMean(Strategy):
    """A rule that sees the updates only through their noisy mean. Its own computations cost no further epsilon
    (post-processing).
    """

    inner: Strategy
    mechanism: CentralMechanism

    @classmethod
    def around(cls, inner: Strategy, mechanism: CentralMechanism) -> PrivateMean:
        """UserError for a rule that needs single replies."""
        if inner.needs != "sum":
            raise UserError(
                f"strategy={inner.config.name} needs each bank's reply on its own, and privacy=bank shows a rule only "
                "their sum. "
                "Choose a strategy that needs the sum, or privacy=example."
            )
        return cls(inner.config, inner.rounds, inner, mechanism)

    def first_arrays(self, layout_id: str) -> Arrays:
        return self.inner.first_arrays(layout_id)

    def book(self, run: OpenRun, banks: Sequence[str], state: ServerState) -> BookedRound:
        """The round after `state` in the server's ledger: whoever replies, it is spent before a bank is asked."""
        booked = book_round(run, self.mechanism, banks, state.round + 1)
        return replace(booked, privacy=replace(booked.privacy, clip_norm=self.clip_norm(state)))

    def sampled(self, banks: Sequence[str], seed: int, round_number: int) -> list[str]:
        """A secret Poisson sample, sorted; may be empty."""
        return self.mechanism.drawn(banks, round_number)

    @property
    def quorum(self) -> int:
        """None: an end of the run that depends on who is a member would reveal who is. Without replies the step is
        noise alone.
        """
        return 0

    def weights(self, replies: Sequence[Reply]) -> None:
        """Each bank counts the same, as `private_mean` has it."""

    def clip_norm(self, state: ServerState) -> float:
        """S of the round that follows `state`."""
        return float(state.arrays.get(CLIP_NORM, [self.mechanism.clip_norm])[0])

    def aggregate(self, state: ServerState, replies: Replies) -> ServerState:
        size, noise = state.adapter.size, Stream(self.mechanism.keys(state.round + 1).noise)
        deltas = replies.updates(slice(0, size))
        mean, clip_norm = private_mean(deltas, size, self.mechanism, self.clip_norm(state), noise)
        following = self.inner.aggregate(state, cast(Replies, OnlyMean(mean)))
        return replace(following, arrays={**following.arrays, CLIP_NORM: np.array([clip_norm])})


@dataclass(frozen=True)
class OnlyMean:
    """All that the inner rule sees of a round (`server_app.replies.Mean`)."""

    vector: Vector64
    """(size,)."""

    def mean(self, block: slice) -> Vector64:
        return self.vector[block]


def private_mean(
    deltas: Iterable[Vector], size: int, mechanism: CentralMechanism, clip_norm: float, noise: Stream
) -> tuple[NDArray[np.float64], float]:
    """(noisy mean of clipped deltas, (size,) float64; the next round's clip norm). Deltas: vectors of shape (size,) of
    the banks that replied, one at a time; none gives noise alone.

    Guarantee: one delta more or less moves the sum, in whole grid steps, by at most `Grid.bound_squared`, for any
    content of it.

    | edge case | what happens |
    |---|---|
    | a delta of zeros | stays one |
    | a delta with NaN or infinite numbers | counts as zeros |
    | clip norm 0, negative, NaN, infinite | ValueError of `Grid` |
    """
    grid = Grid(clip_norm, mechanism.delta_noise_multiplier, size)
    total, within, count = _sum_clipped(deltas, grid)
    # The same memory holds the integers and then the mean.
    mean = total.view(np.float64)
    for block in blocks(size):
        noisy = total[block] + grid.noise(total[block].size, noise)
        mean[block] = noisy * (grid.step / mechanism.expected_banks)
    return mean, _next_clip_norm(within, count, mechanism, clip_norm, noise)


def _sum_clipped(deltas: Iterable[Vector], grid: Grid) -> tuple[NDArray[np.int64], int, int]:
    """(sum of the clipped deltas in whole grid steps, (size,); how many were within the clip norm; how many there
    were)."""
    total = np.zeros(grid.size, np.int64)
    within = count = 0
    for delta in deltas:
        count += 1
        length = norm(delta)
        within += length <= grid.clip_norm
        _add_clipped(total, delta, grid, length)
    return total, within, count


def _add_clipped(total: NDArray[np.int64], delta: Vector, grid: Grid, length: float) -> None:
    """Add a delta of this length to `total`, both (size,), in whole grid steps of squared length `grid.bound_squared`
    at most: where rounding were to carry it further, which `grid.factor` leaves no room for, it is taken out again.
    """
    factor = grid.factor(length)
    if not factor:
        return

    def in_steps(block: slice) -> NDArray[np.int64]:
        scaled = delta[block].astype(np.float64)
        scaled *= factor
        return np.rint(scaled, out=scaled).astype(np.int64)

    squared = 0
    for block in blocks(total.size):
        steps = in_steps(block)
        squared += squared_length(steps)
        total[block] += steps
    if squared > grid.bound_squared:
        for block in blocks(total.size):
            total[block] -= in_steps(block)


def squared_length(steps: NDArray[np.int64]) -> int:
    """The exact sum of squares of integers.

    >>> squared_length(np.array([3, -4])), squared_length(np.array([2**40, 1]))
    (25, 1208925819614629174706177)
    """
    largest = max(int(steps.max(initial=0)), -int(steps.min(initial=0)))
    if largest**2 * steps.size < LARGEST_EXACT:
        return int(steps @ steps)
    return sum(step * step for step in steps.tolist())


def _next_clip_norm(within: int, deltas: int, mechanism: CentralMechanism, clip_norm: float, noise: Stream) -> float:
    """S exp(-eta (noisy share within S - quantile)); S itself where it is fixed.

    Each bank counts as +1/2 or -1/2, so that one more or less moves the sum by 1/2 and not by 1. A half is a whole
    number of grid steps, rounded down: the noise is at least what the accounting assumes.
    """
    if not mechanism.adaptive_quantile:
        return clip_norm
    grid = Grid(clip_norm=0.5, noise_multiplier=2 * mechanism.count_noise_std, size=1)
    half = math.floor(grid.bound_steps)
    noisy = ((2 * within - deltas) * half + int(grid.noise(1, noise)[0])) / (2 * half)
    share = noisy / mechanism.expected_banks + 0.5
    return float(clip_norm * math.exp(-mechanism.adaptive_rate * (share - mechanism.adaptive_quantile)))
