"""The score table as HTML: one row a benchmark, the systems side by side, FinLoRA's own figures and the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedfinlora.report.charts import Interval, interval_plot, marker
from fedfinlora.report.markup import DASH, count, fraction, percent, points, text
from fedfinlora.report.scores import (
    GROUPS,
    BenchmarkInfo,
    Score,
    System,
    base_of,
    change,
    common_accuracy_keys,
    common_finlora_keys,
    intervals_apart,
    mean_accuracy,
    mean_finlora,
    published_points,
    with_unlisted,
)

BASE_SLOTS = (4, 7, 6)
"""Hollow marks for what was not trained; the trained systems take the filled ones."""
ADAPTER_SLOTS = (0, 1, 2, 3, 5)


@dataclass(frozen=True)
class ScoreTable:
    """What every row of the table needs."""

    systems: Sequence[System]
    catalogue: Sequence[BenchmarkInfo]
    skipped: Mapping[str, str]
    """Benchmark key -> reason, for benchmarks that no run scored."""
    published: Sequence[str]
    """Headings of the published columns."""
    slots: Sequence[int]
    """Mark and colour of each system."""

    @property
    def own_columns(self) -> int:
        """How many columns hold this project's figures: picture, n, and those of each system in both families."""
        return 2 + sum(2 if system.kind == "base" else 3 for system in self.systems) + len(self.systems)

    @property
    def all_columns(self) -> int:
        return 1 + self.own_columns + len(self.published)


def score_table(systems: Sequence[System], catalogue: Sequence[BenchmarkInfo], skipped: Mapping[str, str]) -> str:
    """The whole table with its legend and notes; benchmarks stand in the order of the catalogue, by group."""
    catalogue = with_unlisted(catalogue, systems)
    published = list(dict.fromkeys(column for benchmark in catalogue for column in benchmark.published))
    table = ScoreTable(systems, catalogue, skipped, published, system_slots(systems))
    bodies = [
        _group(table, title, [benchmark for benchmark in catalogue if _group_of(benchmark) == group])
        for group, title in GROUPS.items()
    ]
    return (
        f"{_legend(table)}"
        '<div class="scroll" role="region" aria-label="Scores by benchmark" tabindex="0"><table class="scores">'
        "<caption><span>Scores by benchmark: accuracy in percent, change in percentage points.</span></caption>"
        f"{_head(table)}{''.join(bodies)}{_overall(table)}</table></div>{_notes(table)}"
    )


def system_slots(systems: Sequence[System]) -> list[int]:
    """The mark and colour of each system: hollow for base models, filled for adapters."""
    bases, adapters, slots = 0, 0, []
    for system in systems:
        if system.kind == "base":
            slots.append(BASE_SLOTS[bases % len(BASE_SLOTS)])
            bases += 1
        else:
            slots.append(ADAPTER_SLOTS[adapters % len(ADAPTER_SLOTS)])
            adapters += 1
    return slots


def _group_of(benchmark: BenchmarkInfo) -> str:
    return benchmark.group if benchmark.group in GROUPS else "other"


def _legend(table: ScoreTable) -> str:
    items = "".join(
        f'<li><svg width="14" height="12" viewBox="0 0 14 12" aria-hidden="true">{marker(slot, 7, 6, 3.6)}</svg> '
        f"<b>{text(system.heading)}</b> <span>{text(system.detail)}</span></li>"
        for system, slot in zip(table.systems, table.slots, strict=True)
    )
    return f'<ul class="legend">{items}</ul>'


def _head(table: ScoreTable) -> str:
    axis = '<span class="axis"><span>0</span><span>50</span><span>100 %</span></span>'
    first = [
        '<th scope="col" rowspan="2">Benchmark</th>',
        f'<th scope="col" rowspan="2" class="picture">Score with 95 % interval {axis}</th>',
        '<th scope="col" rowspan="2" class="number">Rows</th>',
    ]
    second = []
    for system in table.systems:
        columns = ("Accuracy", "Unparsed") if system.kind == "base" else ("Accuracy", "Change", "Unparsed")
        first.append(f'<th scope="colgroup" colspan="{len(columns)}" class="start">{text(system.heading)}</th>')
        second += [
            f'<th scope="col" class="number{" start" if index == 0 else ""}">{column}</th>'
            for index, column in enumerate(columns)
        ]
    if table.systems:
        first.append(
            f'<th scope="colgroup" colspan="{len(table.systems)}" class="start">By FinLoRA’s rules<br><small>accuracy / F1</small></th>'
        )
    second += [_sub_heading(system.heading, index) for index, system in enumerate(table.systems)]
    if table.published:
        first.append(
            f'<th scope="colgroup" colspan="{len(table.published)}" class="start published">'
            "Published, Llama 3.1 8B, other rows<br><small>accuracy / F1</small></th>"
        )
    second += [_sub_heading(column, index, "published") for index, column in enumerate(table.published)]
    return f"<thead><tr>{''.join(first)}</tr><tr>{''.join(second)}</tr></thead>"


def _sub_heading(name: str, index: int, css_class: str = "") -> str:
    return f'<th scope="col" class="number {css_class}{" start" if index == 0 else ""}">{text(name)}</th>'


def _group(table: ScoreTable, title: str, benchmarks: Sequence[BenchmarkInfo]) -> str:
    if not benchmarks:
        return ""
    heading = f'<tr class="group"><th scope="rowgroup" colspan="{table.all_columns}"><span>{text(title)}</span></th></tr>'
    rows = "".join(_row(table, benchmark) for benchmark in benchmarks)
    return f"<tbody>{heading}{rows}{_mean_row(table, 'Mean', benchmarks) if len(benchmarks) > 1 else ''}</tbody>"


def _overall(table: ScoreTable) -> str:
    row = _mean_row(table, "All benchmarks", table.catalogue)
    return f'<tbody class="overall">{row}</tbody>' if row else ""


def _row(table: ScoreTable, benchmark: BenchmarkInfo) -> str:
    scores = [system.scores.get(benchmark.key) for system in table.systems]
    name = f'<th scope="row">{text(benchmark.title)} <code>{text(benchmark.key)}</code></th>'
    published = "".join(_published_cell(benchmark, column, index) for index, column in enumerate(table.published))
    if all(score is None for score in scores):
        reason = table.skipped.get(benchmark.key, "")
        why = f"Not scored: {reason}" if reason else "Not scored"
        return f'<tr>{name}<td colspan="{table.own_columns}" class="skipped"><span>{text(why)}</span></td>{published}</tr>'
    rows = sorted({score.n for score in scores if score is not None})
    cells = [
        _picture_cell(table, benchmark, scores),
        f'<td class="number">{DASH.join(map(count, dict.fromkeys((rows[0], rows[-1]))))}</td>',
    ]
    for system, score in zip(table.systems, scores, strict=True):
        base = base_of(system, table.systems)
        cells.append(_score_cells(system, score, base.scores.get(benchmark.key) if base else None))
    cells += [_finlora_cell(score, index) for index, score in enumerate(scores)]
    return f"<tr>{name}{''.join(cells)}{published}</tr>"


def _picture_cell(table: ScoreTable, benchmark: BenchmarkInfo, scores: Sequence[Score | None]) -> str:
    if any(score is not None and score.bertscore for score in scores):
        return '<td class="picture"><small>BERTScore F1, not an accuracy</small></td>'
    intervals = [
        Interval(system.heading, score.value, score.low, score.high, slot)
        for system, score, slot in zip(table.systems, scores, table.slots, strict=True)
        if score is not None and score.value is not None
    ]
    return f'<td class="picture">{interval_plot(benchmark.title, intervals) if intervals else ""}</td>'


def _score_cells(system: System, score: Score | None, base: Score | None) -> str:
    """Accuracy over its interval; the change against base (not for base itself); the share of unparsed answers."""
    trained = system.kind != "base"
    if score is None:
        return f'<td class="number start">{DASH}</td>' + f'<td class="number">{DASH}</td>' * (2 if trained else 1)
    shown = fraction if score.bertscore else percent
    interval = f"{shown(score.low)} to {shown(score.high)}" if score.low is not None and score.high is not None else ""
    cells = [f'<td class="number start"><b>{shown(score.value)}</b><small>{interval}</small></td>']
    if trained:
        gain = change(score, base)
        if gain is None or base is None:
            cells.append(f'<td class="number">{DASH}</td>')
        else:
            figure = f"{gain:+.3f}".replace("-", "−") if score.bertscore else points(gain)
            figure = f"<strong>{figure}</strong>" if intervals_apart(score, base) else figure
            arrow = "▲" if gain > 0 else "▼" if gain < 0 else "="
            css_class = "gain" if gain > 0 else "loss" if gain < 0 else ""
            cells.append(f'<td class="number {css_class}">{figure} <span aria-hidden="true">{arrow}</span></td>')
    unparsed = DASH if score.unparsed_share is None else f"{percent(score.unparsed_share, 0)} %"
    cells.append(f'<td class="number">{unparsed}</td>')
    return "".join(cells)


def _finlora_cell(score: Score | None, index: int) -> str:
    start = " start" if index == 0 else ""
    if score is None:
        return f'<td class="number{start}">{DASH}</td>'
    ambiguous = f"<small>{count(score.ambiguous)} ambiguous</small>" if score.ambiguous else ""
    return f'<td class="number{start}">{percent(score.finlora_accuracy)} / {fraction(score.finlora_f1)}{ambiguous}</td>'


def _published_cell(benchmark: BenchmarkInfo, column: str, index: int) -> str:
    accuracy, f1 = benchmark.published.get(column, (None, None))
    start = " start" if index == 0 else ""
    figures = DASH if accuracy is None and f1 is None else f"{DASH if accuracy is None else f'{accuracy:.1f}'} / {fraction(f1)}"
    return f'<td class="number published{start}">{figures}</td>'


def _mean_row(table: ScoreTable, title: str, benchmarks: Sequence[BenchmarkInfo]) -> str:
    """Means over the benchmarks that every system has: of accuracy, and by FinLoRA's rules with 100 x BERTScore F1 among them.

    The published columns are averaged over the same benchmarks as FinLoRA's rules here, or over all where nothing was scored.
    """
    keys = [benchmark.key for benchmark in benchmarks]
    accuracy_keys, finlora_keys = common_accuracy_keys(table.systems, keys), common_finlora_keys(table.systems, keys)
    if not accuracy_keys and not finlora_keys:
        return ""
    means = [mean_accuracy(system, accuracy_keys) for system in table.systems]
    intervals = [
        Interval(system.heading, value, None, None, slot)
        for system, value, slot in zip(table.systems, means, table.slots, strict=True)
        if value is not None
    ]
    cells = [
        f'<td class="picture">{interval_plot(f"{title}, mean accuracy", intervals) if intervals else ""}</td>',
        '<td class="number"></td>',
    ]
    for system, value in zip(table.systems, means, strict=True):
        cells.append(f'<td class="number start"><b>{percent(value)}</b></td>')
        if system.kind != "base":
            base = base_of(system, table.systems)
            before = mean_accuracy(base, accuracy_keys) if base else None
            gain = None if value is None or before is None else value - before
            cells.append(f'<td class="number">{points(gain)}</td>')
        cells.append('<td class="number"></td>')
    cells += [
        f'<td class="number{" start" if index == 0 else ""}">{percent(mean_finlora(system, finlora_keys))}</td>'
        for index, system in enumerate(table.systems)
    ]
    scored = [benchmark for benchmark in benchmarks if benchmark.key in finlora_keys]
    for index, column in enumerate(table.published):
        figures = [published_points(benchmark, column) for benchmark in scored]
        known = [figure for figure in figures if figure is not None]
        shown = f"{sum(known) / len(known):.1f}" if known and len(known) == len(figures) else DASH
        cells.append(f'<td class="number published{" start" if index == 0 else ""}">{shown}</td>')
    return f'<tr class="mean"><th scope="row">{text(title)} <small>{len(accuracy_keys)} of {len(keys)} sets</small></th>{"".join(cells)}</tr>'


def _notes(table: ScoreTable) -> str:
    scores = [score for system in table.systems for score in system.scores.values()]
    encoders = list(dict.fromkeys(score.encoder for score in scores if score.bertscore))
    notes = [
        "<b>Accuracy</b> is the share of rows whose parsed answer is right, and below it the 95 % interval. "
        "<b>Unparsed</b> answers are those in which no answer was found; they count as wrong.",
        "A <strong>bold change</strong> means that the two intervals do not overlap. Smaller changes may be chance.",
        "<b>Means</b> are over the sets that every system here was scored on. Means of accuracy leave BERTScore sets out, and so does "
        "the number of sets; "
        "means by FinLoRA’s rules count 100 × BERTScore F1, as FinLoRA does, and published means are over the same sets.",
        "<b>By FinLoRA’s rules</b>: the first label found in the output is the answer. Its F1 takes each wrong text for a label "
        "of its own, so it flatters: near 2a / (1 + a) for accuracy a.",
    ]
    if table.published:
        notes.append(
            "<b>Published</b> figures are FinLoRA’s for Llama 3.1 8B Instruct on its own test files. They come from another model "
            "and other rows, and are here for orientation, not as a comparison."
        )
    if any(system.kind == "local" and "mean of" in system.detail for system in table.systems):
        notes.append(
            "<b>Local</b> is the mean of the banks that trained alone; below it the worst and the best bank, so its changes are never bold."
        )
    for encoder in encoders:
        comparable = (
            "" if "finbert" in encoder.lower() else " The published BERTScores used ProsusAI/finbert and do not compare."
        )
        notes.append(f"<b>BERTScore</b> encoder: {text(encoder)}.{comparable}")
    return f'<ul class="notes">{"".join(f"<li>{note}</li>" for note in notes)}</ul>'
