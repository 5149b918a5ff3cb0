"""Two evaluations of the same rows: the difference of every figure, with an interval that knows that the rows are the same.

Rows that are hard for one model are hard for the other, so the interval of a difference is much narrower than those of its two figures
suggest. A resample draws rows, and both evaluations are computed on the rows drawn (paired bootstrap, Efron and Tibshirani 1993,
chapter 16). Where a row is right or wrong, McNemar's exact test (1947) says how likely so unequal a division of the rows on which the
two disagree is, were both as good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.catalog import BENCHMARKS, GROUPS, Benchmark
from eval.intervals import bootstrap_interval, estimate_of, mean_interval, sample_and_resamples
from eval.metrics import Judged, JudgedRow, bertscore_encoders, figure_values, headline_of, judge_rows, kinds_of, mean_of
from fedfinlora.errors import UserError
from fedfinlora.run.evaluation import RowRecord, read_records

if TYPE_CHECKING:
    from collections.abc import Callable

    from eval.intervals import Array


RIGHT: dict[str, Callable[[JudgedRow], bool]] = {
    "accuracy": lambda row: row.correct,
    "row_accuracy": lambda row: row.correct,
    "finlora_accuracy": lambda row: row.finlora[0][0] == row.finlora[0][1],
    "accuracy_exact": lambda row: row.exact,
    "value_accuracy": lambda row: row.value_correct,
    "labels_accuracy": lambda row: row.choice[0] == row.choice[1],
}
"""Figures to which McNemar's test applies -> whether a row is right. Not the shares of tags: those of a row are not independent."""


class Joined(NamedTuple):
    """The rows that two evaluations have in common, in one order, and how many only one of them has."""

    one: list[RowRecord]
    other: list[RowRecord]
    only_one: int
    only_other: int


def join_records(one: Sequence[RowRecord], other: Sequence[RowRecord]) -> Joined:
    """Join by prompt_sha256, id and target: the same row, asked the same way (solved examples in front make it another prompt)."""

    def by_row(records: Sequence[RowRecord]) -> dict[tuple[str, ...], RowRecord]:
        return {(record.prompt_sha256, record.id, record.target): record for record in records}

    first, second = by_row(one), by_row(other)
    common = sorted(first.keys() & second.keys())
    only_one, only_other = len(first) - len(common), len(second) - len(common)
    return Joined([first[row] for row in common], [second[row] for row in common], only_one, only_other)


def compare_records(benchmark: Benchmark, one: Sequence[RowRecord], other: Sequence[RowRecord]) -> dict[str, Any]:
    """Every figure that both evaluations have, on the rows that both have, and what it gains from `one` to `other`.

    {"rows", "only_one", "only_other", "figures": {NAME: {"one", "other", "difference", "difference_ci95", "mcnemar_p"}}}: differences
    are other - one, as fractions; `mcnemar_p` stands at accuracies of rows. FinLoRA's label set is that of the common rows. Raises
    UserError without common rows or common figures, or where BERTScores come from different encoders.
    """
    joined = join_records(one, other)
    if not joined.one:
        raise UserError(
            f"{benchmark.key}: no row is in both evaluations ({len(one)} and {len(other)} rows): their prompts or rows differ. Evaluate "
            "both with the same data, evaluation.limit and seed, and with the same examples in front of the prompts."
        )
    encoders = sorted({*bertscore_encoders(joined.one), *bertscore_encoders(joined.other)})
    if len(encoders) > 1:
        listed = " and ".join(f"{name}, layer {layer}" for name, layer in encoders)
        raise UserError(
            f"{benchmark.key}: BERTScores of different encoders cannot be compared ({listed}). Evaluate again with one "
            "evaluation.bertscore_model."
        )
    figures = _figures(benchmark, judge_rows(benchmark, joined.one), judge_rows(benchmark, joined.other))
    if not figures:
        raise UserError(
            f"{benchmark.key}: one evaluation has generated answers only, the other labels only. Evaluate with evaluation.mode=both."
        )
    return {"rows": len(joined.one), "only_one": joined.only_one, "only_other": joined.only_other, "figures": figures}


def _figures(benchmark: Benchmark, one: Judged, other: Judged) -> dict[str, Any]:
    kinds, counts = kinds_of(zip(one.rows, other.rows, strict=True))
    times = sample_and_resamples(counts)
    first = figure_values(benchmark, [kind for kind, _ in kinds], times, one.written, one.chosen)
    second = figure_values(benchmark, [kind for _, kind in kinds], times, other.written, other.chosen)
    figures: dict[str, Any] = {}
    for name in first:
        if name not in second:
            continue
        figures[name] = _difference(first[name], second[name], widest=2.0 if name.endswith("matthews") else 1.0)
        if name in RIGHT and (benchmark.scorer != "tag_list" or name == "row_accuracy"):
            right = RIGHT[name]
            figures[name]["mcnemar_p"] = mcnemar_p([right(row) for row in one.rows], [right(row) for row in other.rows])
    return figures


def _difference(one: Array, other: Array, widest: float) -> dict[str, Any]:
    """`widest`: the largest difference that there can be."""
    return {
        "one": estimate_of(one),
        "other": estimate_of(other),
        "difference": estimate_of(other - one),
        "difference_ci95": bootstrap_interval(other - one, lowest=-widest, highest=widest),
    }


def mcnemar_p(one: Sequence[bool], other: Sequence[bool]) -> float:
    """McNemar's exact two-sided p-value: of the rows that one of the two alone has right, each is a fair coin; 1 if there are none.

    >>> mcnemar_p([True, False, False, False], [True, True, True, True])
    0.25
    """
    from scipy.stats import binomtest

    gained = sum(second and not first for first, second in zip(one, other, strict=True))
    lost = sum(first and not second for first, second in zip(one, other, strict=True))
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


# --- run folders --------------------------------------------------------------------------------------------------------------


def compare_runs(run_a: Path, label_a: str, run_b: Path, label_b: str) -> dict[str, Any]:
    """Compare eval/<label>/*.jsonl of two runs (or of two labels of one) on every benchmark that both have.

    `groups` and `overall` hold the means of the headline scores' differences ("score": accuracy on parsed answers or BERTScore F1;
    "finlora_score": by FinLoRA's rules) over the benchmarks compared, as fractions. Benchmarks that cannot be compared are in `skipped`
    with the reason; UserError if none can be.
    """
    one, other = _read_evaluation(run_a, label_a), _read_evaluation(run_b, label_b)
    common = [key for key in BENCHMARKS if key in one and key in other]
    if not common:
        raise UserError(
            f"No benchmark is in both: {run_a} ({label_a}) has {', '.join(one)}; {run_b} ({label_b}) has {', '.join(other)}."
        )
    compared: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for key in common:
        try:
            compared[key] = compare_records(BENCHMARKS[key], one[key], other[key])
        except UserError as error:
            skipped[key] = str(error)
    if not compared:
        raise UserError(f"Nothing can be compared. {next(iter(skipped.values()))}")
    groups = {group: [key for key in compared if BENCHMARKS[key].group == group] for group in GROUPS}
    return {
        "one": {"run": str(run_a), "label": label_a},
        "other": {"run": str(run_b), "label": label_b},
        "benchmarks": compared,
        "skipped": skipped,
        "only_one": [key for key in one if key not in other],
        "only_other": [key for key in other if key not in one],
        "groups": {group: _mean_differences(compared, keys) for group, keys in groups.items() if keys},
        "overall": _mean_differences(compared, list(compared)),
    }


def _mean_differences(compared: Mapping[str, Mapping[str, Any]], keys: Sequence[str]) -> dict[str, Any]:
    """Mean difference of the headline scores and its interval, for both families, over the benchmarks that have them."""
    means: dict[str, Any] = {}
    for family, name in (("honest", "score"), ("finlora", "finlora_score")):
        headlines = {key: compared[key]["figures"].get(headline_of(compared[key]["figures"], family)) for key in keys}
        have = [key for key in keys if headlines[key] and headlines[key]["difference"] is not None]
        differences = [(headlines[key]["difference"], headlines[key]["difference_ci95"]) for key in have]
        means[f"{name}_difference"] = mean_of(differences)
        means[f"{name}_difference_ci95"] = mean_interval(differences)
        means["benchmarks"] = have
    return means


def _read_evaluation(run: Path, label: str) -> dict[str, list[RowRecord]]:
    """Benchmark key -> records, of the benchmarks in the catalogue, in its order."""
    if not (run / "eval").is_dir():
        raise UserError(f"{run} is not the folder of a run with scores: it has no eval/. Name one such as outputs/demo.")
    folder = run / "eval" / label
    if not folder.is_dir():
        labels = ", ".join(sorted(child.name for child in (run / "eval").iterdir() if child.is_dir()))
        raise UserError(f"{run} has no scores called {label!r}. It has: {labels or 'none'}. Choose with --labels.")
    found: dict[str, list[RowRecord]] = {}
    for key in BENCHMARKS:
        file = folder / f"{key}.jsonl"
        if file.is_file():
            found[key] = read_records(file)
    if not found:
        raise UserError(f"{folder} holds no benchmark's records. Evaluate again.")
    return found
