"""Second moments as one mean for each tensor of the adapter: what banks and server exchange under
strategy=fedadamw_local (FedAdamW: Liu, Shang, Zhu, Liu, Liu and Liu 2025, arXiv 2510.27486, section 4).

A block is a tensor: A or B of a layer. SmolLM2-135M with q, k and v has 180 of them, Llama 3.1 8B 192. Means travel as
text in the head of request and reply, so that they are signed, kept and hashed with it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from fedfinlora.model.adapter import Layout, Vector

MOST_MEAN = 1e16
"""Of a block without train.clip_norm: a gradient of norm 1e8 in a single number."""
ROUNDING = 1e-3
"""By how much a mean of float32 may exceed its bound, as a share of it."""
NO_MEANS: Vector = np.zeros(0, np.float32)
"""Before the first round: second moments start at zero."""


def block_means(vector: Vector, layout: Layout) -> Vector:
    """The mean of each tensor's numbers, (tensors,) float32, of a vector of shape (size,)."""
    return np.array([view.mean(dtype=np.float64) for view in layout.views(vector).values()], np.float32)


def spread(means: Vector, layout: Layout) -> Vector:
    """A vector of shape (size,) float32 with each tensor's mean in all its places."""
    return np.repeat(means, [prod(shape) for shape in layout.shapes]).astype(np.float32)


def averaged(means: Sequence[Vector], weights: Sequence[float]) -> NDArray[np.float64]:
    """sum_k w_k means_k / sum_k w_k, (tensors,) float64, in the order given."""
    total = np.zeros(means[0].shape, np.float64)
    for own, weight in zip(means, weights, strict=True):
        total += np.float64(weight) * own
    return total / np.float64(sum(weights))


def fault_in(means: Vector, layout: Layout, clip_norm: float) -> str:
    """What is wrong with means that arrived; "" where they can be second moments of this adapter.

    The squares of a clipped gradient add up to clip_norm squared at most, in each tensor too, and a second moment is a
    mean of such squares over steps.
    """
    if means.shape != (len(layout.shapes),):
        return f"{means.size} means for {len(layout.shapes)} tensors"
    if not np.isfinite(means).all():
        return "a mean is NaN or infinite"
    if (means < 0).any():
        return "a mean of squares is below 0"
    sizes = np.array([prod(shape) for shape in layout.shapes], np.float64)
    most = clip_norm**2 / sizes if clip_norm else np.full(sizes.shape, MOST_MEAN)
    if (means > most * (1 + ROUNDING)).any():
        return f"a mean is larger than train.clip_norm={clip_norm:g} allows"
    return ""


def to_text(means: Vector) -> str:
    """Base64 of little-endian float32.

    >>> to_text(np.array([1.0], np.float32)), from_text("AACAPw==")
    ('AACAPw==', array([1.], dtype=float32))
    """
    return base64.b64encode(np.ascontiguousarray(means, "<f4").tobytes()).decode("ascii")


def from_text(text: str) -> Vector:
    """The means of a text, (tensors,) float32, not yet checked. ValueError for anything else."""
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError("second-moments is not base64") from error
    if len(content) % 4 or to_text(found := np.frombuffer(content, "<f4").astype(np.float32)) != text:
        raise ValueError("second-moments is not an array of float32")
    return found
