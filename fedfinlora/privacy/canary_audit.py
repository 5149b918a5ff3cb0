"""The canaries check of an audit: what each attacker's scores refute, and what they could have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedfinlora.privacy.accounting import Steps
from fedfinlora.privacy.audit import CANARIES, HOLDS, INCONCLUSIVE, NO_CLAIM, REFUTED, Check
from fedfinlora.privacy.one_run_audit import (
    MOST_CANARIES,
    NOTICED,
    PLANS,
    Bound,
    best_bound,
    best_plan,
    largest_bound,
    needed_canaries,
    noticeable_factor,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class View:
    """What one attacker saw."""

    scores: NDArray[np.float64]
    """(canaries,), high for "in"."""
    included: NDArray[np.bool_]
    """(canaries,): what was so."""
    seconds: float
    """That it took."""
    orthogonal: bool
    """Each canary in a direction of its own: the attack is as strong as there is, and its power can be simulated."""


@dataclass(frozen=True)
class Claim:
    """What is said to be spent."""

    spent: tuple[Steps, ...]
    epsilon: float
    """Infinite where nothing is claimed."""
    delta: float


def canary_check(views: Mapping[str, View], claim: Claim, confidence: float) -> Check:
    """All views together, at `confidence` (Bonferroni). Refuted where the booked noise is; inconclusive where no view
    could have refuted the claim, or the strongest would have missed noise of NOTICED.
    """
    claimed = math.isfinite(claim.epsilon)
    spent = claim.spent if claimed else (Steps(1.0, 1.0, 1),)
    significance = (1 - confidence) / len(views)
    found, largest, factors, said, limits = (
        dict[str, Bound](),
        dict[str, Bound](),
        dict[str, float](),
        list[str](),
        list[str](),
    )
    for name, view in views.items():
        count = len(view.scores)
        plans = (best_plan(spent, count, significance),) if view.orthogonal and claimed else PLANS
        found[name] = best_bound(view.scores, view.included, spent, claim.delta, significance, plans)
        largest[name] = largest_bound(spent, claim.delta, count, significance, plans)
        said.append(f"at least {found[name].epsilon:.2f} as seen by {name}")
        limit = f"{count} canaries could show {largest[name].epsilon:.2f} to {name} if all guesses were right"
        if view.orthogonal and claimed:
            factors[name] = noticeable_factor(spent, count, plans[0], significance)
            noticed = f"noise x {factors[name]:g}" if factors[name] else "no missing noise"
            limit += f", and would notice {noticed}"
        limits.append(limit)
    verdict, needed = NO_CLAIM, ""
    if claimed:
        weak = not any(bound.refuted for bound in largest.values())
        weak = weak or (bool(factors) and max(factors.values()) < NOTICED)
        verdict = REFUTED if any(bound.refuted for bound in found.values()) else INCONCLUSIVE if weak else HOLDS
        if verdict == INCONCLUSIVE:
            needed = _needed(views, spent, significance)
    of = f"epsilon {claim.epsilon:.3g} is claimed" if claimed else "nothing is claimed"
    return Check(
        CANARIES,
        verdict,
        f"epsilon is {' and '.join(said)}; {of}",
        f"{'; '.join(limits)}; confidence {confidence:.0%}",
        needed,
        {
            "epsilon_claimed": claim.epsilon if claimed else None,
            "delta": claim.delta,
            "views": {
                name: {
                    "canaries": len(view.scores),
                    "included": int(view.included.sum()),
                    "epsilon_at_least": found[name].epsilon,
                    "noise_factor_at_most": found[name].noise_factor
                    if math.isfinite(found[name].noise_factor)
                    else None,
                    "guesses": found[name].guesses,
                    "right": found[name].right,
                    "epsilon_if_all_right": largest[name].epsilon,
                    "noticeable_noise_factor": factors.get(name),
                    "seconds": view.seconds,
                }
                for name, view in views.items()
            },
        },
    )


def _needed(views: Mapping[str, View], spent: Sequence[Steps], significance: float) -> str:
    """How many canaries, and how long they would take."""
    view = max(views.values(), key=lambda one: one.orthogonal)
    steps = sum(steps.count for steps in spent)
    count = needed_canaries(spent, significance)
    if count is None:
        return (
            f"{MOST_CANARIES} canaries in these {steps} steps would not decide: more steps, or a larger sampling "
            "rate, would."
        )
    minutes = view.seconds / 60 * count / len(view.scores)
    return f"{count} canaries ({steps} steps, {minutes:.2g} minutes) would decide: --canaries {count}."
