"""The difference of two evaluations of the same rows: what `compare --json` writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedfinlora.run.typed import omitted

Interval = tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class MetricDifference:
    """One metric of both, and other - one, as fractions; None where it is undefined."""

    one: float | None
    other: float | None
    difference: float | None
    difference_ci95: Interval
    mcnemar_p: float | None = omitted()
    """Of accuracies of rows only."""


@dataclass(frozen=True, slots=True)
class BenchmarkComparison:
    """One benchmark, on the rows that both evaluations have."""

    rows: int
    only_one: int
    """Rows that only the first has."""
    only_other: int
    figures: Mapping[str, MetricDifference]
    """Metric -> its difference."""


@dataclass(frozen=True, slots=True)
class MeanDifference:
    """The mean over benchmarks of the differences of their headline scores, strict and by FinLoRA's rules."""

    score_difference: float | None
    score_difference_ci95: Interval
    finlora_score_difference: float | None
    finlora_score_difference_ci95: Interval
    benchmarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """One of the two evaluations."""

    run: str
    label: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two evaluations, on every benchmark that both have."""

    one: Compared
    other: Compared
    benchmarks: Mapping[str, BenchmarkComparison]
    skipped: Mapping[str, str]
    """Benchmark key -> why it cannot be compared."""
    only_one: tuple[str, ...]
    """Benchmarks that only the first has."""
    only_other: tuple[str, ...]
    groups: Mapping[str, MeanDifference]
    overall: MeanDifference
