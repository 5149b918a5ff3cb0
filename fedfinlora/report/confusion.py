"""Confusion matrices: which answer was given to rows of which class, as a table with numbers and shades, and as a figure.

"Other" (an answer that is none of the classes) and "unparsed" (no answer found) are outcomes of their own and stand apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedfinlora.report.drawing import Chart, save_link
from fedfinlora.report.markup import count, percent, plural, scroll_box, text
from fedfinlora.report.style import SHADES
from fedfinlora.run.evaluation import BenchmarkMetrics, ConfusionMatrix

APART = ("other", "unparsed")
MOST_CLASSES = 12
"""Larger matrices show their most frequent classes and sum up the rest: more than this cannot be read."""


def confusion_of(metrics: BenchmarkMetrics) -> ConfusionMatrix | None:
    """The matrix of one benchmark; None where there is none, or nothing is in it."""
    return metrics.confusion if metrics.confusion and any(map(sum, metrics.confusion.counts)) else None


def summed(matrices: Sequence[ConfusionMatrix | None]) -> ConfusionMatrix | None:
    """The sum of matrices of the same classes; None if one is missing or has others."""
    first = matrices[0] if matrices else None
    if first is None or any(m is None or (m.labels, m.answers) != (first.labels, first.answers) for m in matrices):
        return None
    stacked = [m.counts for m in matrices if m is not None]
    counts = tuple(tuple(map(sum, zip(*rows, strict=True))) for rows in zip(*stacked, strict=True))
    return ConfusionMatrix(first.labels, first.answers, counts)


def trimmed(matrix: ConfusionMatrix, most: int = MOST_CLASSES) -> ConfusionMatrix:
    """The matrix with its `most` most frequent classes; the rest is one row and one column."""
    if len(matrix.labels) <= most:
        return matrix
    ranked = sorted(range(len(matrix.labels)), key=lambda index: (-sum(matrix.counts[index]), index))
    kept = sorted(ranked[:most])
    names = [matrix.labels[index] for index in kept]
    columns = [matrix.answers.index(name) for name in names if name in matrix.answers]
    apart = [index for index, answer in enumerate(matrix.answers) if answer in APART]
    rest = [index for index in range(len(matrix.answers)) if index not in (*columns, *apart)]

    def gathered(row: Sequence[int]) -> tuple[int, ...]:
        return (*(row[i] for i in columns), sum(row[i] for i in rest), *(row[i] for i in apart))

    others = [sum(column) for column in zip(*(matrix.counts[index] for index in ranked[most:]), strict=True)]
    rest_name = f"{len(matrix.labels) - most} more classes"
    return ConfusionMatrix(
        (*names, rest_name),
        (*(matrix.answers[i] for i in columns), rest_name, *(matrix.answers[i] for i in apart)),
        (*(gathered(matrix.counts[index]) for index in kept), gathered(others)),
    )


def _kind(label: str, answer: str) -> str:
    return "apart" if answer in APART else "right" if label == answer else "wrong"


def confusion_table(matrix: ConfusionMatrix, heading: str, chart: Chart) -> str:
    """The matrix as a table: true classes down, answers across, darker where more of a class's rows went."""
    head = "".join(
        f'<th scope="col" class="{_edge(matrix, column)}">{text(answer)}</th>' for column, answer in enumerate(matrix.answers)
    )
    rows = []
    for row, label in enumerate(matrix.labels):
        cells = []
        for column, answer in enumerate(matrix.answers):
            shade = round(SHADES * matrix.share(row, column))
            if matrix.counts[row][column]:
                shade = max(shade, 1)
            kind = _kind(label, answer)
            classes = f"{_edge(matrix, column)} {kind} shade-{shade}".strip()
            title = f"{label}, answered {answer}: {percent(matrix.share(row, column), 0)} % of {sum(matrix.counts[row])}"
            cells.append(f'<td class="{classes}" title="{text(title)}">{count(matrix.counts[row][column])}</td>')
        rows.append(
            f'<tr><th scope="row">{text(label)}</th>{"".join(cells)}<td class="sum">{count(sum(matrix.counts[row]))}</td></tr>'
        )
    table = (
        f'<table class="confusion"><thead><tr><th scope="col">true ↓ answer →</th>{head}<th scope="col" class="sum">rows</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    caption = f"<figcaption><b>{text(heading)}</b> {save_link(chart)}</figcaption>"
    return f"<figure>{caption}{scroll_box(f'Confusion matrix of {heading}', table)}</figure>"


def _edge(matrix: ConfusionMatrix, column: int) -> str:
    """Where the outcomes that are no class begin."""
    return "edge" if matrix.answers[column] in APART and (column == 0 or matrix.answers[column - 1] not in APART) else ""


def confusion_chart(matrix: ConfusionMatrix, name: str, title: str) -> Chart:
    """The same matrix as a figure for a file."""
    cell_width, cell_height, gap = 66, 26, 10
    left = 16 + 6.2 * max(map(len, matrix.labels))
    parts = []
    for column, answer in enumerate(matrix.answers):
        x = left + column * cell_width + (gap if answer in APART else 0)
        shown = answer if len(answer) <= 11 else answer[:10] + "…"
        parts.append(f'<text class="tick" x="{x + cell_width / 2:.0f}" y="16" text-anchor="middle">{text(shown)}</text>')
        for row, label in enumerate(matrix.labels):
            y = 24 + row * cell_height
            share, kind = matrix.share(row, column), _kind(label, answer)
            strong = " strong" if kind == "right" else ""
            parts.append(
                f'<rect class="heat-{kind}" x="{x:.0f}" y="{y}" width="{cell_width - 1}" height="{cell_height - 1}"'
                f' fill-opacity="{0.04 + 0.9 * share:.2f}"><title>{text(f"{label}, answered {answer}: {percent(share, 0)} %")}</title></rect>'
                f'<text class="count{strong}" x="{x + cell_width / 2:.0f}" y="{y + 17}" text-anchor="middle">'
                f"{count(matrix.counts[row][column])}</text>"
            )
    for row, label in enumerate(matrix.labels):
        parts.append(
            f'<text class="name" x="{left - 6:.0f}" y="{41 + row * cell_height}" text-anchor="end">{text(label)}</text>'
        )
    width = round(left + len(matrix.answers) * cell_width + gap + 8)
    rows = plural(sum(map(sum, matrix.counts)), "answer")
    return Chart(
        name,
        title,
        "rows of each true class by the answer given",
        f"{rows} over {plural(len(matrix.labels), 'class').replace('classs', 'classes')}.",
        width,
        30 + cell_height * len(matrix.labels),
        "".join(parts),
    )
