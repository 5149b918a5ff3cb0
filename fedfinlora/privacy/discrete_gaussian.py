"""Exact samples of the discrete Gaussian, N_Z(0, S^2): P(x) proportional to exp(-x^2 / (2 S^2)) on the integers
(Canonne, Kamath and Steinke 2020, definition 1).

Floating-point Gaussians have gaps that give a secret away (Mironov 2012); here every number is an integer and every
probability exact. S is a power of two, 2^L with 8 <= L <= 23: the noise chooses the grid (`fedfinlora.privacy.grid`),
not the other way round.

The magnitude k = m y + j, with m = 2^(L - 8), is drawn in two parts (compare their algorithm 3): y by inversion of the
exact distribution P(y) proportional to exp(-y^2 / (2 * 256^2)), y >= 0, from a table of 64-bit thresholds; j uniform in
[0, m); accepted with probability exp(-(k^2 - (m y)^2) / (2 S^2)), which is above 0.94. A sign is drawn, and minus zero
rejected. A coin that 64 bits do not decide, in the table or against the exponential's bounds 1 - e <= exp(-e) <= 1 - e
+ e^2 / 2, is decided by further bits and decimal arithmetic of as many digits as it takes: about one sample in a
million. tests/privacy/test_discrete_gaussian.py compares with exact probabilities.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedfinlora.privacy.randomness import Stream

    Integers = NDArray[np.int64]
    Words = NDArray[np.uint64]

LOG2_TABLE_SCALE = 8
"""The table's distribution has scale 2^8."""
LEAST_LOG2_SCALE, LARGEST_LOG2_SCALE = LOG2_TABLE_SCALE, 23
TABLE_ENTRIES = 10 * 2**LOG2_TABLE_SCALE
"""Ten scales: P(y beyond) is about 2^-76, so more bits decide the last threshold."""
DIGITS = 80
BLOCK = 2**15
"""Samples that are worked on together, so that they stay in the processor's cache."""


def discrete_gaussian(size: int, log2_scale: int, stream: Stream) -> Integers:
    """(size,) int64: independent samples of N_Z(0, 2^(2 log2_scale)). ValueError for a scale outside [2^8, 2^23]."""
    import numpy as np

    if not LEAST_LOG2_SCALE <= log2_scale <= LARGEST_LOG2_SCALE:
        raise ValueError(f"the scale 2^{log2_scale} is outside [2^{LEAST_LOG2_SCALE}, 2^{LARGEST_LOG2_SCALE}]")
    found = np.empty(size, np.int64)
    filled = 0
    while filled < size:
        accepted = _proposals(min(BLOCK, size - filled), log2_scale, stream)
        found[filled : filled + accepted.size] = accepted
        filled += accepted.size
    return found


def _proposals(count: int, log2_scale: int, stream: Stream) -> Integers:
    """The accepted ones of `count` proposals, in order."""
    import numpy as np

    words = stream.words(2 * count)
    magnitude = _by_inversion(words[:count], stream)
    other = words[count:]
    # Of the second word: the lowest bit is the sign, the next L - 8 are j, the other t are the coin V, uniform in [0,
    # 2^t).
    j_bits = log2_scale - LOG2_TABLE_SCALE
    coin_bits = 63 - j_bits
    j = ((other >> np.uint64(1)) & np.uint64((1 << j_bits) - 1)).view(np.int64)
    coin = (other >> np.uint64(1 + j_bits)).view(np.int64)
    start = magnitude << j_bits
    # e = (k^2 - start^2) / (2 S^2) as a multiple of 2^-t, exactly: t >= 2 L + 1 for L up to 23.
    exponent = (j * (2 * start + j)) << (coin_bits - 2 * log2_scale - 1)
    accepted = coin >= exponent  # V / 2^t >= e, so that U = 1 - (V + ...) / 2^t <= 1 - e <= exp(-e)
    for place in (~accepted).nonzero()[0].tolist():
        accepted[place] = _accepted_beyond(int(coin[place]), int(exponent[place]), coin_bits, stream)
    magnitude = start + j
    sign = (other & np.uint64(1)).view(np.int64)
    accepted &= (magnitude > 0) | (sign == 0)
    return ((1 - 2 * sign) * magnitude)[accepted]


def _accepted_beyond(coin: int, exponent: int, bits: int, stream: Stream) -> bool:
    """Whether U <= exp(-e), for 1 - U in [coin, coin + 1) / 2^bits and e = exponent / 2^bits, where the coin is below
    e: certainly not if 1 - U < e - e^2 / 2, which is seen first; else by as many further bits as it takes.
    """
    rate = Fraction(exponent, 2**bits)
    while True:
        lowest, highest = Fraction(coin, 2**bits), Fraction(coin + 1, 2**bits)
        if highest <= rate - rate * rate / 2:
            return False
        low, high = _one_minus_exp(rate, digits=20 + bits // 3)
        if lowest >= high:
            return True
        if highest <= low:
            return False
        coin, bits = (coin << 64) + int(stream.words(1)[0]), bits + 64


def _one_minus_exp(rate: Fraction, digits: int) -> tuple[Fraction, Fraction]:
    """Bounds of 1 - exp(-rate) that differ in the last of `digits` decimal digits."""
    with localcontext() as context:
        context.prec = digits + 10
        value = 1 - Fraction((-(Decimal(rate.numerator) / Decimal(rate.denominator))).exp())
    wide = Fraction(1, 10**digits)
    return value - wide, value + wide


def _by_inversion(words: Words, stream: Stream) -> Integers:
    """(n,) int64, y >= 0 with P(y) proportional to exp(-y^2 / (2 * 256^2)): the first y with U < F(y), U in [word, word
    + 1) / 2^64.
    """
    import numpy as np

    thresholds, guide = _table()
    found = guide[(words >> np.uint64(48)).view(np.int64)]
    found += words > thresholds[found]
    for _ in range(2):
        found += words > thresholds[found]
    undecided = words > thresholds[found]
    if undecided.any():
        found[undecided] = np.searchsorted(thresholds, words[undecided], side="left")
    for place in (words == thresholds[found]).nonzero()[0].tolist():
        found[place] = _beyond(int(words[place]), int(found[place]), stream)
    return found


def _beyond(word: int, first: int, stream: Stream) -> int:
    """The y of a U that shares its first 64 bits with F(first), by further bits."""
    bits, y = 64, first
    while True:
        word, bits = (word << 64) + int(stream.words(1)[0]), bits + 64
        digits = bits // 3 + 20
        while True:
            low, high = _cumulative(y, digits)
            if Fraction(word + 1, 2**bits) <= low:
                return y
            if Fraction(word, 2**bits) < high:
                break  # more bits
            y += 1


@lru_cache(maxsize=1)
def _table() -> tuple[Words, Integers]:
    """(floor(2^64 F(y)) for y below TABLE_ENTRIES, the first y for each value of U's first 16 bits)."""
    import numpy as np

    with localcontext() as context:
        context.prec = DIGITS
        sums, total = _partial_sums(DIGITS)
        values = [int((sums[y] / total) * 2**64) for y in range(TABLE_ENTRIES)]
    thresholds = np.array([min(value, 2**64 - 1) for value in values], np.uint64)
    starts = np.arange(2**16, dtype=np.uint64) << np.uint64(48)
    return thresholds, np.searchsorted(thresholds, starts, side="left").astype(np.int64)


def _cumulative(y: int, digits: int) -> tuple[Fraction, Fraction]:
    """Bounds of F(y) that differ in the last of `digits` decimal digits."""
    with localcontext() as context:
        context.prec = digits + 20
        sums, total = _partial_sums(digits + 20)
        value = Fraction(sums[min(y, len(sums) - 1)] / total)
    wide = Fraction(1, 10**digits)
    return value - wide, value + wide


@lru_cache(maxsize=4)
def _partial_sums(digits: int) -> tuple[list[Decimal], Decimal]:
    """(sums of exp(-i^2 / (2 * 256^2)) for i up to y, their limit), until a further one no longer counts at so many
    digits.
    """
    with localcontext() as context:
        context.prec = digits
        ratio = (Decimal(-1) / Decimal(2 ** (2 * LOG2_TABLE_SCALE + 1))).exp()
        term, step, square = Decimal(1), ratio, ratio * ratio
        sums = [Decimal(1)]
        while term > Decimal(10) ** -digits or len(sums) < TABLE_ENTRIES:
            term, step = term * step, step * square
            sums.append(sums[-1] + term)
    return sums, sums[-1]
