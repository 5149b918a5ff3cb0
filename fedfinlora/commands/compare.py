"""`compare`: what two evaluations of the same rows differ by, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data.catalog import BENCHMARKS
from eval.metrics.compare import compare_runs
from fedfinlora.files import write_json
from fedfinlora.run.comparison import Comparison
from fedfinlora.run.typed import to_json

SHOWN = {
    "accuracy": "accuracy",
    "f1_macro": "F1, macro",
    "matthews": "Matthews",
    "row_accuracy": "whole rows",
    "value_accuracy": "by value",
    "finlora_accuracy": "FinLoRA",
    "bertscore_f1": "BERTScore",
    "labels_accuracy": "labels",
    "labels_f1_macro": "labels, F1",
}
"""Figures in the table -> what they are called there; --json has all of them."""


def compare(run_a: Path, run_b: Path, labels: Sequence[str], json_file: Path | None) -> int:
    """Print the table and, if asked, write every figure as JSON."""
    result = compare_runs(run_a, labels[0], run_b, labels[1])
    if json_file is not None:
        write_json(json_file, to_json(result))
    show(result)
    return 0


def show(result: Comparison) -> None:
    """The comparison as a table: percent, differences in percentage points with their 95 % intervals."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    one, other = result.one, result.other
    console.print(f"A: {one.run} ({one.label})\nB: {other.run} ({other.label})", markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("benchmark", overflow="fold")
    table.add_column("figure", overflow="fold")
    for heading in ("rows", "A", "B", "B - A", "95 % interval", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in _lines(result):
        table.add_row(*line)
    console.print(table)
    for note in _notes(result):
        console.print(note, markup=False, soft_wrap=True)


def _lines(result: Comparison) -> Iterator[tuple[str, ...]]:
    for key, compared in result.benchmarks.items():
        title, rows = BENCHMARKS[key].title, f"{compared.rows:,}"
        for name, called in SHOWN.items():
            figure = compared.figures.get(name)
            if figure is None:
                continue
            p = figure.mcnemar_p
            yield (
                title, called, rows, _percent(figure.one), _percent(figure.other), _points(figure.difference),
                _range(figure.difference_ci95), "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}",
            )  # fmt: skip
            title, rows = "", ""
    for heading, means in [*result.groups.items(), ("all", result.overall)]:
        for called, difference, interval in (
            ("strict", means.score_difference, means.score_difference_ci95),
            ("FinLoRA", means.finlora_score_difference, means.finlora_score_difference_ci95),
        ):
            if difference is not None:
                yield (f"mean, {heading}", called, "", "", "", _points(difference), _range(interval), "")


def _notes(result: Comparison) -> Iterator[str]:
    for key, compared in result.benchmarks.items():
        if compared.only_one or compared.only_other:
            yield f"{key}: {compared.only_one:,} rows only in A and {compared.only_other:,} only in B are not compared."
    for key, reason in result.skipped.items():
        yield reason if reason.startswith(key) else f"{key}: {reason}"
    for side, keys in (("A", result.only_one), ("B", result.only_other)):
        if keys:
            yield f"Only in {side}: {', '.join(keys)}."
    yield (
        "In percent and percentage points, on the rows of both. Interval: paired bootstrap over rows; p: McNemar's "
        "exact test."
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f}"


def _range(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"
