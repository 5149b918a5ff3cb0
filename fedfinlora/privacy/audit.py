"""What an attacker's right guesses prove about epsilon: the one-run audit of Steinke, Nasr and Jagielski (2023).

m canaries are each in the training rows with probability 1/2, by independent coin tosses. The attacker scores them from what he sees, calls those
with the highest scores "in" and those with the lowest "out", and leaves the rest. Were the mechanism (epsilon, delta)-private, the number of right guesses
would stochastically lie below a sum of coins that land right with probability e^epsilon / (1 + e^epsilon), but for a term in delta (theorem 5.2). The
largest epsilon that the guesses refute is a lower bound, at the stated confidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GUESSED_SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Shares of the canaries that are guessed."""
SIDES = (0.5, 1.0, 0.0)
"""Which share of the guesses is "in". The best of shares and sides counts, and the confidence is corrected for having tried all."""
LARGEST_BOUND = 100.0
RIDGE = 0.1
"""Added to the squared length 1 of each regressor: small beside it, and large beside the directions in which gradients hardly differ."""


@dataclass(frozen=True)
class Bound:
    """The best lower bound from one view."""

    epsilon: float
    guesses: int
    right: int


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Probability of at least `right` right ones among `guesses` guesses on `canaries` canaries under (epsilon, delta)-privacy, at most.

    Steinke et al. 2023, theorem 5.2: f(v) + 2 m delta max_i (f(v - i) - f(v)) / i, with f(v) = P[Binomial(r, e^eps / (1 + e^eps)) >= v].
    """
    import numpy as np
    from scipy.stats import binom

    chance = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(right - 1, guesses, chance))
    if delta == 0 or right == 0:
        return min(1.0, tail)
    steps = np.arange(1, right + 1)
    below = np.cumsum(binom.pmf(right - steps, guesses, chance))
    return float(min(1.0, tail + 2 * canaries * delta * float((below / steps).max())))


def lower_bound(canaries: int, guesses: int, right: int, delta: float, confidence: float) -> float:
    """The largest epsilon that is refuted at `confidence`, to 0.001; 0 where none is, LARGEST_BOUND at most."""
    wrong = 1 - confidence
    low, high = 0.0, LARGEST_BOUND
    if p_value(canaries, guesses, right, low, delta) > wrong:
        return 0.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(canaries, guesses, right, middle, delta) <= wrong else (low, middle)
    return low


def best_bound(
    scores: NDArray[np.float64], included: NDArray[np.bool_], delta: float, confidence: float, views: int = 1
) -> Bound:
    """The best bound over GUESSED_SHARES and SIDES from scores (canaries,), high for "in", and what was so (canaries,).

    `confidence` holds for all of them and all of `views` attackers together (Bonferroni). Scores that are not finite are not guessed.
    """
    each = 1 - (1 - confidence) / (len(GUESSED_SHARES) * len(SIDES) * views)
    found = [Bound(0.0, 0, 0)]
    for share in GUESSED_SHARES:
        for side in SIDES:
            guesses, right = guess(scores, included, round(share * len(scores)), side)
            found.append(Bound(lower_bound(len(scores), guesses, right, delta, each), guesses, right))
    return max(found, key=lambda bound: (bound.epsilon, -bound.guesses))


def guess(scores: NDArray[np.float64], included: NDArray[np.bool_], guesses: int, side: float = 0.5) -> tuple[int, int]:
    """(guesses made, right ones): the share `side` of them "in" for the highest scores, the rest "out" for the lowest."""
    import numpy as np

    order = [place for place in np.argsort(scores, kind="stable") if math.isfinite(scores[place])]
    made = min(guesses, len(order))
    ins = round(side * made)
    outs = made - ins
    right = int(included[order[len(order) - ins :]].sum()) + int((~included[order[:outs]]).sum())
    return made, right


def alignment(update: NDArray[np.float32], gradients: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """How much of each canary is in an update: coefficients (canaries,) of ridge regression of -update (d,) on gradients of length 1.

    Regressors are the canaries' gradients (canaries, d) and those of other rows known to be there (others, d): what a canary has in common with
    the rest is taken out, which a plain inner product would not do.
    """
    import numpy as np

    rows = np.concatenate([gradients, others]).astype(np.float64)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    coefficients: NDArray[np.float64] = np.linalg.solve(
        unit @ unit.T + RIDGE * np.eye(len(unit)), unit @ -update.astype(np.float64)
    )
    return coefficients[: len(gradients)]


def sentence(bounds: dict[str, Bound], claimed: float | None, canaries: int, confidence: float) -> str:
    """The result in words."""
    seen = " and ".join(f"at least {bound.epsilon:.2f} as seen by {view}" for view, bound in bounds.items())
    said = "nothing is claimed" if claimed is None else f"epsilon {claimed:.3g} is claimed"
    largest = max(bound.epsilon for bound in bounds.values())
    verdict = "" if claimed is None else ": REFUTED" if largest > claimed else ": not refuted"
    return f"epsilon is {seen} ({canaries} canaries, confidence {confidence:.0%}); {said}{verdict}"


def refuted(bounds: Sequence[Bound], claimed: float | None) -> bool:
    """Whether any bound exceeds the claim."""
    return claimed is not None and any(bound.epsilon > claimed for bound in bounds)
