"""The names of the evaluator's figures: what each is called, to which family it belongs, and how it is printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedfinlora.report.markup import count, decimal, fraction, percent
from fedfinlora.report.scores import mean
from fedfinlora.run.evaluation import BenchmarkMetrics

FAMILIES = {
    "parsed": "Parsed answers",
    "bertscore": "Similarity to the target (BERTScore)",
    "finlora": "By FinLoRA’s rules",
    "labels": "Most probable label, nothing generated",
    "checks": "Counts and checks",
}


@dataclass(frozen=True)
class Figure:
    """One figure of the metrics of a benchmark."""

    key: str
    """Of an estimate, or of a count in COUNTS."""
    title: str
    family: str
    form: str = "fraction"
    """percent, fraction, correlation or count."""


FIGURES = (
    Figure("accuracy", "Accuracy", "parsed", "percent"),
    Figure("accuracy_exact", "Accuracy without tolerance", "parsed", "percent"),
    Figure("value_accuracy", "Accuracy by value of the formula", "parsed", "percent"),
    Figure("row_accuracy", "Rows with every tag right", "parsed", "percent"),
    Figure("f1_macro", "F1, macro", "parsed"),
    Figure("f1_weighted", "F1, weighted", "parsed"),
    Figure("matthews", "Matthews correlation", "parsed", "correlation"),
    Figure("bertscore_f1", "F1", "bertscore"),
    Figure("bertscore_precision", "Precision", "bertscore"),
    Figure("bertscore_recall", "Recall", "bertscore"),
    Figure("finlora_accuracy", "Accuracy", "finlora", "percent"),
    Figure("finlora_f1", "F1", "finlora"),
    Figure("finlora_ambiguous", "Ambiguous answers", "finlora", "count"),
    Figure("labels_accuracy", "Accuracy", "labels", "percent"),
    Figure("labels_f1_macro", "F1, macro", "labels"),
    Figure("labels_f1_weighted", "F1, weighted", "labels"),
    Figure("labels_matthews", "Matthews correlation", "labels", "correlation"),
    Figure("n", "Answers scored", "checks", "count"),
    Figure("rows", "Rows", "checks", "count"),
    Figure("unparsed", "Unparsed answers", "checks", "count"),
    Figure("unparsed_share", "Unparsed share", "checks", "percent"),
    Figure("too_long", "Prompts longer than the context window", "checks", "count"),
    Figure("reused", "Answers taken from earlier evaluations", "checks", "count"),
    Figure("decoding.rows_checked", "Rows decoded again one by one", "checks", "count"),
    Figure("decoding.rows_differ", "of which the answer differs", "checks", "count"),
)


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
    """A figure of one benchmark's metrics; None where it is absent."""
    return COUNTS[key](metrics) if key in COUNTS else metrics.value(key)


def value_of(figure: Figure, parts: Sequence[BenchmarkMetrics]) -> float | None:
    """The figure, or its mean over the banks that trained alone; None where it is absent."""
    return mean(raw_value(figure.key, metrics) for metrics in parts)


def shown(figure: Figure, value: float) -> str:
    """The value as text; percentages carry their sign."""
    if figure.form == "percent":
        return f"{percent(value)} %"
    if figure.form == "count":
        return count(value)
    return decimal(value) if figure.form == "correlation" else fraction(value)


def interval_of(figure: Figure, parts: Sequence[BenchmarkMetrics]) -> str:
    """The 95 % interval of one evaluation, or the worst and the best of several banks; "" without either."""
    if len(parts) > 1:
        known = [value for metrics in parts if (value := raw_value(figure.key, metrics)) is not None]
        low, high = min(known, default=None), max(known, default=None)
    else:
        low, high = parts[0].bounds(figure.key) if parts else (None, None)
    if low is None or high is None or (figure.form == "count" and low == high):
        return ""
    if figure.form == "percent":
        return f"{percent(low)} to {percent(high)}"
    return f"{shown(figure, low)} to {shown(figure, high)}"
