"""Paired differences: two systems on the same rows, whose difference is known better than their own intervals suggest.

The arithmetic is the caller's (`Compare`); here pairs are chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fedfinlora.errors import UserError
from fedfinlora.report.benchmarks import BenchmarkInfo
from fedfinlora.report.score import Source
from fedfinlora.report.systems import System
from fedfinlora.run.comparison import Comparison, MetricDifference

Compare = Callable[[Path, str, Path, str], Comparison]
"""(run, label, other run, its label) -> other minus one. UserError where the two have no rows in common."""

HEADLINES = ("accuracy", "bertscore_f1", "labels_accuracy")
"""The figure compared: the first of these that both have."""
MOST_PAIRS = 8


class Gain(NamedTuple):
    """What `other` gains over `one` in one figure; fractions."""

    value: float | None
    interval: tuple[float, float] | None
    """95 %."""
    p: float | None = None
    """McNemar's exact p-value; None where it does not apply."""
    figure: str = ""

    @property
    def direction(self) -> str:
        """gain or loss where the interval leaves 0 out, else ""."""
        low, high = self.interval or (0.0, 0.0)
        return "gain" if low > 0 else "loss" if high < 0 else ""


class Pair(NamedTuple):
    """Two systems on the rows that both answered."""

    title: str
    gains: Mapping[str, Gain]
    """Benchmark key -> gain."""
    overall: Gain


def paired(systems: Sequence[System], compare: Compare | None) -> list[Pair]:
    """Each adapter against its base, and federated against centralized, where they have rows in common."""
    found = []
    for one, other in _pairs(systems)[:MOST_PAIRS]:
        first, second = _source(one), _source(other)
        if compare is None or first is None or second is None:
            continue
        try:
            result = compare(first.run.folder, first.label, second.run.folder, second.label)
        except UserError:
            continue  # no rows in common: there is nothing to pair, and the score table says what each was scored on
        gains = {key: gain for key, item in result.benchmarks.items() if (gain := _headline(item.figures))}
        if gains:
            overall = Gain(result.overall.score_difference, result.overall.score_difference_ci95)
            found.append(Pair(f"{other.heading} − {one.heading}", gains, overall))
    return found


def compared_groups(
    pairs: Sequence[Pair], groups: Mapping[str, Sequence[BenchmarkInfo]]
) -> list[tuple[str, list[BenchmarkInfo]]]:
    """Group title -> its benchmarks that any pair has."""
    keys = {key for pair in pairs for key in pair.gains}
    found = [(title, [item for item in items if item.key in keys]) for title, items in groups.items()]
    return [(title, items) for title, items in found if items]


def _pairs(systems: Sequence[System]) -> list[tuple[System, System]]:
    pairs = [(system.base, system) for system in systems if system.base is not None]
    by_kind: dict[str, System] = {}
    for system in systems:
        by_kind.setdefault(system.kind, system)
    if "federated" in by_kind and "centralized" in by_kind:
        pairs.append((by_kind["centralized"], by_kind["federated"]))
    return pairs


def _source(system: System) -> Source | None:
    """The one evaluation behind a system; None for the mean of several banks."""
    sources = [score.sources for score in system.scores.values()]
    return sources[0][0] if sources and all(len(found) == 1 for found in sources) else None


def _headline(figures: Mapping[str, MetricDifference]) -> Gain | None:
    for name in HEADLINES:
        found = figures.get(name)
        if found is not None and found.difference is not None:
            return Gain(found.difference, found.difference_ci95, found.mcnemar_p, name)
    return None
