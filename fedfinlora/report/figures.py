"""The evaluator's figures: title, family, and how each is printed."""

from __future__ import annotations

from typing import NamedTuple

from fedfinlora.report.formats import count, decimal, fraction, percent
from fedfinlora.report.score import Score

FAMILIES = {
    "parsed": "Parsed answers",
    "bertscore": "Similarity to the target (BERTScore)",
    "finlora": "By FinLoRA’s rules",
    "labels": "Most probable label, nothing generated",
    "checks": "Counts and checks",
}


class Figure(NamedTuple):
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


def shown(figure: Figure, value: float) -> str:
    """The value as text; percentages carry their sign."""
    if figure.form == "percent":
        return f"{percent(value)} %"
    if figure.form == "count":
        return count(value)
    return decimal(value) if figure.form == "correlation" else fraction(value)


def interval_of(figure: Figure, score: Score) -> str:
    """The 95 % interval, or the worst and the best of several banks."""
    low, high = score.bounds_of(figure.key)
    if low is None or high is None or (figure.form == "count" and low == high):
        return ""
    return f"{shown(figure, low).removesuffix(' %')} to {shown(figure, high).removesuffix(' %')}"
