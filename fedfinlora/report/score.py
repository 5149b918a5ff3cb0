"""One system on one benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fedfinlora.report.formats import Bounds, fraction, percent
from fedfinlora.report.reading import Run
from fedfinlora.run.evaluation import BenchmarkMetrics, RowRecord

COUNTS: dict[str, Callable[[BenchmarkMetrics], float | None]] = {
    "n": lambda metrics: metrics.n,
    "rows": lambda metrics: metrics.rows,
    "unparsed": lambda metrics: metrics.unparsed,
    "finlora_ambiguous": lambda metrics: metrics.finlora_ambiguous,
    "bertscore_layer": lambda metrics: metrics.bertscore_layer,
    "relative_tolerance": lambda metrics: metrics.relative_tolerance,
    "too_long": lambda metrics: metrics.too_long,
    "decoding.rows_checked": lambda metrics: metrics.decoding.rows_checked if metrics.decoding else None,
    "decoding.rows_differ": lambda metrics: metrics.decoding.rows_differ if metrics.decoding else None,
}
"""Every number of a benchmark's metrics that is no estimate."""


def raw_value(key: str, metrics: BenchmarkMetrics) -> float | None:
    """A figure of one benchmark's metrics."""
    return COUNTS[key](metrics) if key in COUNTS else metrics.value(key)


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that there are."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class Source:
    """Where a system's figures come from: one evaluation of one run."""

    run: Run
    label: str

    def records(self, key: str) -> Iterator[RowRecord]:
        return self.run.records(self.label, key)


@dataclass(frozen=True)
class Score:
    """What the tables show of one system on one benchmark. Fractions from 0 to 1."""

    metrics: tuple[BenchmarkMetrics, ...]
    """Of one evaluation, or of each of several banks, whose mean the score is."""
    sources: tuple[Source, ...] = ()

    def value_of(self, key: str) -> float | None:
        return mean(raw_value(key, metrics) for metrics in self.metrics)

    def bounds_of(self, key: str) -> Bounds:
        """The 95 % interval; of several banks the lowest and the highest."""
        if not self.of_banks:
            return self.metrics[0].bounds(key)
        known = [value for metrics in self.metrics if (value := raw_value(key, metrics)) is not None]
        return min(known, default=None), max(known, default=None)

    @property
    def of_banks(self) -> bool:
        """Whether `bounds_of` gives the worst and the best bank."""
        return len(self.metrics) > 1

    @property
    def bertscore(self) -> bool:
        """Whether there is a BERTScore instead of an accuracy."""
        return self.metrics[0].is_bertscored

    @property
    def key(self) -> str:
        """The figure of the score table."""
        return "bertscore_f1" if self.bertscore else "accuracy"

    @property
    def finlora_key(self) -> str:
        """The figure that enters FinLoRA's averages."""
        return "bertscore_f1" if self.bertscore else "finlora_accuracy"

    @property
    def n(self) -> int:
        return max(metrics.n for metrics in self.metrics)

    @property
    def value(self) -> float | None:
        return self.value_of(self.key)

    @property
    def bounds(self) -> Bounds:
        return self.bounds_of(self.key)

    @property
    def finlora_points(self) -> float | None:
        return self.value_of(self.finlora_key)

    @property
    def unparsed_share(self) -> float | None:
        return mean(_unparsed_share(metrics) for metrics in self.metrics)

    @property
    def ambiguous(self) -> int:
        return sum(metrics.finlora_ambiguous or 0 for metrics in self.metrics)

    @property
    def encoder(self) -> str:
        """BERTScore's encoder and layer."""
        first = self.metrics[0]
        layer = "" if first.bertscore_layer is None else f", layer {first.bertscore_layer}"
        return (first.bertscore_model or "unnamed encoder") + layer

    def shown(self, value: float | None) -> str:
        """A BERTScore as a fraction, accuracy in percent without the sign."""
        return fraction(value) if self.bertscore else percent(value)


def _unparsed_share(metrics: BenchmarkMetrics) -> float | None:
    share = metrics.value("unparsed_share")
    return metrics.unparsed / metrics.n if share is None and metrics.unparsed is not None and metrics.n else share
