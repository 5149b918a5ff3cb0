"""What pairs of measurements say: the median of their ratios, how far they spread, and whether that is narrow enough to
say anything.

A busy machine slows all that runs at that moment. So the two sides of a comparison are measured in short pieces that
alternate, each piece is divided by its own neighbour, and where the quotients disagree the comparison has no verdict.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any

WIDEST_SPREAD = 0.25
"""Half of the ratios lie within this share of their median, or there is no verdict."""
MEASURED = "measured"
NO_VERDICT = "no verdict: the machine was too busy"


def alternately(turn: int, ours: Callable[[], float], reference: Callable[[], float]) -> tuple[float, float]:
    """(seconds of ours, of the reference), ours first in even turns: what grows over time favours neither side."""
    if turn % 2:
        their_s = reference()
        return ours(), their_s
    our_s = ours()
    return our_s, reference()


def judged(ours: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """The figures of seconds measured in pairs: ratio (reference / ours: above 1 ours is faster), its range, spread and
    verdict.

    `spread` is the distance between the quartiles as a share of the median; None for fewer than four pairs, which give
    no verdict either way.
    """
    ratios = sorted(their_s / our_s for our_s, their_s in zip(ours, reference, strict=True))
    middle = statistics.median(ratios)
    spread = None
    if len(ratios) >= 4:
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        spread = (high - low) / middle
    return {
        "ratio": middle,
        "ratio_range": [ratios[0], ratios[-1]],
        "spread": spread,
        "verdict": MEASURED if spread is None or spread <= WIDEST_SPREAD else NO_VERDICT,
    }


def load() -> float | None:
    """Processes that want a core, averaged over the last minute; None where the system does not say."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None
