"""Charts that compare the systems."""

from __future__ import annotations

from collections.abc import Sequence

from fedfinlora.report.benchmarks import BenchmarkInfo, Published, published_points
from fedfinlora.report.content import Content
from fedfinlora.report.drawing import Chart, LegendEntry
from fedfinlora.report.formats import plural
from fedfinlora.report.intervals import Interval, IntervalRow, interval_chart
from fedfinlora.report.scores import common_accuracy_keys, mean_accuracy_bounds
from fedfinlora.report.systems import System


def overview_chart(content: Content) -> Chart | None:
    """Mean accuracy by group."""
    rows = []
    for title, benchmarks in {"All benchmarks": content.catalogue, **content.groups}.items():
        keys = common_accuracy_keys(content.systems, [benchmark.key for benchmark in benchmarks])
        rows.append(IntervalRow(f"{title} ({plural(len(keys), 'set')})", mean_intervals(content.systems, keys)))
    return interval_chart("overview", "Mean accuracy by group", "with 95 % intervals", rows)


def mean_intervals(systems: Sequence[System], keys: Sequence[str]) -> list[Interval]:
    """Mean accuracy of each system over `keys`."""
    return [
        Interval(system.heading, value, *mean_accuracy_bounds(system, keys), system.slot)
        for system in systems
        if (value := system.accuracy(keys)) is not None
    ]


def score_intervals(systems: Sequence[System], key: str) -> list[Interval]:
    """The score of each system on one benchmark."""
    return [
        Interval(system.heading, score.value, *score.bounds, system.slot)
        for system in systems
        if (score := system.scores.get(key)) is not None and score.value is not None
    ]


def score_chart(content: Content) -> Chart | None:
    """Accuracy of every benchmark with its interval in one chart, for a paper."""
    rows = []
    for item in content.catalogue:
        label = item.title + (" (BERTScore F1)" if content.is_bertscored(item.key) else "")
        rows.append(IntervalRow(label, score_intervals(content.systems, item.key)))
    return interval_chart("scores", "Scores by benchmark", "accuracy with 95 % intervals", rows)


def published_charts(content: Content) -> list[Chart]:
    """A chart a group: accuracy by FinLoRA's rules, over the published range."""
    published = content.published
    extra = []
    if published.band:
        sample = '<rect class="band" x="1" width="24" height="12"/>'
        extra.append(LegendEntry(sample, "published adapters, lowest to highest"))
    if published.pin:
        extra.append(
            LegendEntry('<line class="pin" x1="13" x2="13" y1="0" y2="12"/>', f"published, {published.pin.lower()}")
        )
    charts = []
    for title, benchmarks in content.groups.items():
        rows = [_published_row(content.systems, benchmark, published) for benchmark in benchmarks]
        name = f"published-{title.lower().replace(' ', '-')}"
        charts.append(interval_chart(name, title, "by FinLoRA’s rules", rows, extra))
    return [chart for chart in charts if chart is not None]


def _published_row(systems: Sequence[System], benchmark: BenchmarkInfo, published: Published) -> IntervalRow:
    intervals = [
        Interval(system.heading, score.finlora_points, *score.bounds_of(score.finlora_key), system.slot)
        for system in systems
        if (score := system.scores.get(benchmark.key)) is not None and score.finlora_points is not None
    ]
    known = [value for column in published.band if (value := published_points(benchmark, column)) is not None]
    band = None
    if known:
        low, high = min(known), max(known)
        band = (low / 100, high / 100, f"published adapters: {low:.1f} to {high:.1f} %")
    at = published_points(benchmark, published.pin)
    pin = None if at is None else (at / 100, f"published, {published.pin}: {at:.1f} %")
    return IntervalRow(benchmark.title, intervals, band, pin)
