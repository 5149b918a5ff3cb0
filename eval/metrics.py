"""From judged rows to figures: shares with Wilson intervals, F1, Matthews correlation, group means and FinLoRA's overall average.

Everything here is a fraction from 0 to 1, and None (null in JSON) where it is undefined; only FinLoRA's overall average is a
percentage, as published. "Unparsed" is an outcome of its own: a wrong answer for its row, never a class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data.catalog import BENCHMARKS, GROUPS, Benchmark
from eval.scoring import FinloraPiece, finlora_scores, score_row
from fedfinlora.errors import UserError

Z_95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""

PUBLISHED_ENCODER = "ProsusAI/finbert"
"""The BERTScore encoder of the published figures; scores of another one cannot be compared with them."""

_UNPARSED = "\x00unparsed"


def wilson_interval(hits: int, n: int, z: float = Z_95) -> tuple[float, float] | None:
    """The Wilson score interval of the share hits / n (Wilson 1927); None for n = 0.

    Unlike p ± z·sqrt(p(1-p)/n) it stays inside [0, 1] and has a width at 0 and at n hits.

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    if not 0 <= hits <= n:
        raise ValueError(f"hits={hits} is not between 0 and n={n}")
    if n == 0:
        return None
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)))


def f1_scores(truths: Sequence[str], answers: Sequence[str | None]) -> tuple[float | None, float | None]:
    """(macro F1, weighted F1) over the classes that occur among the truths; (None, None) without rows.

    An answer that is None (unparsed) or outside these classes costs its true class recall and no class precision, and adds no
    class to the macro average. Weights are the rows of each true class.
    """
    if not truths:
        return None, None
    from sklearn.metrics import f1_score

    given = [_UNPARSED if answer is None else answer for answer in answers]
    classes = sorted(set(truths))
    macro, weighted = (
        float(f1_score(truths, given, labels=classes, average=average, zero_division=0)) for average in ("macro", "weighted")
    )
    return macro, weighted


def matthews_correlation(truths: Sequence[str], answers: Sequence[str | None]) -> float | None:
    """Matthews correlation over several classes (Gorodkin 2004), "unparsed" being one more possible answer.

    None without rows or with one true class, where nothing can correlate; 0 if all answers are the same.
    """
    if len(set(truths)) < 2:
        return None
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(truths, [_UNPARSED if answer is None else answer for answer in answers]))


def finlora_f1(pieces: Sequence[FinloraPiece]) -> float | None:
    """FinLoRA's weighted F1 (its rule 6): the response is the target where the row is right, else the raw output text.

    Wrong texts are classes of their own without true rows, so precision is near 1 and the figure near 2·acc / (1 + acc): it
    flatters. Kept for comparison with the published column only.
    """
    if not pieces:
        return None
    from sklearn.metrics import f1_score

    targets = [piece.target for piece in pieces]
    responses = [piece.target if piece.correct else piece.output for piece in pieces]
    return float(f1_score(targets, responses, average="weighted", zero_division=0))


def summarise(benchmark: Benchmark, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics of one benchmark from its row records (`eval.records`); all figures are null if there are no rows.

    For FiNER and FNXL everything counts tags, and `rows` and `row_accuracy` count rows. The interval treats tags as
    independent.
    """
    if benchmark.scorer == "bertscore":
        return _summarise_bertscore(records)
    outcomes = [pair for record in records for pair in _outcomes(benchmark, record)]
    truths, answers = [truth for truth, _ in outcomes], [answer for _, answer in outcomes]
    hits = sum(truth == answer for truth, answer in outcomes)
    n, unparsed = len(outcomes), answers.count(None)
    macro, weighted = f1_scores(truths, answers)
    judged = finlora_scores(benchmark, [r["target"] for r in records], [r["output"] for r in records])
    pieces = [piece for row in judged for piece in row]
    interval = wilson_interval(hits, n)
    metrics: dict[str, Any] = {
        "n": n,
        "unparsed": unparsed,
        "unparsed_share": _share(unparsed, n),
        "accuracy": _share(hits, n),
        "accuracy_ci95": list(interval) if interval else None,
        "f1_macro": macro,
        "f1_weighted": weighted,
        "finlora_accuracy": _share(sum(piece.correct for piece in pieces), len(pieces)),
        "finlora_f1": finlora_f1(pieces),
        "finlora_ambiguous": sum(piece.ambiguous for piece in pieces),
    }
    if benchmark.labels:
        metrics["matthews"] = matthews_correlation(truths, answers)
    if benchmark.scorer == "number":
        metrics["accuracy_exact"] = _share(sum(record["exact"] is True for record in records), n)
    if benchmark.scorer == "tag_list":
        metrics["rows"] = len(records)
        metrics["row_accuracy"] = _share(sum(record["correct"] is True for record in records), len(records))
    return metrics


def _summarise_bertscore(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    encoders = sorted({(record["bertscore_model"], record["bertscore_layer"]) for record in records})
    if len(encoders) > 1:
        raise UserError(f"BERTScores of different encoders cannot be averaged: {encoders}. Score all rows again with one.")
    n, unparsed = len(records), sum(record["parsed"] is None for record in records)
    return {
        "n": n,
        "unparsed": unparsed,
        "unparsed_share": _share(unparsed, n),
        **{
            f"bertscore_{part}": _mean(record[f"bertscore_{part}"] for record in records)
            for part in ("precision", "recall", "f1")
        },
        "bertscore_model": encoders[0][0] if encoders else None,
        "bertscore_layer": encoders[0][1] if encoders else None,
    }


def _outcomes(benchmark: Benchmark, record: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """(true class, answered class or None) of one row, or of each tag of the row; a number in tolerance is the true class."""
    score = score_row(benchmark, record["target"], record["output"])
    if isinstance(score.expected, list):
        given = [*(score.parsed if isinstance(score.parsed, list) else []), *[None] * len(score.expected)]
        return [(str(truth), answer) for truth, answer in zip(score.expected, given, strict=False)]
    truth = str(score.expected)
    if score.parsed is None:
        return [(truth, None)]
    return [(truth, truth if score.correct else str(score.parsed))]


def headline_score(metrics: Mapping[str, Any], family: str = "finlora") -> float | None:
    """The one figure of a benchmark that averages use: accuracy ("finlora" or "honest" family), or BERTScore F1."""
    value = metrics.get("bertscore_f1", metrics.get("finlora_accuracy" if family == "finlora" else "accuracy"))
    return None if value is None else float(value)


def group_means(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Group key -> mean of its benchmarks' headline scores in both families, with the benchmarks that are missing from it."""
    means: dict[str, dict[str, Any]] = {}
    for group in GROUPS:
        keys = [key for key, benchmark in BENCHMARKS.items() if benchmark.group == group]
        present = [key for key in keys if headline_score(scores.get(key, {})) is not None]
        means[group] = {
            "score": _mean(headline_score(scores[key], "honest") for key in present),
            "finlora_score": _mean(headline_score(scores[key]) for key in present),
            "benchmarks": present,
            "missing": [key for key in keys if key not in present],
        }
    return means


def finlora_overall(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """FinLoRA's overall average in percent, over the benchmarks that were scored.

    It equals the published definition only if `missing` is empty and BERTScore ran on the published encoder (`comparable`).
    """
    present = {key: value for key in BENCHMARKS if (value := headline_score(scores.get(key, {}))) is not None}
    encoders = {scores[key].get("bertscore_model", PUBLISHED_ENCODER) for key in present}
    mean = _mean(present.values())
    missing = [key for key in BENCHMARKS if key not in present]
    return {
        "value": None if mean is None else 100 * mean,
        "unit": "percent",
        "missing": missing,
        "comparable": not missing and encoders == {PUBLISHED_ENCODER},
    }


def summarise_all(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures over several benchmarks that `eval/<label>/metrics.json` holds beside their own."""
    return {"groups": group_means(scores), "finlora_overall": finlora_overall(scores)}


def _share(count: int, n: int) -> float | None:
    return count / n if n else None


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are defined, summed exactly so that the order of rows cannot matter."""
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None
