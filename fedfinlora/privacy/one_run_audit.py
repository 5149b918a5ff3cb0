"""What an attacker's right guesses refute: the one-run audit of f-differential privacy (Mahloujifar, Melis and
Chaudhuri 2025).

m canaries are each in the training rows with probability 1/2, by independent coin tosses. The attacker scores them from
what he sees, calls the highest "in", the lowest "out", and leaves the rest. Under f-DP many right guesses have a small
probability; `refutes` bounds it. Steinke, Nasr and Jagielski (2023) know only (epsilon, delta) and refute far less: 200
right guesses of 200 at delta 1e-4 give 2.15 there and 8.4 here.

The hypotheses are those of one family: the booked steps with their noise times a factor. A factor that is refuted is a
noise that the mechanism does not have; the epsilon of the smallest such factor is a lower bound at the stated
confidence. Nothing is assumed of the mechanism but f: one that reveals everything once in twenty runs passes at 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from fedfinlora.privacy.accounting import LARGEST_EPSILON, Steps, epsilon
from fedfinlora.privacy.trade_off import TradeOff, trade_off

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NOTICED = 0.25
"""An audit that would miss a quarter of the booked noise decides nothing."""
FACTORS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.1, 0.05)
"""Noise factors for which the power is simulated."""
REPEATS, POWER = 10, 0.9
"""So many simulated audits for each factor, and the share of them that must refute."""
SMALLEST_FACTOR, LARGEST_FACTOR = 1 / 64, 64.0
MOST_CANARIES = 2**16


@dataclass(frozen=True)
class Plan:
    """Which canaries are guessed, fixed before any score is seen."""

    share: float
    """Of all canaries."""
    inside: float = 0.5
    """Of the guesses, "in", for the highest scores; the rest is "out", for the lowest."""


PLANS = tuple(Plan(share, inside) for share in (0.5, 0.25, 0.1, 0.05) for inside in (0.5, 1.0))
"""Guessing all is not among them: with a small probability of error to spare, f allows too many right ones."""


@dataclass(frozen=True)
class Bound:
    """What one view refutes."""

    epsilon: float
    """Lower bound; LARGEST_EPSILON may stand for more."""
    noise_factor: float
    """The noise acts as at most this times what is booked; above 1 nothing is wrong. Infinite where no factor is
    refuted.
    """
    guesses: int
    right: int

    @property
    def refuted(self) -> bool:
        """Whether the booked noise itself (factor 1) is among those refuted."""
        return self.noise_factor <= 1


def refutes(wrong: TradeOff, canaries: int, guesses: int, right: int, significance: float) -> bool:
    """Whether at least `right` right ones of `guesses` guesses on `canaries` canaries have a probability below
    `significance` under f-DP.

    Mahloujifar et al. 2025, algorithms 2 and 3: let p_i be the probability of exactly i right guesses. Turning one
    canary's coin makes its right guess wrong, so for every set of counts (sum of (i / m) p_i, sum of ((c - i + 1) / m)
    p_(i-1)) obey f. Were the counts from `right` on to have probability `significance`, the smaller counts would need
    more than there is.
    """
    inside, outside = significance * right / canaries, significance * (guesses - right) / canaries
    for count in range(right - 1, -1, -1):
        if inside + outside > guesses / canaries:
            return True
        following = max(outside, wrong(min(1.0, inside)))
        if following == outside:
            return False
        inside += count / (guesses - count) * (following - outside)
        outside = following
    return inside + outside > guesses / canaries


def guess(scores: NDArray[np.float64], included: NDArray[np.bool_], plan: Plan) -> tuple[int, int]:
    """(guesses made, right ones) with scores (canaries,), high for "in", and what was so (canaries,). Scores that are
    not finite are not guessed.
    """
    import numpy as np

    order = np.argsort(scores, kind="stable")
    order = order[np.isfinite(scores[order])]
    made = min(max(1, round(plan.share * len(scores))), len(order))
    ins = round(plan.inside * made)
    outs = made - ins
    right = int(included[order[len(order) - ins :]].sum()) + int((~included[order[:outs]]).sum())
    return made, right


def best_bound(
    scores: NDArray[np.float64],
    included: NDArray[np.bool_],
    spent: Sequence[Steps],
    delta: float,
    significance: float,
    plans: Sequence[Plan],
) -> Bound:
    """The best bound of the plans, which share `significance` among them (Bonferroni)."""
    made = [guess(scores, included, plan) for plan in plans]
    return _best(spent, delta, len(scores), made, significance)


def largest_bound(
    spent: Sequence[Steps], delta: float, canaries: int, significance: float, plans: Sequence[Plan]
) -> Bound:
    """The bound if every guess were right: no attacker can show more."""
    made = [max(1, round(plan.share * canaries)) for plan in plans]
    return _best(spent, delta, canaries, [(count, count) for count in made], significance)


def _best(
    spent: Sequence[Steps], delta: float, canaries: int, made: Sequence[tuple[int, int]], significance: float
) -> Bound:
    """The smallest factor that any of the (guesses, right ones) refutes, and its epsilon, which is not stated above
    LARGEST_EPSILON.
    """
    factors = [smallest_factor(spent, canaries, *one, significance / len(made)) for one in made]
    factor, (guesses, right) = min(zip(factors, made, strict=True), key=lambda found: (found[0], -found[1][0]))
    if math.isinf(factor):
        return Bound(0.0, math.inf, guesses, right)
    return Bound(min(epsilon(scaled(spent, factor), delta), LARGEST_EPSILON), factor, guesses, right)


def smallest_factor(spent: Sequence[Steps], canaries: int, guesses: int, right: int, significance: float) -> float:
    """The smallest noise factor that is refuted, to 2 %; infinite where none up to LARGEST_FACTOR is."""

    @lru_cache
    def refuted(factor: float) -> bool:
        return refutes(_trade_off(scaled(spent, factor)), canaries, guesses, right, significance)

    low, high = 1.0, 1.0
    if refuted(1.0):
        while low > SMALLEST_FACTOR and refuted(low / 2):
            low /= 2
        low, high = low / 2, low
    else:
        while not refuted(high):
            high *= 2
            if high > LARGEST_FACTOR:
                return math.inf
        low = high / 2
    while high > 1.02 * low and high > SMALLEST_FACTOR:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return high


def scaled(spent: Sequence[Steps], factor: float) -> tuple[Steps, ...]:
    """The same steps with their noise times `factor`."""
    return tuple(replace(steps, noise_multiplier=steps.noise_multiplier * factor) for steps in spent)


@lru_cache(maxsize=256)
def _trade_off(spent: tuple[Steps, ...]) -> TradeOff:
    return trade_off(spent)


# --- power: what an audit could find, simulated before it is made ---------------------------------


def simulated(
    spent: Sequence[Steps], factor: float, canaries: int, draw: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(scores, included), (canaries,) each, of the strongest attack on the steps with noise times `factor`: every
    canary in a direction of its own.
    """
    import numpy as np

    included = draw.random(canaries) < 0.5
    scores = np.zeros(canaries)
    for steps in spent:
        noise = steps.noise_multiplier * factor
        if not noise:
            return included.astype(np.float64), included
        times = np.where(included, draw.binomial(steps.count, steps.sampling_rate, canaries), 0)
        scores += (times + math.sqrt(steps.count) * noise * draw.standard_normal(canaries)) / noise**2
    return scores, included


def powers(
    spent: Sequence[Steps], factor: float, canaries: int, plans: Sequence[Plan], significance: float
) -> dict[Plan, float]:
    """Plan -> share of simulated audits that refute the booked noise where it is in truth `factor` of it."""
    import numpy as np

    draw = np.random.default_rng(canaries)
    wrong = _trade_off(tuple(spent))
    refuted = dict.fromkeys(plans, 0.0)
    for _ in range(REPEATS):
        scores, included = simulated(spent, factor, canaries, draw)
        for plan in plans:
            refuted[plan] += refutes(wrong, canaries, *guess(scores, included, plan), significance) / REPEATS
    return refuted


def best_plan(spent: Sequence[Steps], canaries: int, significance: float) -> Plan:
    """The plan that most often refutes noise of NOTICED, twice and half of it: chosen from the claim, so that no
    correction is needed.
    """
    found = [powers(spent, factor, canaries, PLANS, significance) for factor in (2 * NOTICED, NOTICED, NOTICED / 2)]
    return max(PLANS, key=lambda plan: round(sum(one[plan] for one in found), 6))


def noticeable_factor(spent: Sequence[Steps], canaries: int, plan: Plan, significance: float) -> float:
    """The largest of FACTORS that is refuted in POWER of the simulated audits; 0 where none is."""
    found = (
        factor for factor in FACTORS if powers(spent, factor, canaries, [plan], significance)[plan] >= POWER - 1e-9
    )
    return next(found, 0.0)


def needed_canaries(spent: Sequence[Steps], significance: float) -> int | None:
    """How many canaries notice noise of NOTICED: a power of two; None if MOST_CANARIES are too few."""
    count = 64
    while count <= MOST_CANARIES:
        if max(powers(spent, NOTICED, count, PLANS, significance).values()) >= POWER - 1e-9:
            return count
        count *= 2
    return None
