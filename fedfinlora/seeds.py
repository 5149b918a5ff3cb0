"""Every random draw comes from a generator seeded by (run seed, purpose, and what else distinguishes the draws)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def derive_seed(seed: int, purpose: str, *parts: int | str) -> int:
    """A 63-bit seed from SHA-256 of its arguments: independent of Python's hash seed, the platform and call order."""
    text = "\x1f".join([str(seed), purpose, *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *parts: int | str) -> np.random.Generator:
    """A NumPy generator for one purpose, e.g. `generator(0, "partition")` or `generator(0, "sampling",
    round_number)`.
    """
    import numpy as np

    return np.random.default_rng(derive_seed(seed, purpose, *parts))
