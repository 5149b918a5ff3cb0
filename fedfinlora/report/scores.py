"""Means over the benchmarks that all systems have: the only ones over which they compare."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fedfinlora.report.formats import Bounds
from fedfinlora.report.systems import System


def common_accuracy_keys(systems: Sequence[System], keys: Iterable[str]) -> list[str]:
    """The benchmarks on which every system has an accuracy."""

    def has_accuracy(system: System, key: str) -> bool:
        score = system.scores.get(key)
        return score is not None and not score.bertscore and score.value is not None

    return [key for key in keys if systems and all(has_accuracy(system, key) for system in systems)]


def common_finlora_keys(systems: Sequence[System], keys: Iterable[str]) -> list[str]:
    """The benchmarks on which every system has FinLoRA's figure, BERTScore sets included."""

    def has_points(system: System, key: str) -> bool:
        return key in system.scores and system.scores[key].finlora_points is not None

    return [key for key in keys if systems and all(has_points(system, key) for system in systems)]


def mean_accuracy_bounds(system: System, keys: Sequence[str]) -> Bounds:
    """The 95 % interval of the mean accuracy, its sets taken as independent; (None, None) if one has no interval.

    MOVER (Zou and Donner 2008): mean - sqrt(sum (value - low)^2) / k, and the same with high - value above.
    """
    below = above = 0.0
    for score in (system.scores[key] for key in keys):
        value, (low, high) = score.value, score.bounds
        if value is None or low is None or high is None or score.of_banks:
            return None, None
        below += (value - low) ** 2
        above += (high - value) ** 2
    middle = system.accuracy(keys)
    return (
        (None, None)
        if middle is None
        else (middle - math.sqrt(below) / len(keys), middle + math.sqrt(above) / len(keys))
    )
