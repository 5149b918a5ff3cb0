"""Whether noise and draws are as booked: what two runs of the same step differ by, and how many units a step draws.

Two runs of one step in which every unit takes part differ by their noises alone: each number of the difference is N(0,
2 (sigma C)^2), so the sum of n squares over 2 (sigma C)^2 is chi-squared with n degrees of freedom. Noise that is too
small, too large, missing in one tensor, or the same twice is far from it. The draws of a step are binomial.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from fedfinlora.privacy.audit import HOLDS, NOISE, REFUTED, Check

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIGNIFICANCE = 1e-3
"""Probability that one measurement refutes what is true; a refutation is measured again."""
LEAST_NUMBERS = 30
"""A tensor of fewer numbers is not tested apart."""


@dataclass(frozen=True)
class NoiseTest:
    """One tensor's noise, or all of it."""

    name: str
    numbers: int
    ratio: float
    """Measured standard deviation over the booked one."""
    p_value: float
    """Probability of a ratio as far from 1 under the booked noise, two-sided."""

    def wrong(self, significance: float) -> bool:
        """Whether the booked noise is refuted."""
        return self.p_value < significance


def noise_test(name: str, difference: NDArray[np.floating[Any]], noise_std: float) -> NoiseTest:
    """Test the difference (n,) of two steps against N(0, 2 noise_std^2) each. `noise_std` is the standard deviation of
    one step's noise.

    >>> import numpy as np
    >>> noise_test("all", np.full(1000, 2.0**0.5), 1.0).ratio
    1.0
    >>> noise_test("all", np.zeros(1000), 1.0).wrong(0.001)
    True
    """
    import numpy as np
    from scipy.stats import chi2

    mean_square = float(np.mean(np.square(difference, dtype=np.float64))) / (2 * noise_std**2)
    statistic, freedom = mean_square * len(difference), len(difference)
    one_sided = min(float(chi2.cdf(statistic, freedom)), float(chi2.sf(statistic, freedom)))
    return NoiseTest(name, freedom, math.sqrt(mean_square), min(1.0, 2 * one_sided))


def noise_tests(
    difference: NDArray[np.floating[Any]], noise_std: float, tensors: Mapping[str, NDArray[np.floating[Any]]]
) -> tuple[NoiseTest, ...]:
    """All numbers together first, then each tensor of LEAST_NUMBERS or more; `tensors`: name -> its part of the
    difference, of any shape.
    """
    parts = [(name, part.reshape(-1)) for name, part in tensors.items() if part.size >= LEAST_NUMBERS]
    return (
        noise_test("all tensors", difference, noise_std),
        *(noise_test(name, part, noise_std) for name, part in parts),
    )


def smallest_deviation(numbers: int, significance: float) -> float:
    """How far from 1 a ratio must be to be seen with `numbers` numbers: z / sqrt(2 n).

    >>> round(smallest_deviation(50_000, 0.05), 4)
    0.0062
    """
    from scipy.special import ndtri

    return float(ndtri(1 - significance / 2)) / math.sqrt(2 * numbers)


def draws_p_value(drawn: int, trials: int, rate: float) -> float:
    """Probability of a number of drawn units as far from trials times rate, two-sided.

    >>> draws_p_value(500, 1000, 0.5)
    1.0
    >>> draws_p_value(1000, 1000, 0.5) < 1e-9
    True
    """
    from scipy.stats import binomtest

    return float(binomtest(drawn, trials, min(1.0, rate)).pvalue)


@dataclass(frozen=True)
class Draws:
    """How many units the steps of an audit drew."""

    drawn: int
    trials: int
    rate: float
    """Booked."""

    @property
    def p_value(self) -> float:
        """Two-sided."""
        return draws_p_value(self.drawn, self.trials, self.rate)

    @property
    def smallest_seen(self) -> float:
        """How far a rate must be from the booked one, relative to it, to be seen at SIGNIFICANCE / 2 (by the normal
        distribution).
        """
        from scipy.special import ndtri

        return float(ndtri(1 - SIGNIFICANCE / 4)) * math.sqrt((1 - self.rate) / (self.rate * self.trials))


def measured_again(measure: Callable[[], Check]) -> Check:
    """What `measure` finds; where that refutes, what it finds with fresh noise and draws: the truth is refuted in
    SIGNIFICANCE^2 of all audits, once in a million.
    """
    first = measure()
    if first.verdict != REFUTED:
        return first
    second = measure()
    words = "it was refuted twice" if second.verdict == REFUTED else "a first measurement was further off"
    return replace(second, found=f"{second.found}; {words}")


def noise_check(tests: Sequence[NoiseTest], draws: Draws | None) -> Check:
    """Refuted where any tensor's noise, or the number of drawn units, has a probability below its part of
    SIGNIFICANCE under what is booked.

    Half of SIGNIFICANCE is for the noise, all tensors together and each alone, and half for the draws.
    """
    whole, parts = tests[0], tests[1:]
    each = SIGNIFICANCE / (2 if draws else 1) / 2
    wrong = [whole.name] if whole.wrong(each) else []
    wrong += [part.name for part in parts if part.wrong(each / len(parts))]
    found = f"the noise has {whole.ratio:.4f} of the booked standard deviation"
    at_most = f"{whole.numbers:,} numbers: {smallest_deviation(whole.numbers, each):.2%} more or less is seen"
    if parts:
        least = min(part.numbers for part in parts)
        at_most += f", in the smallest of {len(parts)} tensors {smallest_deviation(least, each / len(parts)):.0%}"
    if wrong:
        found += f", which is wrong for {wrong[0]}" + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else "")
    if draws:
        found += f"; {draws.drawn} of {draws.trials} units were drawn at the booked rate {draws.rate:.4g}"
        at_most += f"; a rate {draws.smallest_seen:.0%} higher or lower is seen"
        if draws.p_value < SIGNIFICANCE / 2:
            wrong.append("draws")
            found += ", which is wrong"
    return Check(
        NOISE,
        REFUTED if wrong else HOLDS,
        found,
        f"{at_most}; confidence {1 - SIGNIFICANCE:.1%}",
        figures={
            "wrong": wrong,
            "tests": [asdict(test) for test in tests],
            "draws": asdict(draws) | {"p_value": draws.p_value} if draws else None,
        },
    )
