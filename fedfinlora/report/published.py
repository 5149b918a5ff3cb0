"""This project's systems by FinLoRA's own rules beside the published columns, as a table and as figures by group."""

from __future__ import annotations

from collections.abc import Sequence

from fedfinlora.report.charts import Interval, IntervalRow, interval_chart
from fedfinlora.report.drawing import Chart, LegendEntry
from fedfinlora.report.markup import DASH, count, fraction, listed, percent, scroll_box, text
from fedfinlora.report.scores import (
    BenchmarkInfo,
    Published,
    Score,
    System,
    by_group,
    common_finlora_keys,
    mean,
    mean_finlora,
    published_points,
    system_slots,
)
from fedfinlora.report.table import group_heading, interval_text, row_heading, sub_heading


def columns_of(catalogue: Sequence[BenchmarkInfo], systems: Sequence[System]) -> list[str]:
    """The published columns that have a figure for a benchmark of the catalogue; those of a few benchmarks only where one was run."""
    found: dict[str, list[str]] = {}
    for benchmark in catalogue:
        for column in benchmark.published:
            found.setdefault(column, []).append(benchmark.key)
    scored = {key for system in systems for key in system.scores}
    whole = max(map(len, found.values()), default=0)
    return [column for column, keys in found.items() if len(keys) == whole or scored & set(keys)]


def published_section(systems: Sequence[System], catalogue: Sequence[BenchmarkInfo], published: Published) -> str:
    """The choice of columns, the table and its notes."""
    columns = columns_of(catalogue, systems)
    bodies = [_group(systems, columns, title, benchmarks) for title, benchmarks in by_group(catalogue).items()]
    overall = _mean_row(systems, columns, "All benchmarks", catalogue)
    content = (
        '<table class="scores beside"><caption><span>Accuracy in percent / F1, both by FinLoRA’s rules; BERTScore F1 where there '
        f"is no accuracy.</span></caption>{_head(systems, columns)}{''.join(bodies)}"
        f"{f'<tbody class=overall>{overall}</tbody>' if overall else ''}</table>"
    )
    return f"{_choice(columns)}{scroll_box('Scores beside the published ones', content)}{_notes(systems, columns, published)}"


def _choice(columns: Sequence[str]) -> str:
    """A box to tick for each published column; the style sheet hides the columns of those not ticked."""
    if not columns:
        return ""
    boxes = "".join(
        f'<label><input type="checkbox" id="published-{index}" checked> {text(column)}</label>'
        for index, column in enumerate(columns)
    )
    return f'<fieldset class="choice"><legend>Published columns</legend>{boxes}</fieldset>'


def _head(systems: Sequence[System], columns: Sequence[str]) -> str:
    first = [
        '<th scope="col" rowspan="2">Benchmark</th>',
        f'<th scope="colgroup" colspan="{len(systems)}" class="start">This report</th>',
    ]
    if columns:
        first.append(
            f'<th scope="colgroup" colspan="{len(columns)}" class="start published">Published: another model, other rows</th>'
        )
    second = [sub_heading(system.heading, index) for index, system in enumerate(systems)]
    second += [sub_heading(column, index, f"published column-{index}") for index, column in enumerate(columns)]
    return f"<thead><tr>{''.join(first)}</tr><tr>{''.join(second)}</tr></thead>"


def _group(systems: Sequence[System], columns: Sequence[str], title: str, benchmarks: Sequence[BenchmarkInfo]) -> str:
    rows = []
    for benchmark in benchmarks:
        own = [_own_cell(system.scores.get(benchmark.key), index) for index, system in enumerate(systems)]
        others = [_published_cell(benchmark, column, index) for index, column in enumerate(columns)]
        rows.append(f"<tr>{row_heading(benchmark)}{''.join(own)}{''.join(others)}</tr>")
    mean_row = _mean_row(systems, columns, "Mean", benchmarks) if len(benchmarks) > 1 else ""
    return f"<tbody>{group_heading(title, 1 + len(systems) + len(columns))}{''.join(rows)}{mean_row}</tbody>"


def _own_cell(score: Score | None, index: int) -> str:
    start = " start" if index == 0 else ""
    if score is None or score.finlora_points is None:
        return f'<td class="number{start}">{DASH}</td>'
    interval = interval_text(score.finlora_bounds, score.bertscore)
    ambiguous = f"{count(score.ambiguous)} ambiguous" if score.ambiguous else ""
    below = "".join(f"<small>{line}</small>" for line in (interval, ambiguous) if line)
    return f'<td class="number{start}"><b>{percent(score.finlora_accuracy)}</b> / {fraction(score.finlora_f1)}{below}</td>'


def _published_cell(benchmark: BenchmarkInfo, column: str, index: int) -> str:
    accuracy, f1 = benchmark.published.get(column, (None, None))
    shown = DASH if accuracy is None else f"{accuracy:.1f}"
    figures = shown if f1 is None else f"{shown} / {fraction(f1)}"
    model = benchmark.published_models.get(column, "")
    below = f"<small>{text(model)}</small>" if model else ""
    return f'<td class="number published column-{index}{" start" if index == 0 else ""}">{figures}{below}</td>'


def _mean_row(systems: Sequence[System], columns: Sequence[str], title: str, benchmarks: Sequence[BenchmarkInfo]) -> str:
    """Means over the benchmarks that every system has, as FinLoRA averages; the published ones over the same benchmarks."""
    keys = [benchmark.key for benchmark in benchmarks]
    common = common_finlora_keys(systems, keys)
    if not common:
        return ""
    cells = [
        f'<td class="number{" start" if index == 0 else ""}"><b>{percent(mean_finlora(system, common))}</b></td>'
        for index, system in enumerate(systems)
    ]
    scored = [benchmark for benchmark in benchmarks if benchmark.key in common]
    for index, column in enumerate(columns):
        figures = [published_points(benchmark, column) for benchmark in scored]
        known = mean(figures) if None not in figures else None
        shown = DASH if known is None else f"{known:.1f}"
        cells.append(f'<td class="number published column-{index}{" start" if index == 0 else ""}">{shown}</td>')
    sets = f"{len(common)} of {len(keys)} sets"
    return f'<tr class="mean"><th scope="row">{text(title)} <small>{sets}</small></th>{"".join(cells)}</tr>'


def _notes(systems: Sequence[System], columns: Sequence[str], published: Published) -> str:
    notes = [
        "<b>By FinLoRA’s rules</b> the first label found in the output is the answer. Its F1 takes each wrong text for a label of "
        "its own, so it flatters: near 2a / (1 + a) for accuracy a. Rows are <b>ambiguous</b> where two labels start at the same "
        "place, so that FinLoRA’s own verdict is left to chance; here the longest label wins.",
        "<b>Means</b> count 100 × BERTScore F1 where there is no accuracy, as FinLoRA does, over the sets that every system here has; "
        "published means are over the same sets.",
    ]
    if columns:
        meanings = "; ".join(f"{column}: {published.titles[column]}" for column in columns if column in published.titles)
        notes.append(
            "<b>Published</b> figures are FinLoRA’s, on its own test files. They come from another model and other rows, and are here "
            f"for orientation, not as a comparison. {text(meanings)}{'.' if meanings else ''}"
        )
    for encoder in dict.fromkeys(s.encoder for system in systems for s in system.scores.values() if s.bertscore):
        if "finbert" not in encoder.lower():
            notes.append(
                f"<b>BERTScore</b> here: {text(encoder)}. The published ones used ProsusAI/finbert and do not compare."
            )
    federated = _federated_note(systems, published)
    if federated:
        notes.append(federated)
    return f'<ul class="notes">{"".join(f"<li>{note}</li>" for note in notes)}</ul>'


def _federated_note(systems: Sequence[System], published: Published) -> str:
    """FinLoRA's federated run beside the means over the same benchmarks here, if all of these were run."""
    keys = list(published.federated_keys)
    if not keys or not published.federated_means or common_finlora_keys(systems, keys) != keys:
        return ""
    theirs = listed([f"{name} {value:.1f}" for name, value in published.federated_means.items()])
    ours = listed([f"{system.heading.lower()} {percent(mean_finlora(system, keys))}" for system in systems])
    return text(f"FinLoRA’s own federated run, mean of these {len(keys)} sets: {theirs}. Here: {ours}.")


def published_charts(systems: Sequence[System], catalogue: Sequence[BenchmarkInfo], published: Published) -> list[Chart]:
    """One figure for each group: accuracy by FinLoRA's rules with intervals, over the range of the published adapters."""
    slots = system_slots(systems)
    charts = []
    extra = []
    if published.band:
        sample = '<rect class="band" x="1" width="24" height="12"/>'
        extra.append(LegendEntry(sample, "published adapters, lowest to highest"))
    if published.pin:
        extra.append(LegendEntry('<line class="pin" x1="13" x2="13" y1="0" y2="12"/>', f"published, {published.pin.lower()}"))
    for title, benchmarks in by_group(catalogue).items():
        rows = [_interval_row(systems, slots, benchmark, published) for benchmark in benchmarks]
        name = f"published-{title.lower().replace(' ', '-')}"
        chart = interval_chart(name, title, "by FinLoRA’s rules", rows, extra)
        if chart is not None:
            charts.append(chart)
    return charts


def _interval_row(
    systems: Sequence[System], slots: Sequence[int], benchmark: BenchmarkInfo, published: Published
) -> IntervalRow:
    intervals = []
    for system, slot in zip(systems, slots, strict=True):
        score = system.scores.get(benchmark.key)
        if score is not None and score.finlora_points is not None:
            intervals.append(Interval(system.heading, score.finlora_points, *score.finlora_bounds, slot))
    known = [value for column in published.band if (value := published_points(benchmark, column)) is not None]
    band = None
    if known:
        low, high = min(known), max(known)
        band = (low / 100, high / 100, f"published adapters: {low:.1f} to {high:.1f} %")
    at = published_points(benchmark, published.pin)
    pin = None if at is None else (at / 100, f"published, {published.pin}: {at:.1f} %")
    return IntervalRow(benchmark.title, intervals, band, pin)
