"""Trade-off functions of the mechanisms here: how rarely an attacker can be wrong (Dong, Roth and Su 2022, definition
2.1).

f(alpha) is the smallest false negative rate of any test that distinguishes two neighbouring data sets with false
positive rate alpha. `TradeOff` is the function of x that an audit needs: an answer that is right about a row with
probability x is given with probability f(1 - x) at least where it is wrong.

Where every unit is in every step f is the Gaussian's, exactly. Otherwise f is computed from privacy losses rounded up
to a grid and added by FFT (Koskela, Jälkö and Honkela 2020; Gopi, Lee and Wutschitz 2021), in both directions, and is
so never above the true one.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fedfinlora.privacy.accounting import Steps

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TradeOff = Callable[[float], float]
"""x, the probability of a right answer -> f(1 - x), the least probability of the same answer where it is wrong."""
LARGEST_LOSS = 60.0
"""Privacy losses beyond count as infinite: an attacker who sees one knows."""
LARGEST_GRID = 2**20
MOMENTS = (0.5, 1.0, 2.0)
"""Orders at which the tail of the summed losses is bounded."""
SUPPORTS = 600
"""Tangents of f that are kept."""


def gaussian_trade_off(mu: float) -> TradeOff:
    """Of Gaussian noise on what one unit moves by mu standard deviations (Dong et al. 2022, definition 2.6).

    >>> round(gaussian_trade_off(1.0)(0.5), 3)
    0.159
    """
    from scipy.special import ndtr, ndtri

    return lambda right: float(ndtr(ndtri(right) - mu))


def trade_off(spent: Sequence[Steps]) -> TradeOff:
    """Of all steps: the Gaussian's where each has sampling rate 1, else a lower bound; 0 where a step had no noise.

    A step of a lower rate shows a unit that takes part with that probability, drawn in secret.
    """
    counted = [steps for steps in spent if steps.count]
    if any(steps.noise_multiplier == 0 for steps in counted):
        return lambda right: 0.0
    if all(steps.sampling_rate == 1 for steps in counted):
        return gaussian_trade_off(math.sqrt(sum(steps.count / steps.noise_multiplier**2 for steps in counted)))
    epsilons, deltas = _delta_curve(counted)
    odds = [math.exp(one) for one in epsilons]
    # f of (epsilon, delta)-privacy is max(0, 1 - delta - e^epsilon a, e^-epsilon (1 - delta - a)), with a = 1 - x.
    lines = [(0.0, 0.0)]
    lines += [(1 / odd, -delta / odd) for odd, delta in zip(odds, deltas, strict=True)]
    lines += [(odd, 1 - delta - odd) for odd, delta in zip(odds, deltas, strict=True)]
    return _highest_line(lines)


def _highest_line(lines: Sequence[tuple[float, float]]) -> TradeOff:
    """x -> the largest of slope x + intercept over the lines (slope, intercept)."""
    hull: list[tuple[float, float]] = []
    starts: list[float] = []
    """Where each line of the hull begins to be the highest."""
    for slope, intercept in sorted(lines):
        while hull:
            if slope > hull[-1][0]:
                start = (hull[-1][1] - intercept) / (slope - hull[-1][0])
                if start > starts[-1]:
                    break
            elif intercept <= hull[-1][1]:
                start = math.inf
                break
            hull.pop()
            starts.pop()
        else:
            start = -math.inf
        if start < math.inf:
            hull.append((slope, intercept))
            starts.append(start)

    def highest(right: float) -> float:
        slope, intercept = hull[bisect_right(starts, right) - 1]
        return max(0.0, slope * right + intercept)

    return highest


def _delta_curve(spent: Sequence[Steps]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(SUPPORTS,) epsilons from 0 up and the delta of each, for adding and for removing a unit, whichever is larger."""
    import numpy as np

    count = sum(steps.count for steps in spent)
    # Rounding up costs half a step of the grid for each loss that is added: 0.025 in all, more with LARGEST_GRID.
    size = min(LARGEST_GRID, 2 ** math.ceil(math.log2(2 * LARGEST_LOSS * count / 0.05)))
    size = max(size, 2**14)
    width = 2 * LARGEST_LOSS / size
    losses = (np.arange(size) - size // 2) * width
    epsilons = np.concatenate([[0.0], np.geomspace(1e-3, LARGEST_LOSS / 2, SUPPORTS - 1)])
    deltas = np.zeros(SUPPORTS)
    for adding in (False, True):
        spectrum, finite, log_moments = np.ones(size // 2 + 1, complex), 1.0, np.zeros(len(MOMENTS))
        for steps in spent:
            masses, infinite = _loss_masses(steps, losses, width, adding)
            spectrum = spectrum * np.fft.rfft(np.fft.ifftshift(masses)) ** steps.count
            finite *= (1 - infinite) ** steps.count
            log_moments += [steps.count * math.log(float(masses @ np.exp(order * losses))) for order in MOMENTS]
        # Sums beyond the grid come back at its other end; their probability (Chernoff) counts as infinite loss.
        beyond = math.exp(min(0.0, float((log_moments - LARGEST_LOSS * np.array(MOMENTS)).min())))
        total = np.maximum(np.fft.fftshift(np.fft.irfft(spectrum, size)), 0.0)
        # delta(epsilon) = sum over losses l above epsilon of P(l) (1 - e^(epsilon - l)), and all that is infinite.
        above = np.cumsum(total[::-1])[::-1]
        weighted = np.cumsum((total * np.exp(-losses))[::-1])[::-1]
        first = np.searchsorted(losses, epsilons, side="right")
        deltas = np.maximum(deltas, above[first] - np.exp(epsilons) * weighted[first] + (1 - finite) + beyond)
    return epsilons, np.clip(deltas, 0.0, 1.0)


def _loss_masses(
    steps: Steps, losses: NDArray[np.float64], width: float, adding: bool
) -> tuple[NDArray[np.float64], float]:
    """(probability of each loss of one step, rounded up to the grid `losses` of spacing `width`; that of a loss
    beyond it).

    With x in standard deviations of the noise, the loss of removing is log(1 - q + q e^(x / sigma - 1 / (2 sigma^2)))
    for x from the mixture (1 - q) N(0, 1) + q N(1 / sigma, 1); that of adding is its negative for x from N(0, 1).
    """
    import numpy as np
    from scipy.special import ndtr

    rate, noise = steps.sampling_rate, steps.noise_multiplier

    def position(loss: NDArray[np.float64]) -> NDArray[np.float64]:
        """x with that loss of removing; -inf below log(1 - q)."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            inner = np.where(loss > 500, loss - math.log(rate), np.log((np.expm1(loss) + rate) / rate))
        return np.where(np.isnan(inner), -np.inf, inner * noise + 1 / (2 * noise))

    edges = np.concatenate([[losses[0] - width], losses])
    if adding:
        # -L(x) <= l where x >= position(-l).
        below = ndtr(-position(-edges))
    else:
        at = position(edges)
        below = (1 - rate) * ndtr(at) + rate * ndtr(at - 1 / noise)
    masses = np.diff(below)
    masses[0] += below[0]
    return masses, float(1 - below[-1])
