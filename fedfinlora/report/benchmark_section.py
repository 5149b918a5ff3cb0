"""What lies behind one row of the score table: every figure, the classes, the confusion, and examples, system by system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedfinlora.report.confusion import confusion_chart, confusion_of, confusion_table, summed, trimmed
from fedfinlora.report.drawing import Chart
from fedfinlora.report.examples import NOT_STORED, choose_examples, examples_block
from fedfinlora.report.figures import FAMILIES, FIGURES, Figure, interval_of, shown, value_of
from fedfinlora.report.markup import (
    DASH,
    count,
    details,
    file_name,
    fraction,
    percent,
    plural,
    scroll_box,
    text,
)
from fedfinlora.report.scores import BenchmarkInfo, Score, System, by_group, mean
from fedfinlora.run.evaluation import BenchmarkMetrics, ClassRow, ConfusionMatrix

MOST_CLASSES = 15
"""Rows of the class table; the rest are counted below it."""


@dataclass(frozen=True)
class Scored:
    """One system that was scored on the benchmark."""

    system: System
    score: Score

    @property
    def metrics(self) -> list[BenchmarkMetrics]:
        """All its figures; one for each bank where the system is the mean of several."""
        return [metrics for _, metrics in self.score.parts]


def benchmark_sections(systems: Sequence[System], catalogue: Sequence[BenchmarkInfo]) -> str:
    """All benchmarks that were scored, folded, under the names of their groups."""
    parts = []
    for title, benchmarks in by_group(catalogue).items():
        sections = "".join(_section(benchmark, scored_on(benchmark, systems)) for benchmark in benchmarks)
        if sections:
            parts.append(f"<h3>{text(title)}</h3>{sections}")
    return "".join(parts)


def scored_on(benchmark: BenchmarkInfo, systems: Sequence[System]) -> list[Scored]:
    """The systems that have figures for the benchmark."""
    return [Scored(system, score) for system in systems if (score := system.scores.get(benchmark.key)) is not None]


def _section(benchmark: BenchmarkInfo, scored: Sequence[Scored]) -> str:
    if not scored:
        return ""
    best = max(
        (item for item in scored if item.score.value is not None), key=lambda item: item.score.value or 0.0, default=None
    )
    summary = plural(max(item.score.n for item in scored), "row")
    if best is not None:
        figure = fraction(best.score.value) if best.score.bertscore else f"{percent(best.score.value)} %"
        summary += f", best {figure} ({best.system.heading})"
    parts = [
        f'<p class="flaws"><b>About the data:</b> {text(benchmark.notes)}</p>' if benchmark.notes else "",
        _figures_table(benchmark, scored),
        _classes_table(benchmark, scored),
        _confusions(benchmark, scored),
        _examples(benchmark, scored),
    ]
    return (
        f'<details class="benchmark" id="benchmark-{text(benchmark.key)}"><summary><b>{text(benchmark.title)}</b> '
        f"<code>{text(benchmark.key)}</code> <span>{text(summary)}</span></summary>{''.join(parts)}</details>"
    )


def _figures_table(benchmark: BenchmarkInfo, scored: Sequence[Scored]) -> str:
    """Every figure that a system has, by family."""
    head = "".join(f'<th scope="col" class="number">{text(item.system.heading)}</th>' for item in scored)
    bodies = []
    for family, title in FAMILIES.items():
        rows = []
        for figure in FIGURES:
            if figure.family == family and any(value_of(figure, item.metrics) is not None for item in scored):
                cells = "".join(_figure_cell(figure, item) for item in scored)
                rows.append(f'<tr><th scope="row">{text(figure.title)}</th>{cells}</tr>')
        if rows:
            heading = f'<tr class="family"><th scope="rowgroup" colspan="{1 + len(scored)}">{text(title)}</th></tr>'
            bodies.append(f"<tbody>{heading}{''.join(rows)}</tbody>")
    table = f'<table class="plain compact"><thead><tr><th scope="col">Figure</th>{head}</tr></thead>{"".join(bodies)}</table>'
    tolerances = [metrics.relative_tolerance for item in scored for metrics in item.metrics if metrics.relative_tolerance]
    tolerance = (
        f"<p><small>Numbers are right within {min(tolerances):g} of the target’s size.</small></p>" if tolerances else ""
    )
    return scroll_box(f"Figures of {benchmark.title}", table) + tolerance


def _figure_cell(figure: Figure, item: Scored) -> str:
    value = value_of(figure, item.metrics)
    if value is None:
        return f'<td class="number">{DASH}</td>'
    return f'<td class="number"><b>{shown(figure, value)}</b><small>{interval_of(figure, item.metrics)}</small></td>'


def _classes_table(benchmark: BenchmarkInfo, scored: Sequence[Scored]) -> str:
    """Recall, precision and F1 of each class, the F1 also as a bar."""
    found = [(item, _classes(item)) for item in scored]
    found = [(item, classes) for item, classes in found if classes]
    if not found:
        return ""
    support: dict[str, float] = {}
    for _, classes in found:
        for label, values in classes.items():
            support[label] = max(support.get(label, 0.0), values.get("support") or 0.0)
    ranked = sorted(support, key=lambda label: -support[label])
    kept = [label for label in support if label in set(ranked[:MOST_CLASSES])]
    first = "".join(f'<th scope="colgroup" colspan="3" class="start">{text(item.system.heading)}</th>' for item, _ in found)
    second = '<th scope="col" class="start">F1</th><th scope="col" class="number">Precision</th><th scope="col" class="number">Recall</th>'
    rows = []
    for label in kept:
        cells = []
        for _, classes in found:
            values = classes.get(label, {})
            f1 = values.get("f1")
            cells.append(
                f'<td class="start bar-cell">{_bar(f1)}{fraction(f1)}</td><td class="number">{fraction(values.get("precision"))}</td>'
                f'<td class="number">{fraction(values.get("recall"))}</td>'
            )
        rows.append(
            f'<tr><th scope="row">{text(label)}</th><td class="number">{count(support[label])}</td>{"".join(cells)}</tr>'
        )
    table = (
        '<table class="plain compact classes"><thead><tr><th scope="col" rowspan="2">Class</th>'
        f'<th scope="col" rowspan="2" class="number">Rows</th>{first}</tr><tr>{second * len(found)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    left = len(support) - len(kept)
    more = (
        f"<p><small>{plural(left, 'rarer class').replace('classs', 'classes')} are left out here; metrics.json has all.</small></p>"
        if left
        else ""
    )
    return f"<h4>By class</h4>{scroll_box(f'Classes of {benchmark.title}', table)}{more}"


def _classes(item: Scored) -> dict[str, dict[str, float | None]]:
    """Class -> its figures, the mean over banks where there are several."""
    gathered: dict[str, list[ClassRow]] = {}
    for metrics in item.metrics:
        for row in metrics.classes or ():
            gathered.setdefault(row.label, []).append(row)
    return {
        label: {
            "support": mean(row.support for row in rows),
            "precision": mean(row.precision for row in rows),
            "recall": mean(row.recall for row in rows),
            "f1": mean(row.f1 for row in rows),
        }
        for label, rows in gathered.items()
    }


def _bar(share: float | None) -> str:
    width = 0.0 if share is None else 44 * min(max(share, 0.0), 1.0)
    return (
        '<svg class="share" width="44" height="8" viewBox="0 0 44 8" aria-hidden="true">'
        f'<rect class="band" width="44" height="8"/><rect class="bar slot-0" width="{width:.1f}" height="8"/></svg>'
    )


def confusion_charts(benchmark: BenchmarkInfo, systems: Sequence[System]) -> list[tuple[Scored, ConfusionMatrix, Chart]]:
    """The matrix of each system that has one, with its figure."""
    found = []
    for item in scored_on(benchmark, systems):
        matrix = summed([confusion_of(metrics) for metrics in item.metrics])
        if matrix is not None:
            name = file_name(f"confusion-{benchmark.key}-{item.system.heading}")
            small = trimmed(matrix)
            found.append((item, small, confusion_chart(small, name, f"{benchmark.title}, {item.system.heading}")))
    return found


def _confusions(benchmark: BenchmarkInfo, scored: Sequence[Scored]) -> str:
    drawn = []
    for item, matrix, chart in confusion_charts(benchmark, [item.system for item in scored]):
        banks = f", sum of {len(item.metrics)} banks" if len(item.metrics) > 1 else ""
        drawn.append(confusion_table(matrix, f"{item.system.heading}{banks}", chart))
    if not drawn:
        return ""
    return (
        "<h4>Confusion</h4><p><small>Rows of each true class by the answer given; darker is a larger share of the class. "
        f'Blue is right, orange is wrong, grey is no class at all.</small></p><div class="matrices">{"".join(drawn)}</div>'
    )


def _examples(benchmark: BenchmarkInfo, scored: Sequence[Scored]) -> str:
    blocks = []
    for item in scored:
        for source, _ in item.score.parts[:1]:
            kinds = choose_examples(source.records(benchmark.key))
            if kinds:
                of = f" ({source.run.name})" if len(item.score.parts) > 1 else ""
                summary = ", ".join(f"{len(kind.rows)} {kind.name.lower()}" for kind in kinds)
                blocks.append(details(f"{item.system.heading}{of}", summary, examples_block(kinds)))
    if not blocks:
        return ""
    return f'<h4>Examples</h4><p><small>{NOT_STORED}</small></p><div class="answered">{"".join(blocks)}</div>'
