"""The names of the evaluator's figures: what each is called, to which family it belongs, and how it is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedfinlora.report.markup import count, decimal, fraction, number, percent
from fedfinlora.report.scores import bounds, mean

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


def raw_value(key: str, metrics: Mapping[str, Any]) -> float | None:
    """A figure of one benchmark's metrics; a dot leads into a nested one."""
    value: Any = metrics
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return number(value)


def value_of(figure: Figure, parts: Sequence[Mapping[str, Any]]) -> float | None:
    """The figure, or its mean over the banks that trained alone; None where it is absent."""
    return mean(raw_value(figure.key, metrics) for metrics in parts)


def shown(figure: Figure, value: float) -> str:
    """The value as text; percentages carry their sign."""
    if figure.form == "percent":
        return f"{percent(value)} %"
    if figure.form == "count":
        return count(value)
    return decimal(value) if figure.form == "correlation" else fraction(value)


def interval_of(figure: Figure, parts: Sequence[Mapping[str, Any]]) -> str:
    """The 95 % interval of one evaluation, or the worst and the best of several banks; "" without either."""
    if len(parts) > 1:
        known = [value for metrics in parts if (value := raw_value(figure.key, metrics)) is not None]
        low, high = min(known, default=None), max(known, default=None)
    else:
        low, high = bounds(parts[0], figure.key) if parts else (None, None)
    if low is None or high is None or (figure.form == "count" and low == high):
        return ""
    if figure.form == "percent":
        return f"{percent(low)} to {percent(high)}"
    return f"{shown(figure, low)} to {shown(figure, high)}"
