"""What the wide tables work out: plots of intervals, means by group, published columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fedfinlora.report.benchmarks import BenchmarkInfo, published_points
from fedfinlora.report.content import Content
from fedfinlora.report.drawing import Chart
from fedfinlora.report.formats import Bounds, listed, percent
from fedfinlora.report.intervals import interval_plot
from fedfinlora.report.score import mean
from fedfinlora.report.scores import common_accuracy_keys, common_finlora_keys, mean_accuracy_bounds
from fedfinlora.report.system_charts import mean_intervals, score_intervals

ALL = "All benchmarks"


class Mean(NamedTuple):
    """The mean of one system; fractions."""

    value: float | None
    is_base: bool
    bounds: Bounds = (None, None)
    gain: float | None = None
    """Over base."""


class MeanRow(NamedTuple):
    """Means over the benchmarks that every system has."""

    title: str
    note: str
    """Over which sets."""
    means: Sequence[Mean]
    plot: Chart | None = None
    published: Sequence[float | None] = ()
    """Percent, over the same benchmarks."""


MakeRow = Callable[[Content, str, Sequence[BenchmarkInfo]], MeanRow | None]
"""(content, title, benchmarks) -> their means; None where no benchmark is common."""


def mean_rows(content: Content, make: MakeRow) -> Mapping[str, MeanRow | None]:
    """Group title -> its means, and ALL; None where there is no common benchmark, or but one in the group."""
    rows = {title: make(content, "Mean", items) if len(items) > 1 else None for title, items in content.groups.items()}
    return {**rows, ALL: make(content, ALL, content.catalogue)}


def accuracy_row(content: Content, title: str, benchmarks: Sequence[BenchmarkInfo]) -> MeanRow | None:
    keys = common_accuracy_keys(content.systems, [benchmark.key for benchmark in benchmarks])
    means = []
    for system in content.systems if keys else ():
        value, before = system.accuracy(keys), system.base.accuracy(keys) if system.base else None
        gain = None if value is None or before is None else value - before
        means.append(Mean(value, system.kind == "base", mean_accuracy_bounds(system, keys), gain))
    plot = interval_plot(f"{title}, mean accuracy", mean_intervals(content.systems, keys))
    return MeanRow(title, f"{len(keys)} of {len(benchmarks)} sets", means, plot) if keys else None


def finlora_row(content: Content, title: str, benchmarks: Sequence[BenchmarkInfo]) -> MeanRow | None:
    """Means as FinLoRA averages, and the published ones."""
    keys = common_finlora_keys(content.systems, [benchmark.key for benchmark in benchmarks])
    scored = [benchmark for benchmark in benchmarks if benchmark.key in keys]
    points = [[published_points(benchmark, column) for benchmark in scored] for column in published_columns(content)]
    published = [None if None in column else mean(column) for column in points]
    means = [Mean(system.finlora(keys), system.kind == "base") for system in content.systems]
    return MeanRow(title, f"{len(keys)} of {len(benchmarks)} sets", means, published=published) if keys else None


def score_plots(content: Content) -> dict[str, Chart | None]:
    """Benchmark key -> the systems' intervals; None for BERTScores and without accuracy."""
    found = {}
    for item in content.catalogue:
        intervals = [] if content.is_bertscored(item.key) else score_intervals(content.systems, item.key)
        found[item.key] = interval_plot(item.title, intervals) if intervals else None
    return found


def published_columns(content: Content) -> list[str]:
    """The published columns; one that has figures of some benchmarks only, where one of them was run."""
    found: dict[str, list[str]] = {}
    for benchmark in content.catalogue:
        for column in benchmark.published:
            found.setdefault(column, []).append(benchmark.key)
    scored = {key for system in content.systems for key in system.scores}
    whole = max(map(len, found.values()), default=0)
    return [column for column, keys in found.items() if len(keys) == whole or scored & set(keys)]


def federated_note(content: Content) -> str:
    """FinLoRA's federated run and the means over the same benchmarks here, if all of these were run."""
    keys, means = list(content.published.federated_keys), content.published.federated_means
    if not keys or not means or common_finlora_keys(content.systems, keys) != keys:
        return ""
    theirs = listed([f"{name} {value:.1f}" for name, value in means.items()])
    ours = listed([f"{system.heading.lower()} {percent(system.finlora(keys))}" for system in content.systems])
    return f"FinLoRA’s own federated run, mean of these {len(keys)} sets: {theirs}. Here: {ours}."
