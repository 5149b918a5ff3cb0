"""Epsilon of the Poisson-subsampled Gaussian mechanism, and the noise that a wanted epsilon needs.

One optimiser step of DP-SGD (Abadi et al. 2016, algorithm 1): each unit is in the step with probability q (the sampling
rate), its gradient is clipped to norm C, and N(0, (sigma C)^2 I) is added to the sum once; sigma is the noise
multiplier. Adjacency: add or remove one unit. Epsilon is by PRV (Gopi, Lee and Wutschitz 2021), an upper bound up to
its numerical error of 0.01, which is added; RDP (Mironov 2017; Mironov, Talwar and Zhang 2019) is given too, a looser
bound. Both come from Opacus. At q = 1 the exact epsilon of the Gaussian mechanism is used instead (Balle and Wang 2018,
theorem 8; composition: Dong, Roth and Su 2022, corollary 3.3).
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

from fedfinlora.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger("fedfinlora.privacy")
LARGEST_EPSILON = 30.0
"""Where RDP's bound is beyond this, only it is given: PRV's tables would take gigabytes."""


LARGEST_MU = 1000.0
"""Beyond it the exact curve is beyond what floating-point numbers distinguish, and a bound from above is given."""


@dataclass(frozen=True, order=True)
class Steps:
    """Equal steps of the mechanism."""

    sampling_rate: float
    """q, in (0, 1]."""
    noise_multiplier: float
    """sigma: noise's standard deviation over the clip norm; 0 = no noise at all."""
    count: int

    def __post_init__(self) -> None:
        if not (0 < self.sampling_rate <= 1 and self.noise_multiplier >= 0 and self.count >= 0):
            raise ValueError(f"{self} are no steps of a mechanism")


class Accounted(Protocol):
    """A mechanism that accounts for itself: all that plan, ledger and audit need of it."""

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise over the clip norm."""

    @property
    def sensitivity(self) -> float:
        """How far one unit can move what the noise is added to, over the clip norm."""

    def spends(self, count: int) -> Steps:
        """What `count` steps of it are to the accountant."""


def accountant_name() -> str:
    """The accountant that epsilons come from, with its version."""
    return f"PRV of opacus {version('opacus')}"


def epsilon(spent: Iterable[Steps], delta: float) -> float:
    """Epsilon at `delta` of all steps together; infinite where a step had no noise.

    >>> round(epsilon([Steps(0.01, 1.0, 1000)], 1e-5), 1)
    1.8
    """
    together = _joined(spent)
    if not together:
        return 0.0
    if any(steps.noise_multiplier == 0 for steps in together):
        return math.inf
    if all(steps.sampling_rate == 1 for steps in together):
        return gaussian_epsilon(math.sqrt(sum(steps.count / steps.noise_multiplier**2 for steps in together)), delta)
    return max(0.0, _prv(together, delta))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of Gaussian noise on what one unit moves by at most `mu` standard deviations: the exact one.

    delta(eps) = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu) is solved for eps; steps compose as the root of the sum
    of their squared mu.

    >>> round(gaussian_epsilon(1.0, 1e-5), 2)
    4.38
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr

    def excess(eps: float) -> float:
        first, second = log_ndtr(mu / 2 - eps / mu), eps + log_ndtr(-mu / 2 - eps / mu)
        return float(first + math.log1p(-math.exp(min(second - first, -1e-300))) - math.log(delta))

    if mu <= 0:
        return 0.0
    highest = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1
    if mu > LARGEST_MU:
        return highest
    if excess(0.0) <= 0:
        return 0.0
    return float(brentq(excess, 0.0, highest, xtol=1e-9))


def rdp_epsilon(spent: Iterable[Steps], delta: float) -> float:
    """The same by RDP: never to be undercut by the truth, and looser."""
    together = _joined(spent)
    if not together:
        return 0.0
    if any(steps.noise_multiplier == 0 for steps in together):
        return math.inf
    return _rdp(together, delta)


def _rdp(together: tuple[Steps, ...], delta: float) -> float:
    from opacus.accountants.analysis.rdp import get_privacy_spent

    rdp = sum(steps.count * _rdp_of_step(steps.sampling_rate, steps.noise_multiplier) for steps in together)
    spent, _ = get_privacy_spent(orders=_orders(), rdp=rdp, delta=delta)
    return float(spent)


@lru_cache(maxsize=4096)
def _rdp_of_step(sampling_rate: float, noise_multiplier: float) -> NDArray[np.float64]:
    """(orders,): what one step costs; steps add up (Mironov 2017, proposition 1), so many different ones are no slower
    than one.
    """
    from opacus.accountants.analysis.rdp import compute_rdp

    _remember_orders()
    found: NDArray[np.float64] = compute_rdp(
        q=sampling_rate, noise_multiplier=noise_multiplier, steps=1, orders=_orders()
    )
    return found


def _remember_orders() -> None:
    """Let Opacus compute each order of a mechanism once, which takes 0.4 s for all: PRV asks for them twice to find the
    size of its tables, after `_rdp` has asked for the same.
    """
    from opacus.accountants.analysis import rdp

    if not hasattr(rdp._compute_rdp, "cache_info"):
        rdp._compute_rdp = lru_cache(maxsize=2**14)(rdp._compute_rdp)


def _orders() -> list[float]:
    from opacus.accountants import RDPAccountant

    return list[float](RDPAccountant.DEFAULT_ALPHAS)


@lru_cache(maxsize=256)
def noise_multiplier_for(target_epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The smallest sigma (to about one per cent) with which `steps` steps stay within the target. UserError if none
    does.
    """

    def stays_within(sigma: float) -> bool:
        spent = [Steps(sampling_rate, sigma, steps)]
        # PRV needs RDP too; and where RDP's looser bound is within, so is the tight one.
        return rdp_epsilon(spent, delta) <= target_epsilon or epsilon(spent, delta) <= target_epsilon

    low, high = 0.0, 1.0
    while not stays_within(high):
        low, high = high, 2 * high
        if high > 1e4:
            raise UserError(
                f"No noise gives epsilon {target_epsilon:g} at delta {delta:g} in {steps} steps. Raise "
                "privacy.epsilon, or take fewer steps."
            )
    while high - low > 0.01 * high and high > 1e-2:
        middle = (low + high) / 2
        low, high = (low, middle) if stays_within(middle) else (middle, high)
    return high


LARGEST_DEFAULT_DELTA = 1e-5


def default_delta(units: int) -> float:
    """min(1e-5, N^-1.2): a guarantee that fails for far less than one unit of N.

    >>> [f"{default_delta(units):.2g}" for units in (1, 1000, 100_000)]
    ['1e-05', '1e-05', '1e-06']
    """
    return min(LARGEST_DEFAULT_DELTA, math.pow(max(1, units), -1.2))


def _joined(spent: Iterable[Steps]) -> tuple[Steps, ...]:
    """Equal steps counted together, in a fixed order."""
    counts: Counter[tuple[float, float]] = Counter()
    for steps in spent:
        counts[steps.sampling_rate, steps.noise_multiplier] += steps.count
    return tuple(Steps(rate, noise, count) for (rate, noise), count in sorted(counts.items()) if count)


@lru_cache(maxsize=1024)
def _prv(together: tuple[Steps, ...], delta: float) -> float:
    from opacus.accountants import PRVAccountant

    _remember_orders()
    loose = _rdp(together, delta)
    if loose > LARGEST_EPSILON:
        return loose
    accountant = PRVAccountant()  # type: ignore[no-untyped-call]
    accountant.history = [(steps.noise_multiplier, steps.sampling_rate, steps.count) for steps in together]
    try:
        tight = float(accountant.get_epsilon(delta=delta))
    except (ValueError, RuntimeError, MemoryError, FloatingPointError) as error:
        log.warning("the PRV accountant gave up (%s); RDP's looser bound takes its place", error)
        return loose
    return min(tight, loose) if math.isfinite(tight) else loose
