"""Two evaluations of the same rows: the difference of every figure, with an interval that knows that the rows are the
same.

A resample draws rows, and both evaluations are computed on them (paired bootstrap, Efron and Tibshirani 1993, chapter
16): rows that are hard for one model are hard for the other, so the interval is narrower than those of the two figures.
Where a row is right or wrong there is McNemar's exact test (1947) on the rows on which the two disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from data.catalog import BENCHMARKS, GROUPS, Benchmark
from eval.metrics.averages import headline_of, mean_of
from eval.metrics.benchmark import Sample, bertscore_encoders, figure_values, kinds_of, sample_of, verdicts
from eval.metrics.intervals import bootstrap_interval, estimate_of, mean_interval, sample_and_resamples
from eval.scoring.records import recorded_scores
from fedfinlora.errors import UserError, plural
from fedfinlora.run.comparison import BenchmarkComparison, Compared, Comparison, MeanDifference, MetricDifference
from fedfinlora.run.evaluation import RowRecord, read_records


def compare_records(benchmark: Benchmark, one: Sequence[RowRecord], other: Sequence[RowRecord]) -> BenchmarkComparison:
    """Every figure that both evaluations have, on the rows that both have, and what it gains from `one` to `other`.

    FinLoRA's label set is that of the common rows. Raises UserError without common rows or common figures, or where
    BERTScores come from different encoders.
    """
    first, second = _by_row(one), _by_row(other)
    common = sorted(first.keys() & second.keys())
    if not common:
        raise UserError(
            f"{benchmark.key}: no row is in both evaluations ({len(one)} and {len(other)} rows): their prompts or rows "
            "differ. Evaluate "
            "both with the same data, evaluation.limit and seed, and with the same examples in front of the prompts."
        )
    scores, other_scores = (recorded_scores(benchmark, [rows[row] for row in common]) for rows in (first, second))
    encoders = bertscore_encoders([*scores, *other_scores])
    if len(encoders) > 1:
        listed = " and ".join(f"{name}, layer {layer}" for name, layer in encoders)
        raise UserError(
            f"{benchmark.key}: BERTScores of different encoders cannot be compared ({listed}). Evaluate again with one "
            "evaluation.bertscore_model."
        )
    figures = _figures(benchmark, sample_of(benchmark, scores), sample_of(benchmark, other_scores))
    if not figures:
        raise UserError(
            f"{benchmark.key}: one evaluation has generated answers only, the other labels only. Evaluate with "
            "evaluation.mode=both."
        )
    return BenchmarkComparison(len(common), len(first) - len(common), len(second) - len(common), figures)


def _by_row(records: Sequence[RowRecord]) -> dict[tuple[str, ...], RowRecord]:
    """By what makes it the same row, asked the same way (solved examples in front make another prompt of it)."""
    return {(record.prompt_sha256, record.id, record.target): record for record in records}


def _figures(benchmark: Benchmark, one: Sample, other: Sample) -> dict[str, MetricDifference]:
    kinds, counts = kinds_of(zip(one.rows, other.rows, strict=True))
    times = sample_and_resamples(counts)
    first = figure_values(benchmark, [kind for kind, _ in kinds], times, one.written, one.chosen)
    second = figure_values(benchmark, [kind for _, kind in kinds], times, other.written, other.chosen)
    figures: dict[str, MetricDifference] = {}
    for name in [name for name in first if name in second]:
        difference, widest = second[name] - first[name], 2.0 if name.endswith("matthews") else 1.0
        right = [verdicts(benchmark, name, rows) for rows in (one.rows, other.rows)]
        figures[name] = MetricDifference(
            one=estimate_of(first[name]),
            other=estimate_of(second[name]),
            difference=estimate_of(difference),
            difference_ci95=bootstrap_interval(difference, lowest=-widest, highest=widest),
            mcnemar_p=mcnemar_p(*right) if right[0] else None,
        )
    return figures


def mcnemar_p(one: Sequence[bool], other: Sequence[bool]) -> float:
    """McNemar's exact two-sided p-value: of the rows that one of the two alone has right, each is a fair coin; 1 if
    there are none.

    >>> mcnemar_p([True, False, False, False], [True, True, True, True])
    0.25
    """
    from scipy.stats import binomtest

    gained = sum(second and not first for first, second in zip(one, other, strict=True))
    lost = sum(first and not second for first, second in zip(one, other, strict=True))
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


# --- run folders ----------------------------------------------------------------------------------


def compare_runs(run_a: Path, label_a: str, run_b: Path, label_b: str) -> Comparison:
    """Compare eval/<label>/*.jsonl of two runs (or of two labels of one) on every benchmark that both have.

    Benchmarks that cannot be compared are in `skipped` with the reason; UserError if none can be.
    """
    one, other = _read_evaluation(run_a, label_a), _read_evaluation(run_b, label_b)
    common = [key for key in BENCHMARKS if key in one and key in other]
    if not common:
        raise UserError(
            f"No benchmark is in both: {run_a} ({label_a}) has {', '.join(one)}; {run_b} ({label_b}) has "
            f"{', '.join(other)}."
        )
    compared: dict[str, BenchmarkComparison] = {}
    skipped: dict[str, str] = {}
    for key in common:
        try:
            compared[key] = compare_records(BENCHMARKS[key], one[key], other[key])
        except UserError as error:
            skipped[key] = str(error)
    if not compared:
        raise UserError(f"Nothing can be compared. {next(iter(skipped.values()))}")
    groups = {group: [key for key in compared if BENCHMARKS[key].group == group] for group in GROUPS}
    return Comparison(
        one=Compared(str(run_a), label_a),
        other=Compared(str(run_b), label_b),
        benchmarks=compared,
        skipped=skipped,
        only_one=tuple(key for key in one if key not in other),
        only_other=tuple(key for key in other if key not in one),
        groups={group: _mean_difference(compared, keys) for group, keys in groups.items() if keys},
        overall=_mean_difference(compared, list(compared)),
    )


def _mean_difference(compared: Mapping[str, BenchmarkComparison], keys: Sequence[str]) -> MeanDifference:
    def differences(family: str) -> dict[str, tuple[float, tuple[float, float] | None]]:
        headlines = {key: compared[key].figures.get(headline_of(compared[key].figures, family)) for key in keys}
        return {
            key: (headline.difference, headline.difference_ci95)
            for key, headline in headlines.items()
            if headline is not None and headline.difference is not None
        }

    strict, finlora = differences("strict"), differences("finlora")
    return MeanDifference(
        score_difference=mean_of(list(strict.values())),
        score_difference_ci95=mean_interval(list(strict.values())),
        finlora_score_difference=mean_of(list(finlora.values())),
        finlora_score_difference_ci95=mean_interval(list(finlora.values())),
        benchmarks=tuple(finlora),
    )


def _whole_records(file: Path) -> list[RowRecord]:
    """The rows of one benchmark. UserError where the file is cut off or empty."""
    records, text = read_records(file), file.read_bytes()
    if not records or not text.endswith(b"\n"):
        after = f"is cut off after {plural(len(records), 'row')}" if text else "is empty"
        raise UserError(f"{file} {after}. Evaluate again, or bring back a copy of it.")
    return records


def _read_evaluation(run: Path, label: str) -> dict[str, list[RowRecord]]:
    """Benchmark key -> records, of the benchmarks in the catalogue, in its order."""
    if not (run / "eval").is_dir():
        raise UserError(
            f"{run} is not the folder of a run with scores: it has no eval/. Name one such as outputs/demo."
        )
    folder = run / "eval" / label
    if not folder.is_dir():
        labels = ", ".join(sorted(child.name for child in (run / "eval").iterdir() if child.is_dir()))
        raise UserError(f"{run} has no scores called {label!r}. It has: {labels or 'none'}. Choose with --labels.")
    found: dict[str, list[RowRecord]] = {}
    for key in BENCHMARKS:
        file = folder / f"{key}.jsonl"
        if file.is_file():
            found[key] = _whole_records(file)
    if not found:
        raise UserError(f"{folder} holds no benchmark's records. Evaluate again.")
    return found
