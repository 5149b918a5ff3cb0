"""Confusion matrices, as a table with shades and as a chart. "Other" (an answer that is none of the classes) and
"unparsed" (no answer found) are set apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fedfinlora.report.drawing import Chart, text
from fedfinlora.report.formats import count, percent, plural
from fedfinlora.report.palette import SHADES
from fedfinlora.run.evaluation import BenchmarkMetrics, ConfusionMatrix

APART = ("other", "unparsed")
MOST_CLASSES = 12
"""Larger matrices show their most frequent classes and sum up the rest: more than this cannot be read."""


def confusion_of(metrics: BenchmarkMetrics) -> ConfusionMatrix | None:
    """The matrix of one benchmark; None where nothing is in it."""
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


class MatrixCell(NamedTuple):
    """One cell of the matrix as a table."""

    number: int
    css_class: str
    """right, wrong or apart; the shade, darker where more of a class's rows went; edge."""
    title: str


def matrix_rows(matrix: ConfusionMatrix) -> list[tuple[str, list[MatrixCell], int]]:
    """(true class, its cells, its rows) of each class."""
    rows = []
    for row, (label, counts) in enumerate(zip(matrix.labels, matrix.counts, strict=True)):
        cells = []
        for column, (answer, found) in enumerate(zip(matrix.answers, counts, strict=True)):
            shade = max(round(SHADES * matrix.share(row, column)), 1 if found else 0)
            title = f"{label}, answered {answer}: {percent(matrix.share(row, column), 0)} % of {sum(counts)}"
            classes = f"{edge(matrix, column)} {_kind(label, answer)} shade-{shade}".strip()
            cells.append(MatrixCell(found, classes, title))
        rows.append((label, cells, sum(counts)))
    return rows


def edge(matrix: ConfusionMatrix, column: int) -> str:
    """Where the outcomes that are no class begin."""
    return (
        "edge" if matrix.answers[column] in APART and (column == 0 or matrix.answers[column - 1] not in APART) else ""
    )


def confusion_chart(matrix: ConfusionMatrix, name: str, title: str) -> Chart:
    """The matrix as a chart for a file."""
    cell_width, cell_height, gap = 66, 26, 10
    left = 16 + 6.2 * max(map(len, matrix.labels))
    parts = []
    for column, answer in enumerate(matrix.answers):
        x = left + column * cell_width + (gap if answer in APART else 0)
        shown = answer if len(answer) <= 11 else answer[:10] + "…"
        parts.append(
            f'<text class="tick" x="{x + cell_width / 2:.0f}" y="16" text-anchor="middle">{text(shown)}</text>'
        )
        for row, label in enumerate(matrix.labels):
            y = 24 + row * cell_height
            share, kind = matrix.share(row, column), _kind(label, answer)
            note = text(f"{label}, answered {answer}: {percent(share, 0)} %")
            strong = " strong" if kind == "right" else ""
            parts.append(
                f'<rect class="heat-{kind}" x="{x:.0f}" y="{y}" width="{cell_width - 1}" height="{cell_height - 1}"'
                f' fill-opacity="{0.04 + 0.9 * share:.2f}"><title>{note}</title></rect>'
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
        f"{rows} over {plural(len(matrix.labels), 'class', 'classes')}.",
        width,
        30 + cell_height * len(matrix.labels),
        "".join(parts),
    )
