"""Randomness that a guarantee rests on: which units a step takes, the noise, and dropout masks. Never from the run's
seed, which is public.

Every step has three ChaCha20 key streams (Bernstein 2008; RFC 8439) of its own, under separate 256-bit keys from the
operating system's entropy: one for the draws, one for the noise, one for dropout masks. Whoever learns some of the
noise, as a reader of a published update may, learns nothing of the draws.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]

KEY_BYTES = 32
REPRODUCIBLE_VARIABLE = "FEDFINLORA_REPRODUCIBLE_NOISE"
"""1 in a bank's (or with privacy=bank the server's) own environment: every draw comes from the run's seed. For tests;
voids the guarantee.
"""


class Stream:
    """One ChaCha20 key stream. The same key gives the same words again."""

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

        self._encryptor = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    def words(self, count: int) -> Words:
        """(count,) uint64, uniform and independent."""
        import numpy as np

        return np.frombuffer(self._encryptor.update(bytes(8 * count)), np.uint64)


@dataclass(frozen=True)
class Keys:
    """The keys of one step."""

    draws: bytes
    """Which units take part."""
    noise: bytes
    masks: bytes
    """Dropout: what of a unit's inputs is dropped."""


def secret_keys() -> Keys:
    """Keys that no one can repeat."""
    return Keys(*(os.urandom(KEY_BYTES) for _ in range(3)))


def reproducible_keys(seed: int, *parts: int | str) -> Keys:
    """The keys that a public seed gives, for tests: who knows the seed can take the noise away again."""

    def key(purpose: str) -> bytes:
        return hashlib.sha256(
            "\x1f".join(["reproducible noise", purpose, str(seed), *map(str, parts)]).encode()
        ).digest()

    return Keys(key("draws"), key("noise"), key("masks"))


def noise_is_reproducible() -> bool:
    """Whether this machine's own environment gives the guarantee up."""
    return os.environ.get(REPRODUCIBLE_VARIABLE, "") == "1"


def unit_seed(masks: bytes, unit: int) -> int:
    """A 63-bit seed for the dropout masks of one unit of one step, independent of what else is in the step."""
    digest = hashlib.blake2b(unit.to_bytes(8, "big"), key=masks, digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def poisson_sample(units: int, sampling_rate: float, stream: Stream) -> list[int]:
    """The units of a step: each of `units` with probability `sampling_rate`, independently. May be empty.

    A coin is a 64-bit integer below floor(rate * 2^64): the true probability is at most the stated one, by less than
    2^-64. The unit's number decides which word of the stream is its coin, so one unit more leaves the coins of those
    before it as they are.

    >>> poisson_sample(3, 1.0, Stream(bytes(32)))
    [0, 1, 2]
    """
    if sampling_rate >= 1:
        return list(range(units))
    numerator, denominator = float(sampling_rate).as_integer_ratio()
    taken: list[int] = (stream.words(units) < (numerator << 64) // denominator).nonzero()[0].tolist()
    return taken
