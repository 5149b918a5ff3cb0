"""From the metrics of benchmarks to averages: each group's, and FinLoRA's overall one.

An average uses the headline score of each benchmark: strict accuracy or that by FinLoRA's rules, or BERTScore
F1. A benchmark that was not scored is named as missing, not counted as 0.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from data.catalog import BENCHMARKS, GROUPS, ON_REQUEST
from eval.metrics.intervals import mean_interval
from fedfinlora.run.evaluation import BenchmarkMetrics, GroupMean, Overall, Scores

PUBLISHED_ENCODER = "ProsusAI/finbert"
"""The BERTScore encoder of the published figures; scores of another one cannot be compared with them."""


def headline_name(metrics: BenchmarkMetrics, family: str = "finlora") -> str:
    """The figure of a benchmark that averages use: accuracy (family "finlora" or "strict"), BERTScore F1 or entity F1.

    Where FinLoRA's rules do not apply, both families have the same figure.
    """
    return headline_of(metrics.estimates, family)


def headline_of(names: Collection[str], family: str) -> str:
    """The same by the names of the figures that were measured."""
    for name in ("bertscore_f1", "entity_f1"):
        if name in names:
            return name
    judged_otherwise = "accuracy" in names and "finlora_accuracy" not in names
    return "accuracy" if family == "strict" or judged_otherwise else "finlora_accuracy"


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
    """Group key -> mean of its benchmarks' headline scores in both families, with the benchmarks that are missing from
    it.
    """
    means: dict[str, GroupMean] = {}
    for group in GROUPS:
        keys = [key for key, benchmark in BENCHMARKS.items() if benchmark.group == group]
        if group in ON_REQUEST and not any(key in scores for key in keys):
            continue
        present = _scored(scores, keys)
        strict, finlora = (_headlines(scores, present, family) for family in ("strict", "finlora"))
        means[group] = GroupMean(
            score=mean_of(strict),
            score_ci95=mean_interval(strict),
            finlora_score=mean_of(finlora),
            finlora_score_ci95=mean_interval(finlora),
            benchmarks=tuple(present),
            missing=tuple(key for key in keys if key not in present),
        )
    return means


def finlora_overall(scores: Scores) -> Overall:
    """FinLoRA's overall average in percent, over those of its benchmarks that were scored.

    It equals the published definition only if `missing` is empty and BERTScore ran on the published encoder
    (`comparable`).
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


def mean_of(figures: Sequence[tuple[float, Sequence[float] | None]]) -> float | None:
    """The mean of (figure, interval) pairs, without the intervals; None if there are none."""
    return math.fsum(figure for figure, _ in figures) / len(figures) if figures else None
