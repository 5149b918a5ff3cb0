"""From row records to figures, each with its 95 % interval: by FinLoRA's rules, honestly, and by label log-probabilities, kept apart.

Everything here is a fraction from 0 to 1, and None (null in JSON) where it is undefined; only FinLoRA's overall average is a
percentage, as published. "Unparsed" is an outcome of its own: a wrong answer for its row, never a class.

Three families. What a model wrote is read honestly (`accuracy`, `f1_macro`, …) and by FinLoRA's rules (`finlora_…`); what it holds most
likely among the labels (`label_choice` of a record) gives `labels_…`. A family that was not measured is absent, not 0.

Shares of rows have Wilson's interval, all other figures a bootstrap over rows (`eval.intervals`). The tags of a FiNER or FNXL row stand
and fall together, so their shares are bootstrapped by row too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from data.catalog import BENCHMARKS, GROUPS, Benchmark
from eval.agreement import (
    Pair,
    all_classes,
    class_counts,
    class_table,
    confusion_matrix,
    macro_and_weighted_f1,
    matthews,
    share_of,
    true_classes,
)
from eval.intervals import bootstrap_interval, estimate_of, mean_interval, sample_and_resamples, wilson_interval
from eval.scoring import RELATIVE_TOLERANCE, FinloraPiece, closed_labels, finlora_scores, score_row
from fedfinlora.errors import UserError
from fedfinlora.run.evaluation import BenchmarkMetrics, Estimate, GroupMean, Overall, RowRecord, Scores

if TYPE_CHECKING:
    from eval.intervals import Array

__all__ = [
    "PUBLISHED_ENCODER",
    "f1_scores",
    "figure_values",
    "finlora_f1",
    "finlora_overall",
    "group_means",
    "headline_of",
    "headline_score",
    "judge_rows",
    "matthews_correlation",
    "summarise",
    "wilson_interval",
]  # fmt: skip

PUBLISHED_ENCODER = "ProsusAI/finbert"
"""The BERTScore encoder of the published figures; scores of another one cannot be compared with them."""

BERTSCORE_PARTS = ("precision", "recall", "f1")

ROW_SHARES = frozenset(
    {"unparsed_share", "accuracy", "finlora_accuracy", "accuracy_exact", "row_accuracy", "value_accuracy", "labels_accuracy"}
)
"""Figures that are a number of rows (of tags, for tag lists) out of all."""

Item = TypeVar("Item")


# --- rows ---------------------------------------------------------------------------------------------------------------------


class JudgedRow(NamedTuple):
    """All that the figures need of one record. Equal ones are rows of one kind."""

    answers: tuple[Pair, ...]
    """The row's (truth, answer), or that of each tag; a number within the tolerance is its truth."""
    finlora: tuple[Pair, ...] = ()
    """FinLoRA's (target, response) of its rule 6; a response that is nobody's target is None: it is a class that no row has."""
    finlora_ambiguous: int = 0
    correct: bool = False
    exact: bool = False
    value_correct: bool = False
    bertscore: tuple[float, ...] = ()
    """Precision, recall, F1."""
    choice: Pair = ("", None)
    """(truth, most likely label)."""


class Judged(NamedTuple):
    """The rows of one evaluation of a benchmark, and which families of figures they have."""

    rows: list[JudgedRow]
    written: bool
    """Answers were generated. Should single rows have none, theirs count as empty."""
    chosen: bool
    """Labels were compared by their log-probabilities. Should single rows have no choice, theirs is wrong."""


def judge_rows(benchmark: Benchmark, records: Sequence[RowRecord]) -> Judged:
    """Judge every record by what it holds: `target`, `output`, `label_choice` and the BERTScores."""
    if benchmark.scorer == "bertscore":
        return _bertscored(records)
    labels = closed_labels(benchmark)
    outputs = [record.output for record in records]
    written = not records or any(output is not None for output in outputs)
    texts = [output or "" for output in outputs]
    judged = finlora_scores(benchmark, [record.target for record in records], texts) if written else [[] for _ in records]
    targets = {piece.target for pieces in judged for piece in pieces}
    rows: list[JudgedRow] = []
    for record, text, pieces in zip(records, texts, judged, strict=True):
        score = score_row(benchmark, record.target, text)
        truth, choice = str(score.expected), record.label_choice
        if benchmark.scorer == "tag_list":
            answers = score.tag_pairs
        else:
            answers = ((truth, truth if score.correct else None if score.parsed is None else str(score.parsed)),)
        rows.append(
            JudgedRow(
                answers,
                tuple(_finlora_pair(piece, targets) for piece in pieces),
                sum(piece.ambiguous for piece in pieces),
                score.correct is True,
                score.exact is True,
                score.value_correct is True,
                choice=(truth, choice if choice in labels else None),
            )
        )
    chosen = bool(labels) and any(record.label_choice is not None for record in records)
    return Judged(rows, written, chosen)


def _bertscored(records: Sequence[RowRecord]) -> Judged:
    rows = [
        JudgedRow(
            answers=(("", None if record.parsed is None else ""),),
            bertscore=(record.bertscore_precision or 0.0, record.bertscore_recall or 0.0, record.bertscore_f1 or 0.0),
        )
        for record in records
    ]
    return Judged(rows, not records or any(record.bertscore_f1 is not None for record in records), chosen=False)


def _finlora_pair(piece: FinloraPiece, targets: Collection[str]) -> Pair:
    response = piece.target if piece.correct else piece.output
    return piece.target, response if response in targets else None


def kinds_of(rows: Iterable[Item]) -> tuple[list[Item], list[int]]:
    """(distinct rows in a fixed order, how many there are of each), so that neither order nor repetition of rows matters."""
    counts = Counter(rows)
    kinds = sorted(counts, key=repr)
    return kinds, [counts[kind] for kind in kinds]


# --- figures of a sample and its resamples ------------------------------------------------------------------------------------


def figure_values(
    benchmark: Benchmark, kinds: Sequence[JudgedRow], times: Array, written: bool, chosen: bool
) -> dict[str, Array]:
    """Each figure's value, (resamples,), where kind k occurs times[:, k] often; `times` has shape (resamples, kinds)."""
    values: dict[str, Array] = {}
    if written and benchmark.scorer == "bertscore":
        values |= _bertscore_values(kinds, times)
    elif written:
        values |= _answer_values(benchmark, kinds, times)
    if chosen:
        values |= _class_values([(kind.choice,) for kind in kinds], times, "labels_", correlate=True)
    return values


def _answer_values(benchmark: Benchmark, kinds: Sequence[JudgedRow], times: Array) -> dict[str, Array]:
    answers, finlora = [kind.answers for kind in kinds], [kind.finlora for kind in kinds]
    values = {"unparsed_share": _unparsed_share(answers, times)}
    values |= _class_values(answers, times, correlate=bool(benchmark.labels))
    weighted = _class_values(finlora, times)
    values |= {"finlora_accuracy": weighted["accuracy"], "finlora_f1": weighted["f1_weighted"]}
    if benchmark.scorer == "number":
        values["accuracy_exact"] = _mean([kind.exact for kind in kinds], times)
    if benchmark.scorer == "tag_list":
        values["row_accuracy"] = _mean([kind.correct for kind in kinds], times)
    if benchmark.judged_by_value:
        values["value_accuracy"] = _mean([kind.value_correct for kind in kinds], times)
    return values


def _class_values(pairs: Sequence[Sequence[Pair]], times: Array, prefix: str = "", correlate: bool = False) -> dict[str, Array]:
    """Accuracy, F1 and, on demand, Matthews correlation; `pairs` holds those of each kind."""
    everything = [pair for members in pairs for pair in members]
    counts = class_counts(pairs, true_classes(everything), times)
    macro, weighted = macro_and_weighted_f1(counts)
    accuracy = share_of(counts.hits.sum(axis=0), counts.truths.sum(axis=0))
    values = {f"{prefix}accuracy": accuracy, f"{prefix}f1_macro": macro, f"{prefix}f1_weighted": weighted}
    if correlate:
        values[f"{prefix}matthews"] = matthews(class_counts(pairs, all_classes(everything), times))
    return values


def _bertscore_values(kinds: Sequence[JudgedRow], times: Array) -> dict[str, Array]:
    values = {"unparsed_share": _unparsed_share([kind.answers for kind in kinds], times)}
    for place, part in enumerate(BERTSCORE_PARTS):
        values[f"bertscore_{part}"] = _mean([kind.bertscore[place] for kind in kinds], times)
    return values


def _unparsed_share(answers: Sequence[Sequence[Pair]], times: Array) -> Array:
    unparsed = [sum(answer is None for _, answer in pairs) for pairs in answers]
    return share_of(_total(unparsed, times), _total([len(pairs) for pairs in answers], times))


def _mean(of_kind: Sequence[float], times: Array) -> Array:
    return share_of(_total(of_kind, times), times.sum(axis=1))


def _total(of_kind: Sequence[float], times: Array) -> Array:
    """Σ of_kind[k]·times[:, k], added in one order on every machine (a matrix product's order depends on its threads)."""
    import numpy as np

    return np.asarray(np.einsum("rk,k->r", times, np.asarray(of_kind, dtype=np.float64)))


def _interval(benchmark: Benchmark, name: str, values: Array, rows: int) -> Sequence[float] | None:
    """Wilson's for shares of rows; else the bootstrap's. Shares of tags at 0 and 1, where the bootstrap has no width, take Wilson's
    with the rows for n: no tag of a row tells more than the row."""
    estimate = estimate_of(values)
    if estimate is None:
        return None
    share_of_rows = benchmark.scorer != "tag_list" or name == "row_accuracy" or estimate in (0.0, 1.0)
    if name in ROW_SHARES and share_of_rows:
        return wilson_interval(round(estimate * rows), rows)
    return bootstrap_interval(values, lowest=-1.0 if name.endswith("matthews") else 0.0)


# --- one benchmark ------------------------------------------------------------------------------------------------------------


def summarise(benchmark: Benchmark, records: Sequence[RowRecord]) -> BenchmarkMetrics:
    """The metrics of one benchmark from its records; all estimates are None if there are no rows.

    For FiNER and FNXL `n` and everything else counts tags, and `rows` and `row_accuracy` count rows.
    """
    judged = judge_rows(benchmark, records)
    kinds, counts = kinds_of(judged.rows)
    pairs = [pair for row in judged.rows for pair in row.answers]
    found = figure_values(benchmark, kinds, sample_and_resamples(counts), judged.written, judged.chosen)
    metrics = BenchmarkMetrics(
        n=len(pairs),
        unparsed=sum(answer is None for _, answer in pairs) if judged.written else None,
        estimates={
            name: Estimate(estimate_of(values), *(_interval(benchmark, name, values, len(judged.rows)) or ()))
            for name, values in found.items()
        },
        rows=len(records) if benchmark.scorer == "tag_list" else None,
    )
    if benchmark.scorer == "bertscore":
        return _with_encoder(metrics, records)
    if not judged.written:
        return metrics
    labels = closed_labels(benchmark)
    compared_as_numbers = benchmark.scorer == "number" or benchmark.judged_by_value
    return replace(
        metrics,
        finlora_ambiguous=sum(row.finlora_ambiguous for row in judged.rows),
        classes=class_table(pairs, labels) if labels or benchmark.scorer == "tag_list" else None,
        confusion=confusion_matrix(pairs, labels) if labels else None,
        relative_tolerance=RELATIVE_TOLERANCE if compared_as_numbers else None,
    )


def _with_encoder(metrics: BenchmarkMetrics, records: Sequence[RowRecord]) -> BenchmarkMetrics:
    """With BERTScore's encoder and layer, where anything was scored."""
    encoders = bertscore_encoders(records)
    if len(encoders) > 1:
        raise UserError(f"BERTScores of different encoders cannot be averaged: {encoders}. Score all rows again with one.")
    model, layer = encoders[0] if encoders else (None, None)
    return replace(metrics, bertscore_model=model, bertscore_layer=layer)


def bertscore_encoders(records: Sequence[RowRecord]) -> list[tuple[str, int]]:
    """Every (encoder, layer) that scored a record."""
    scored = {(record.bertscore_model, record.bertscore_layer) for record in records if record.bertscore_f1 is not None}
    return sorted((str(model), int(layer or 0)) for model, layer in scored)


# --- figures of plain lists ---------------------------------------------------------------------------------------------------


def f1_scores(truths: Sequence[str], answers: Sequence[str | None]) -> tuple[float | None, float | None]:
    """(macro F1, weighted F1) of one sample (`eval.agreement.macro_and_weighted_f1`); (None, None) without rows."""
    pairs = list(zip(truths, answers, strict=True))
    macro, weighted = macro_and_weighted_f1(class_counts([pairs], true_classes(pairs), _once()))
    return estimate_of(macro), estimate_of(weighted)


def matthews_correlation(truths: Sequence[str], answers: Sequence[str | None]) -> float | None:
    """Matthews correlation of one sample (`eval.agreement.matthews`); None without rows or with one true class."""
    pairs = list(zip(truths, answers, strict=True))
    return estimate_of(matthews(class_counts([pairs], all_classes(pairs), _once())))


def finlora_f1(pieces: Sequence[FinloraPiece]) -> float | None:
    """FinLoRA's weighted F1 (its rule 6): the response is the target where the row is right, else the raw output text.

    Wrong texts are classes of their own without true rows, so precision is near 1 and the figure near 2·acc / (1 + acc): it
    flatters. Kept for comparison with the published column only.
    """
    responses = [piece.target if piece.correct else piece.output for piece in pieces]
    return f1_scores([piece.target for piece in pieces], responses)[1]


def _once() -> Array:
    import numpy as np

    return np.ones((1, 1))


# --- several benchmarks -------------------------------------------------------------------------------------------------------


def headline_name(metrics: BenchmarkMetrics, family: str = "finlora") -> str:
    """The figure of a benchmark that averages use: accuracy ("finlora" or "honest" family), or BERTScore F1."""
    return headline_of(metrics.estimates, family)


def headline_of(names: Collection[str], family: str) -> str:
    """The same by the names of the figures that were measured."""
    return "bertscore_f1" if "bertscore_f1" in names else "finlora_accuracy" if family == "finlora" else "accuracy"


def headline_score(metrics: BenchmarkMetrics, family: str = "finlora") -> float | None:
    """Its value; None where it was not measured, as in an evaluation of label log-probabilities alone."""
    return metrics.value(headline_name(metrics, family))


def _headlines(scores: Scores, keys: Iterable[str], family: str) -> list[tuple[float, Sequence[float] | None]]:
    """(score, 95 % interval) of each benchmark that has one."""
    found = [scores[key].estimates.get(headline_name(scores[key], family)) for key in keys]
    return [
        (one.value, None if one.low is None or one.high is None else (one.low, one.high))
        for one in found
        if one is not None and one.value is not None
    ]


def _scored(scores: Scores, keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key in scores and headline_score(scores[key]) is not None]


def group_means(scores: Scores) -> dict[str, GroupMean]:
    """Group key -> mean of its benchmarks' headline scores in both families, with the benchmarks that are missing from it."""
    means: dict[str, GroupMean] = {}
    for group in GROUPS:
        keys = [key for key, benchmark in BENCHMARKS.items() if benchmark.group == group]
        present = _scored(scores, keys)
        honest, finlora = (_headlines(scores, present, family) for family in ("honest", "finlora"))
        means[group] = GroupMean(
            score=mean_of(honest),
            score_ci95=_pair(mean_interval(honest)),
            finlora_score=mean_of(finlora),
            finlora_score_ci95=_pair(mean_interval(finlora)),
            benchmarks=tuple(present),
            missing=tuple(key for key in keys if key not in present),
        )
    return means


def finlora_overall(scores: Scores) -> Overall:
    """FinLoRA's overall average in percent, over those of its benchmarks that were scored.

    It equals the published definition only if `missing` is empty and BERTScore ran on the published encoder (`comparable`).
    """
    keys = [key for key, benchmark in BENCHMARKS.items() if benchmark.is_published]
    present = _scored(scores, keys)
    headlines = _headlines(scores, present, "finlora")
    mean, interval = mean_of(headlines), mean_interval(headlines)
    encoders = {scores[key].bertscore_model or PUBLISHED_ENCODER for key in present}
    missing = tuple(key for key in keys if key not in present)
    return Overall(
        value=None if mean is None else 100 * mean,
        value_ci95=None if interval is None else tuple(100 * end for end in interval),
        missing=missing,
        comparable=not missing and encoders == {PUBLISHED_ENCODER},
    )


def _pair(interval: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if interval is None else tuple(interval)


def mean_of(figures: Sequence[tuple[float, Sequence[float] | None]]) -> float | None:
    """The mean of (figure, interval) pairs, without the intervals; None if there are none."""
    return math.fsum(figure for figure, _ in figures) / len(figures) if figures else None
