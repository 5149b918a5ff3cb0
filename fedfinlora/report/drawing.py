"""A chart as SVG: inside the page, in its colours, and as a file of its own.

Colours come from classes (`slot-0` to `slot-7`), so that light, dark and print each have their own. A series is also
marked by its marker and dash pattern, and each mark has a `<title>` with its value.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from fedfinlora.report.formats import printable
from fedfinlora.report.palette import LIGHT, SLOTS

LEGEND_ROW = 17
"""Height of one line of a standing-alone figure's legend."""
FONT = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def text(value: object) -> str:
    """Safe in the content and the attributes of SVG."""
    return html.escape(printable(value))


@dataclass(frozen=True)
class LegendEntry:
    sample: str
    """SVG elements in a box of 26 x 12."""
    name: str


@dataclass(frozen=True)
class Chart:
    """A picture with its title and legend."""

    name: str
    """File name without its ending, unique within a report."""
    title: str
    subtitle: str
    """What is measured, e.g. the label of the y axis."""
    description: str
    """The content in a sentence, for readers who do not see the picture."""
    width: int
    height: int
    body: str
    """SVG elements; everything in them is escaped."""
    legend: tuple[LegendEntry, ...] = ()


def picture(chart: Chart, css_class: str = "chart") -> Markup:
    """The chart as SVG inside the page."""
    return Markup(
        f'<svg class="{css_class}" viewBox="0 0 {chart.width} {chart.height}" width="{chart.width}"'
        f' height="{chart.height}" role="img">{_described(chart)}{chart.body}</svg>'
    )


def _described(chart: Chart) -> str:
    return f"<title>{text(chart.title)}</title><desc>{text(chart.description)}</desc>"


def standalone(chart: Chart) -> str:
    """The chart as an SVG file: title above, legend below, in colours of its own."""
    top = 44 if chart.subtitle else 28
    below = top + chart.height + 8
    height = below + LEGEND_ROW * len(chart.legend) + 8
    width = max(chart.width, 16 + 7 * max(len(chart.title), len(chart.subtitle)))
    words = [f'<text class="title" x="12" y="20">{text(chart.title)}</text>']
    if chart.subtitle:
        words.append(f'<text class="tick" x="12" y="37">{text(chart.subtitle)}</text>')
    for index, entry in enumerate(chart.legend):
        y = below + LEGEND_ROW * index
        words.append(
            f'<g transform="translate(12 {y})">{entry.sample}<text class="tick" x="34" '
            f'y="10">{text(entry.name)}</text></g>'
        )
    body = f'<g transform="translate(0 {top})">{chart.body}</g>{"".join(words)}'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img">{_described(chart)}<style>{_file_style(body)}</style>'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{body}</svg>\n'
    )


def chart_style(colour: Callable[[str], str], font: str, body: str = "") -> str:
    """The rules for charts in these colours; with `body`, of the series in it only."""
    rules = [
        f".tick{{font:11px {font};fill:{colour('quiet')};font-variant-numeric:tabular-nums}}",
        f".name,.count{{font:11px {font};fill:{colour('ink')}}}",
        f".grid{{stroke:{colour('rule')};stroke-width:1}}.band{{fill:{colour('rule')}}}",
        f".pin{{stroke:{colour('quiet')};stroke-width:1.5;fill:none}}",
        f".best{{stroke:{colour('quiet')};stroke-width:1;stroke-dasharray:3 3}}",
        f".cross{{stroke:{colour('fail')};stroke-width:2;fill:none;stroke-linecap:round}}",
        ".line{fill:none;stroke-linejoin:round;stroke-linecap:round}",
        ".thin{stroke-width:1.3}.thick{stroke-width:3}.whisker{stroke-width:1.6;opacity:.75}.mark{stroke-width:1.4}",
    ]
    for slot in (f"slot-{number}" for number in range(SLOTS)):
        if slot in body or not body:
            rules.append(
                f".line.{slot}{{stroke:{colour(slot)}}}.mark.{slot}{{fill:{colour(slot)};stroke:{colour(slot)}}}"
            )
            rules.append(f".bar.{slot}{{fill:{colour(slot)}}}")
    return "".join([*rules, f".mark.hollow{{fill:{colour('paper')}}}"])


def _file_style(body: str) -> str:
    """Literal colours: not every program knows CSS variables."""
    heat = (
        f".heat-{kind}{{fill:{LIGHT[f'heat-{kind}']}}}"
        for kind in ("right", "wrong", "apart")
        if f"heat-{kind}" in body
    )
    title = f".title{{font:600 14px {FONT};fill:{LIGHT['ink']}}}.strong{{font-weight:700}}"
    return "".join([title, *heat, chart_style({**LIGHT, "paper": "#fff"}.__getitem__, FONT, body)])


def marker(slot: int, x: float, y: float, radius: float, label: str = "") -> str:
    """A mark: circle, square, triangle, diamond, each filled and then hollow."""
    shape = slot % 4
    title = f"<title>{text(label)}</title>" if label else ""
    classes = f'class="mark slot-{slot}{" hollow" if slot >= 4 else ""}"'
    if shape == 0:
        return f'<circle {classes} cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">{title}</circle>'
    corners = {
        1: ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        2: ((0, -1.2), (1.1, 0.9), (-1.1, 0.9)),
        3: ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    }[shape]
    points = " ".join(f"{x + radius * dx:.1f},{y + radius * dy:.1f}" for dx, dy in corners)
    return f'<polygon {classes} points="{points}">{title}</polygon>'
