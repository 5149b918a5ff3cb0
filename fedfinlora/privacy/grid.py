"""The integer grid on which contributions are clipped, summed and made noisy: the proof covers what is computed.

A contribution (a unit's gradient, a bank's delta) is scaled and rounded to whole grid steps, and its squared length is
compared with the bound in exact integers: no floating-point rounding can lengthen it. Sums are exact (integers below
2^53 in float64), and the noise is the discrete Gaussian of scale S = 2^L steps
(`fedfinlora.privacy.discrete_gaussian`). For shifts by whole numbers its Renyi divergences are at most those of the
continuous Gaussian (Canonne, Kamath and Steinke 2020, proposition 5 and theorem 14), so the accounting of N(0, (sigma
C)^2 I) holds.

    step = sigma C / 2^L, the smallest L with C >= 1024 sqrt(d) steps: rounding moves a contribution by at most C / 2048

| edge case | what happens |
|---|---|
| noise multiplier 0 | the same grid, no noise: for tests and rounds that are booked as infinite |
| clip norm 0, negative, NaN, infinite | ValueError |
| a zero contribution | stays zero |
| NaN or infinite in a contribution | its length is not finite: the factor is 0, and the caller leaves it out |
| a noise multiplier above 0 and below 0.001 | UserError |
| a noise multiplier so large that 2^23 steps of noise would leave C fewer than 4 sqrt(d) | UserError |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fedfinlora.errors import UserError
from fedfinlora.privacy.discrete_gaussian import LARGEST_LOG2_SCALE, LEAST_LOG2_SCALE, discrete_gaussian

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedfinlora.privacy.randomness import Stream

STEPS_PER_ROOT = 1024
"""C over sqrt(d), in steps, at least."""
LEAST_STEPS_PER_ROOT = 4
LEAST_NOISE_MULTIPLIER = 1e-3
"""Less is no privacy, and contributions of so many steps would not be exact in float32."""


@dataclass(frozen=True)
class Grid:
    """The grid for contributions of `size` numbers with norm at most `clip_norm`."""

    clip_norm: float
    """C."""
    noise_multiplier: float
    """sigma: the noise's standard deviation over C."""
    size: int
    """d."""
    used_share: float = 1.0
    """What a contribution may take of C; the rest is kept free for other changes that belong to it."""

    def __post_init__(self) -> None:
        if not (0 < self.clip_norm < math.inf and 0 <= self.noise_multiplier < math.inf and self.size > 0):
            raise ValueError(f"{self} is no grid")
        if 0 < self.noise_multiplier < LEAST_NOISE_MULTIPLIER:
            raise UserError(
                f"A noise multiplier of {self.noise_multiplier:.3g} hides nothing: take {LEAST_NOISE_MULTIPLIER:g} or "
                "more."
            )
        if self.bound_steps < LEAST_STEPS_PER_ROOT * math.sqrt(self.size):
            raise UserError(
                f"A noise multiplier of {self.noise_multiplier:.3g} over {self.size:,} numbers is more than the grid "
                "of the noise allows. Raise privacy.epsilon, "
                "or train a smaller adapter."
            )

    @cached_property
    def log2_scale(self) -> int:
        """L; where there is no noise what noise of multiplier 1 would have."""
        wanted = (self.noise_multiplier or 1.0) * STEPS_PER_ROOT * math.sqrt(self.size)
        return min(max(math.ceil(math.log2(wanted)), LEAST_LOG2_SCALE), LARGEST_LOG2_SCALE)

    @property
    def step(self) -> float:
        """Length of a grid step."""
        return self.clip_norm / self.bound_steps

    @property
    def bound_steps(self) -> float:
        """C in steps: 2^L / sigma."""
        return 2.0**self.log2_scale / (self.noise_multiplier or 1.0)

    @property
    def bound_squared(self) -> int:
        """The largest squared length of a contribution, in whole steps squared."""
        return int((self.used_share * self.bound_steps) ** 2 * (1 - 2**-50))

    @property
    def target_steps(self) -> float:
        """To what length a longer contribution is scaled: rounding, by sqrt(d) / 2 at most, cannot then carry it past
        the bound.
        """
        return (self.used_share * self.bound_steps - math.sqrt(self.size) / 2) * (1 - 1e-6)

    def factor(self, norm: float) -> float:
        """By what a contribution of this length is multiplied before it is rounded; 0 for a length that is not finite.

        >>> grid = Grid(clip_norm=1.0, noise_multiplier=1.0, size=4)
        >>> [round(grid.factor(norm) * grid.step * norm, 3) for norm in (0.0, 0.5, 1.0, 8.0)]
        [0.0, 0.5, 1.0, 1.0]
        >>> grid.factor(float("inf")), grid.factor(float("nan"))
        (0.0, 0.0)
        """
        if not math.isfinite(norm):
            return 0.0
        return min(1 / self.step, self.target_steps / norm) if norm > 0 else 1 / self.step

    def noise(self, size: int, stream: Stream) -> NDArray[np.int64]:
        """(size,) int64 steps of noise: N_Z(0, 2^(2 L)) each, zeros where the multiplier is 0."""
        import numpy as np

        if not self.noise_multiplier:
            return np.zeros(size, np.int64)
        return discrete_gaussian(size, self.log2_scale, stream)
