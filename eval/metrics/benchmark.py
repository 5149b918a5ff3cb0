"""From row scores to the metrics of one benchmark, each with its 95 % interval: strict, by FinLoRA's rules, and by
label log-probabilities.

Figures are fractions from 0 to 1, None (null in JSON) where undefined. "Unparsed" is a wrong answer for its row, never
a class.

What a model wrote is judged strictly (`accuracy`, `f1_macro`, … and the scorer's own measures) and by FinLoRA's rules
(`finlora_…`); its most probable label gives `labels_…`. A family that was not measured is absent, not 0.

Shares of rows have Wilson's interval, all other figures a bootstrap over rows (`eval.metrics.intervals`). The tags of a
FiNER or FNXL row are right or wrong together, so their shares are bootstrapped by row too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from data.catalog import Benchmark
from eval.metrics.agreement import (
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
from eval.metrics.intervals import bootstrap_interval, estimate_of, sample_and_resamples, wilson_interval
from eval.scoring.row_score import closed_labels
from eval.scoring.scorers import SCORERS, RowScore
from fedfinlora.errors import UserError
from fedfinlora.run.evaluation import BenchmarkMetrics, Estimate

if TYPE_CHECKING:
    from eval.metrics.intervals import Array

SHARES = frozenset({"unparsed_share", "accuracy", "finlora_accuracy", "labels_accuracy"})
"""Figures that are a number of rows (of pairs, where a row has several) out of all; so are the scorer's `shares`."""

Item = TypeVar("Item")


# --- one benchmark --------------------------------------------------------------------------------


def summarise(benchmark: Benchmark, scores: Sequence[RowScore]) -> BenchmarkMetrics:
    """The metrics of one benchmark from its scores; all estimates are None if there are no rows.

    For FiNER and FNXL `n` and everything else counts tags, and `rows` and `row_accuracy` count rows.
    """
    scorer, sample = SCORERS[benchmark.scorer], sample_of(benchmark, scores)
    kinds, counts = kinds_of(sample.rows)
    pairs = [pair for row in sample.rows for pair in row.answers]
    found = figure_values(benchmark, kinds, sample_and_resamples(counts), sample.written, sample.chosen)
    metrics = BenchmarkMetrics(
        n=len(pairs),
        unparsed=sum(answer is None for _, answer in pairs) if sample.written else None,
        estimates={
            name: Estimate(estimate_of(values), *(_interval(benchmark, name, values, len(scores)) or ()))
            for name, values in found.items()
        },
        rows=len(scores) if scorer.several else None,
    )
    encoders = bertscore_encoders(scores)
    if len(encoders) > 1:
        listed = " and ".join(f"{name}, layer {layer}" for name, layer in encoders)
        raise UserError(f"BERTScores of different encoders cannot be averaged ({listed}). Score all rows with one.")
    if encoders:
        [(model, layer)] = encoders
        metrics = replace(metrics, bertscore_model=model, bertscore_layer=layer)
    if not (sample.written and scorer.judged):
        return metrics
    labels = closed_labels(benchmark)
    return replace(
        metrics,
        finlora_ambiguous=sum(row.finlora_ambiguous for row in sample.rows) if scorer.by_finlora else None,
        classes=class_table(pairs, labels) if labels or scorer.several else None,
        confusion=confusion_matrix(pairs, labels) if labels else None,
        relative_tolerance=scorer.relative_tolerance,
    )


def bertscore_encoders(scores: Iterable[RowScore]) -> list[tuple[str, int]]:
    """Every (encoder, layer) that scored a row."""
    return sorted({score.encoder for score in scores if score.encoder})


def _interval(benchmark: Benchmark, name: str, values: Array, rows: int) -> Sequence[float] | None:
    """Wilson's for shares of rows; else the bootstrap's. Shares of tags at 0 and 1, where the bootstrap has no width,
    take Wilson's with the rows for n: no tag of a row says more than the row.
    """
    estimate, scorer = estimate_of(values), SCORERS[benchmark.scorer]
    if estimate is None:
        return None
    if name in scorer.shares or (name in SHARES and (not scorer.several or estimate in (0.0, 1.0))):
        return wilson_interval(round(estimate * rows), rows)
    return bootstrap_interval(values, lowest=-1.0 if name.endswith("matthews") else 0.0)


# --- rows -----------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """All that the figures need of one score. Equal ones are rows of one kind."""

    answers: tuple[Pair, ...]
    """`RowScore.pairs`."""
    finlora: tuple[Pair, ...]
    """FinLoRA's (target, response) of its rule 6: the response is the target where the piece is right, else the raw
    output. One that is no row's target is None, a class that no row has, so precision is near 1 and F1 flatters: it is
    near 2·acc / (1 + acc).
    """
    finlora_ambiguous: int
    measures: tuple[float, ...]
    choice: tuple[Pair, ...]
    """(truth, most likely label), where the label set is closed."""


PAIRS_OF: dict[str, Callable[[Kind], tuple[Pair, ...]]] = {
    "accuracy": lambda kind: kind.answers,
    "finlora_accuracy": lambda kind: kind.finlora,
    "labels_accuracy": lambda kind: kind.choice,
}
"""Accuracy -> the pairs that it counts."""


@dataclass(frozen=True)
class Sample:
    """The rows of one evaluation of a benchmark, and which families of figures they have."""

    rows: list[Kind]
    written: bool
    """Answers were generated. Should single rows have none, theirs count as empty."""
    chosen: bool
    """Labels were compared by their log-probabilities. Should single rows have no choice, theirs is wrong."""


def sample_of(benchmark: Benchmark, scores: Sequence[RowScore]) -> Sample:
    """The scores as figures count them."""
    labels = closed_labels(benchmark)
    targets = {piece.target for score in scores for piece in score.finlora}
    rows = []
    for score in scores:
        responses = [(piece.target, piece.target if piece.correct else piece.output) for piece in score.finlora]
        rows.append(
            Kind(
                score.pairs,
                tuple((target, response if response in targets else None) for target, response in responses),
                sum(piece.ambiguous for piece in score.finlora),
                score.measures,
                ((str(score.expected), score.choice if score.choice in labels else None),) if labels else (),
            )
        )
    written = not scores or any(score.scored for score in scores)
    return Sample(rows, written, chosen=bool(labels) and any(score.choice is not None for score in scores))


def verdicts(benchmark: Benchmark, name: str, rows: Sequence[Kind]) -> list[bool]:
    """Which rows a share of rows counts; [] for other figures, and for shares of tags: those of a row are not
    independent.
    """
    scorer = SCORERS[benchmark.scorer]
    if name in scorer.shares:
        return [bool(row.measures[scorer.measured.index(name)]) for row in rows]
    if scorer.several or name not in PAIRS_OF:
        return []
    return [truth == answer for row in rows for truth, answer in PAIRS_OF[name](row)]


def kinds_of(rows: Iterable[Item]) -> tuple[list[Item], list[int]]:
    """(distinct rows in a fixed order, how many there are of each), so that neither order nor repetition of rows
    matters.
    """
    counts = Counter(rows)
    kinds = sorted(counts, key=repr)
    return kinds, [counts[kind] for kind in kinds]


# --- figures of a sample and its resamples --------------------------------------------------------


def figure_values(
    benchmark: Benchmark, kinds: Sequence[Kind], times: Array, written: bool, chosen: bool
) -> dict[str, Array]:
    """Each figure's value, (resamples,), where kind k occurs times[:, k] often; `times` has shape (resamples,
    kinds).
    """
    scorer = SCORERS[benchmark.scorer]
    values: dict[str, Array] = {}
    if written:
        answers = [kind.answers for kind in kinds]
        values["unparsed_share"] = _unparsed_share(answers, times)
        if scorer.judged:
            values |= _class_values(answers, times, correlate=bool(benchmark.labels), with_f1=scorer.classes)
        if scorer.judged and scorer.by_finlora:
            weighted = _class_values([kind.finlora for kind in kinds], times)
            values |= {"finlora_accuracy": weighted["accuracy"], "finlora_f1": weighted["f1_weighted"]}
        columns = dict(zip(scorer.measured, zip(*(kind.measures for kind in kinds), strict=True), strict=False))
        for name in (*scorer.shares, *scorer.means):
            values[name] = _mean(columns.get(name, ()), times)
        values |= scorer.figures({name: _total(columns.get(name, ()), times) for name in scorer.counts})
    if chosen:
        values |= _class_values([kind.choice for kind in kinds], times, "labels_", correlate=True)
    return values


def _class_values(
    pairs: Sequence[Sequence[Pair]], times: Array, prefix: str = "", correlate: bool = False, with_f1: bool = True
) -> dict[str, Array]:
    """Accuracy, F1 and, on demand, Matthews correlation; `pairs` holds those of each kind."""
    everything = [pair for members in pairs for pair in members]
    counts = class_counts(pairs, true_classes(everything), times)
    macro, weighted = macro_and_weighted_f1(counts)
    accuracy = share_of(counts.hits.sum(axis=0), counts.truths.sum(axis=0))
    values = {f"{prefix}accuracy": accuracy}
    if with_f1:
        values |= {f"{prefix}f1_macro": macro, f"{prefix}f1_weighted": weighted}
    if correlate:
        values[f"{prefix}matthews"] = matthews(class_counts(pairs, all_classes(everything), times))
    return values


def _unparsed_share(answers: Sequence[Sequence[Pair]], times: Array) -> Array:
    unparsed = [sum(answer is None for _, answer in pairs) for pairs in answers]
    return share_of(_total(unparsed, times), _total([len(pairs) for pairs in answers], times))


def _mean(of_kind: Sequence[float], times: Array) -> Array:
    return share_of(_total(of_kind, times), times.sum(axis=1))


def _total(of_kind: Sequence[float], times: Array) -> Array:
    """Σ of_kind[k]·times[:, k], added in one order on every machine (a matrix product's order depends on its
    threads).
    """
    import numpy as np

    return np.asarray(np.einsum("rk,k->r", times, np.asarray(of_kind, dtype=np.float64)))
