"""Randomness that a guarantee rests on: which units a step takes, and the noise. Never from the run's seed, which everybody knows.

The generator is seeded with 256 bits of the operating system's entropy each time. Samples are doubles of a numerical library: an
adversary who sees every bit of a noisy sum can learn something from how floating-point numbers are spaced (Mironov 2012); rounding to
float32 and the sum over many steps blur that, but no proof covers it (docs/privacy.md).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fedfinlora.adapter import Vector
from fedfinlora.seeds import generator

if TYPE_CHECKING:
    import numpy as np


def secret_generator() -> np.random.Generator:
    """A generator whose stream nobody can repeat."""
    import numpy as np

    return np.random.Generator(np.random.PCG64DXSM(int.from_bytes(os.urandom(32), "big")))


def reproducible_generator(seed: int, bank: str, step: int) -> np.random.Generator:
    """For tests only (privacy.reproducible_noise): who knows the seed can take the noise away again."""
    return generator(seed, "reproducible noise", bank, step)


def poisson_sample(units: int, sampling_rate: float, draw: np.random.Generator) -> list[int]:
    """Each of `units` units with probability `sampling_rate`, independently. May be empty."""
    taken: list[int] = (draw.random(units) < sampling_rate).nonzero()[0].tolist()
    return taken


def gaussian(size: int, deviation: float, draw: np.random.Generator) -> Vector:
    """(size,) float32, N(0, deviation^2) each."""
    import numpy as np

    return (draw.standard_normal(size) * deviation).astype(np.float32)
