"""Which parameters of an adapter a round trains and sends: all of them, or with strategy=rolora the factors B and A in
turn (RoLoRA: Chen, Guo, Ju, Dalal, Zhu and Khisti 2025, arXiv 2502.01755, algorithm 1).

While one factor is the same at all banks, the mean of the other gives exactly the mean of the products, and a bank
sends half of the bytes. B comes first: it starts at zero, and as long as it is zero A has no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedfinlora.model.adapter import Layout, Vector, norm

FACTORS = ("lora_B", "lora_A")
"""In the order of their turns."""
IN_TURN = ("rolora",)
"""Rules under which the factors take turns."""
DISTANCE_DIGITS = 3


@dataclass(frozen=True)
class Part:
    """Some of an adapter's parameters."""

    slices: tuple[slice, ...]
    whole_size: int

    @property
    def size(self) -> int:
        """How many parameters it has."""
        return sum(part.stop - part.start for part in self.slices)

    def of(self, vector: Vector) -> Vector:
        """These of a vector of shape (whole_size,), (size,) float32."""
        return np.concatenate([vector[part] for part in self.slices])

    def whole(self, values: Vector) -> Vector:
        """A vector of shape (whole_size,) float32 with these values, (size,), and zeros elsewhere."""
        vector, offset = np.zeros(self.whole_size, np.float32), 0
        for part in self.slices:
            end = offset + part.stop - part.start
            vector[part] = values[offset:end]
            offset = end
        return vector


@dataclass(frozen=True)
class DistanceOnly(Part):
    """In the place of an update how long it is: one number, the Euclidean norm, to DISTANCE_DIGITS significant digits
    (strategy.sync=drift). Two answers whose rows differ by one do not identify that row by their last digits.

    >>> DistanceOnly((), 2).of(np.array([3.0, 4.014], np.float32)).tolist() == [np.float32(5.01)]
    True
    """

    @property
    def size(self) -> int:
        return 1

    def of(self, vector: Vector) -> Vector:
        return np.array([float(f"{norm(vector):.{DISTANCE_DIGITS}g}")], np.float32)

    def whole(self, values: Vector) -> Vector:
        """The number as it came, (1,): its norm is that of the update."""
        return values


def trained_factor(strategy: str, round_number: int) -> str:
    """Name of the factor that a round (from 1) trains; "" = both.

    >>> [trained_factor("rolora", number) for number in (1, 2, 3)], trained_factor("fedavg", 1)
    (['lora_B', 'lora_A', 'lora_B'], '')
    """
    return FACTORS[(round_number - 1) % len(FACTORS)] if strategy in IN_TURN else ""


def sent_part(strategy: str, layout: Layout, round_number: int) -> Part | None:
    """What a bank sends in a round (from 1); None = all of its update."""
    factor = trained_factor(strategy, round_number)
    if not factor:
        return None
    ends = (*layout.offsets[1:], layout.size)
    slices = (
        slice(start, end)
        for name, start, end in zip(layout.names, layout.offsets, ends, strict=True)
        if f".{factor}." in name
    )
    return Part(tuple(slices), layout.size)
