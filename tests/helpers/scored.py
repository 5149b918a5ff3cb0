"""What the tests of scores share: one row's strict score, metrics of records, and F1 and correlation of plain lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.catalog import Benchmark
from eval.metrics.agreement import all_classes, class_counts, macro_and_weighted_f1, matthews, true_classes
from eval.metrics.benchmark import summarise
from eval.metrics.intervals import estimate_of
from eval.scoring.finlora import FinloraPiece
from eval.scoring.records import recorded_scores
from eval.scoring.row_score import score_answers
from eval.scoring.scorers import RowScore
from fedfinlora.run.evaluation import BenchmarkMetrics, RowRecord

ONCE = np.ones((1, 1))


def score_row(benchmark: Benchmark, target: str, output: str) -> RowScore:
    return score_answers(benchmark, [target], [output])[0]


def metrics_of_records(benchmark: Benchmark, records: Sequence[RowRecord]) -> BenchmarkMetrics:
    return summarise(benchmark, recorded_scores(benchmark, records))


def f1_scores(truths: Sequence[str], answers: Sequence[str | None]) -> tuple[float | None, float | None]:
    """(macro, weighted) of one sample."""
    pairs = list(zip(truths, answers, strict=True))
    macro, weighted = macro_and_weighted_f1(class_counts([pairs], true_classes(pairs), ONCE))
    return estimate_of(macro), estimate_of(weighted)


def matthews_correlation(truths: Sequence[str], answers: Sequence[str | None]) -> float | None:
    pairs = list(zip(truths, answers, strict=True))
    return estimate_of(matthews(class_counts([pairs], all_classes(pairs), ONCE)))


def finlora_f1(pieces: Sequence[FinloraPiece]) -> float | None:
    """FinLoRA's weighted F1 (its rule 6): the response is the target where the row is right, else the raw output
    text.
    """
    responses = [piece.target if piece.correct else piece.output for piece in pieces]
    return f1_scores([piece.target for piece in pieces], responses)[1]
