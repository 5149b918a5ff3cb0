"""A vector as Flower's arrays, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedfinlora.model.adapter import Vector

ARRAY_KEY = "vector"
PART_NUMBERS = 2**20
"""A vector travels in parts of so many numbers: Flower takes four times an array's size in memory to join it."""


FLAT_FLOAT32 = "fedfinlora.flat-float32"
"""Flower's `stype` of our arrays."""


def part_names(size: int) -> list[str]:
    """The names of the arrays in which a vector of `size` numbers travels.

    >>> part_names(1), part_names(2**20 + 1)
    (['vector'], ['vector', 'vector-1'])
    """
    return [ARRAY_KEY, *(f"{ARRAY_KEY}-{part}" for part in range(1, -(-size // PART_NUMBERS)))]


def to_arrays(vector: Vector) -> dict[str, Any]:
    """A vector of shape (size,) as Flower's Arrays of PART_NUMBERS numbers each, the last with what is left."""
    starts = range(0, max(1, vector.size), PART_NUMBERS)
    parts = [to_array(vector[start : start + PART_NUMBERS]) for start in starts]
    return dict(zip(part_names(vector.size), parts, strict=True))


def from_arrays(arrays: Mapping[str, Any], size: int) -> Vector:
    """The vector again, (size,) float32. ValueError unless there are exactly its parts."""
    names = part_names(size)
    if set(arrays) != set(names):
        raise ValueError(f"it comes in {len(arrays)} parts, expected {len(names)} for {size} numbers")
    if len(names) == 1:
        return from_array(arrays[ARRAY_KEY], size)
    vector = np.empty(size, np.float32)
    for name, start in zip(names, range(0, size, PART_NUMBERS), strict=True):
        part = vector[start : start + PART_NUMBERS]
        part[:] = from_array(arrays[name], part.size)
    return vector


def to_array(vector: Vector) -> Any:
    """A vector of shape (size,) as Flower's Array: the bare little-endian float32 numbers."""
    from flwr.app import Array

    data = np.ascontiguousarray(vector, dtype=vector.dtype.newbyteorder("<")).tobytes()
    return Array(dtype=str(vector.dtype), shape=tuple(vector.shape), stype=FLAT_FLOAT32, data=data)


def from_array(array: Any, size: int) -> Vector:
    """(size,) float32, read-only and in place. ValueError unless format, shape and length are exactly right."""
    if array.stype != FLAT_FLOAT32 or array.dtype != "float32":
        raise ValueError("its numbers are not flat float32")
    if tuple(array.shape) != (size,) or len(array.data) != 4 * size:
        raise ValueError(f"it has {len(array.data)} bytes, expected {4 * size} for {size} numbers")
    return np.frombuffer(array.data, dtype="<f4").astype(np.float32, copy=False)
