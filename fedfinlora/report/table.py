"""The score table as HTML: one row a benchmark, the systems side by side with intervals, changes and unparsed shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedfinlora.report.charts import Interval, interval_plot
from fedfinlora.report.drawing import marker, picture
from fedfinlora.report.markup import DASH, count, fraction, percent, points, scroll_box, text
from fedfinlora.report.scores import (
    BenchmarkInfo,
    Bounds,
    Score,
    System,
    base_of,
    by_group,
    change,
    common_accuracy_keys,
    intervals_apart,
    labels_systems,
    mean_accuracy,
    mean_accuracy_bounds,
    system_slots,
)


@dataclass(frozen=True)
class ScoreTable:
    """What every row of the table needs."""

    systems: Sequence[System]
    skipped: Mapping[str, str]
    """Benchmark key -> reason, for benchmarks that no run scored."""
    slots: Sequence[int]
    """Mark and colour of each system."""
    by_labels: Sequence[System]
    """The systems that were scored by the log-probabilities of labels, each with a column of its own for that."""

    @property
    def own_columns(self) -> int:
        """How many columns follow the name: picture, n, those of each system, label scoring."""
        return 2 + sum(2 if system.kind == "base" else 3 for system in self.systems) + len(self.by_labels)


def score_table(systems: Sequence[System], catalogue: Sequence[BenchmarkInfo], skipped: Mapping[str, str]) -> str:
    """The whole table with its legend and notes; benchmarks stand in the order of the catalogue, by group."""
    table = ScoreTable(systems, skipped, system_slots(systems), labels_systems(systems))
    bodies = [_group(table, title, benchmarks) for title, benchmarks in by_group(catalogue).items()]
    overall = _mean_row(table, "All benchmarks", catalogue)
    content = (
        '<table class="scores"><caption><span>Accuracy in percent with its 95 % interval; change over base in percentage points.'
        f"</span></caption>{_head(table)}{''.join(bodies)}"
        f"{f'<tbody class=overall>{overall}</tbody>' if overall else ''}</table>"
    )
    return f"{system_legend(systems)}{scroll_box('Scores by benchmark', content)}{_notes(table)}"


def system_legend(systems: Sequence[System]) -> str:
    """Mark, name and origin of each system."""
    items = "".join(
        f'<li><svg width="14" height="12" viewBox="0 0 14 12" aria-hidden="true">{marker(slot, 7, 6, 3.6)}</svg> '
        f"<b>{text(system.heading)}</b> <span>{text(system.detail)}</span></li>"
        for system, slot in zip(systems, system_slots(systems), strict=True)
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
    if table.by_labels:
        first.append(
            f'<th scope="colgroup" colspan="{len(table.by_labels)}" class="start">Most probable label'
            "<br><small>no text generated</small></th>"
        )
    second += [sub_heading(system.heading, index) for index, system in enumerate(table.by_labels)]
    return f"<thead><tr>{''.join(first)}</tr><tr>{''.join(second)}</tr></thead>"


def sub_heading(name: str, index: int, css_class: str = "") -> str:
    """The heading of one column in a group of columns."""
    classes = f"number {css_class}".strip() + (" start" if index == 0 else "")
    return f'<th scope="col" class="{classes}">{text(name)}</th>'


def group_heading(title: str, columns: int) -> str:
    """A row that names the group of benchmarks below it."""
    return f'<tr class="group"><th scope="rowgroup" colspan="{columns}"><span>{text(title)}</span></th></tr>'


def row_heading(benchmark: BenchmarkInfo) -> str:
    """The name of a benchmark, leading to its details."""
    return f'<th scope="row"><a href="#benchmark-{text(benchmark.key)}">{text(benchmark.title)}</a> <code>{text(benchmark.key)}</code></th>'


def _group(table: ScoreTable, title: str, benchmarks: Sequence[BenchmarkInfo]) -> str:
    rows = "".join(_row(table, benchmark) for benchmark in benchmarks)
    mean = _mean_row(table, "Mean", benchmarks) if len(benchmarks) > 1 else ""
    return f"<tbody>{group_heading(title, 1 + table.own_columns)}{rows}{mean}</tbody>"


def _row(table: ScoreTable, benchmark: BenchmarkInfo) -> str:
    scores = [system.scores.get(benchmark.key) for system in table.systems]
    if all(score is None for score in scores):
        reason = table.skipped.get(benchmark.key, "")
        why = f"Not scored: {reason}" if reason else "Not scored"
        name = f'<th scope="row">{text(benchmark.title)} <code>{text(benchmark.key)}</code></th>'
        return f'<tr>{name}<td colspan="{table.own_columns}" class="skipped"><span>{text(why)}</span></td></tr>'
    rows = sorted({score.n for score in scores if score is not None})
    cells = [
        _picture_cell(table, benchmark, scores),
        f'<td class="number">{DASH.join(map(count, dict.fromkeys((rows[0], rows[-1]))))}</td>',
    ]
    for system, score in zip(table.systems, scores, strict=True):
        base = base_of(system, table.systems)
        cells.append(_score_cells(system, score, base.scores.get(benchmark.key) if base else None))
    for index, system in enumerate(table.by_labels):
        score = system.scores.get(benchmark.key)
        value, limits = (None, (None, None)) if score is None else (score.labels_accuracy, score.labels_bounds)
        start = " start" if index == 0 else ""
        cells.append(f'<td class="number{start}"><b>{percent(value)}</b><small>{interval_text(limits)}</small></td>')
    return f"<tr>{row_heading(benchmark)}{''.join(cells)}</tr>"


def interval_text(limits: Bounds, bertscore: bool = False) -> str:
    """ "32.1 to 45.0", or "" where there is no interval."""
    shown = fraction if bertscore else percent
    low, high = limits
    return "" if low is None or high is None else f"{shown(low)} to {shown(high)}"


def _picture_cell(table: ScoreTable, benchmark: BenchmarkInfo, scores: Sequence[Score | None]) -> str:
    if any(score is not None and score.bertscore for score in scores):
        return '<td class="picture"><small>BERTScore F1, not an accuracy</small></td>'
    intervals = [
        Interval(system.heading, score.value, score.low, score.high, slot)
        for system, score, slot in zip(table.systems, scores, table.slots, strict=True)
        if score is not None and score.value is not None
    ]
    plot = picture(interval_plot(benchmark.title, intervals), "intervals") if intervals else ""
    return f'<td class="picture">{plot}</td>'


def _score_cells(system: System, score: Score | None, base: Score | None) -> str:
    """Accuracy over its interval; the change against base (not for base itself); the share of unparsed answers."""
    trained = system.kind != "base"
    if score is None:
        return f'<td class="number start">{DASH}</td>' + f'<td class="number">{DASH}</td>' * (2 if trained else 1)
    shown = fraction if score.bertscore else percent
    interval = interval_text((score.low, score.high), score.bertscore)
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


def _mean_row(table: ScoreTable, title: str, benchmarks: Sequence[BenchmarkInfo]) -> str:
    """Means of accuracy over the benchmarks that every system has."""
    keys = [benchmark.key for benchmark in benchmarks]
    common = common_accuracy_keys(table.systems, keys)
    if not common:
        return ""
    means = [mean_accuracy(system, common) for system in table.systems]
    limits = [mean_accuracy_bounds(system, common) for system in table.systems]
    intervals = [
        Interval(system.heading, value, low, high, slot)
        for system, value, (low, high), slot in zip(table.systems, means, limits, table.slots, strict=True)
        if value is not None
    ]
    plot = picture(interval_plot(f"{title}, mean accuracy", intervals), "intervals")
    cells = [f'<td class="picture">{plot}</td>', '<td class="number"></td>']
    for system, value, limit in zip(table.systems, means, limits, strict=True):
        cells.append(f'<td class="number start"><b>{percent(value)}</b><small>{interval_text(limit)}</small></td>')
        if system.kind != "base":
            base = base_of(system, table.systems)
            before = mean_accuracy(base, common) if base else None
            gain = None if value is None or before is None else value - before
            cells.append(f'<td class="number">{points(gain)}</td>')
        cells.append('<td class="number"></td>')
    cells += [f'<td class="number{" start" if index == 0 else ""}"></td>' for index in range(len(table.by_labels))]
    sets = f"{len(common)} of {len(keys)} sets"
    return f'<tr class="mean"><th scope="row">{text(title)} <small>{sets}</small></th>{"".join(cells)}</tr>'


def _notes(table: ScoreTable) -> str:
    scores = [score for system in table.systems for score in system.scores.values()]
    notes = [
        "<b>Accuracy</b> is the share of rows whose parsed answer is right, and below it the 95 % interval. "
        "<b>Unparsed</b> answers are those in which no answer was found; they count as wrong.",
        "A <strong>bold change</strong> means that the two intervals do not overlap. Smaller changes may be chance.",
        "<b>Means</b> are over the sets that every system here was scored on; BERTScore sets are left out. Their intervals take the "
        "sets as independent (MOVER).",
    ]
    if table.by_labels:
        notes.append(
            "<b>Most probable label</b> is another task than answering in text: the model only ranks the labels, so nothing is "
            "unparsed. Compare it with itself only."
        )
    if any(system.kind == "local" and "mean of" in system.detail for system in table.systems):
        notes.append(
            "<b>Local</b> is the mean of the banks that trained alone; below it the worst and the best bank, so its changes are never bold."
        )
    for encoder in dict.fromkeys(score.encoder for score in scores if score.bertscore):
        notes.append(f"<b>BERTScore</b> encoder: {text(encoder)}.")
    return f'<ul class="notes">{"".join(f"<li>{note}</li>" for note in notes)}</ul>'
