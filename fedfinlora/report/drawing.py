"""A chart as the report draws it: inline, in the colours of the page, and as an SVG file that stands alone.

Colours come from classes (`slot-0` to `slot-7`), so that light, dark and print each have their own; the file gets a style sheet
with the light set. A series is also told apart by its marker and dash pattern, never by colour alone, and each mark has a
`<title>` with its value.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from fedfinlora.report.markup import text
from fedfinlora.report.palette import LIGHT, SLOTS

LEGEND_ROW = 17
"""Height of one line of a standing-alone figure's legend."""
FONT = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class LegendEntry:
    """One name beside its mark."""

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


def figure(chart: Chart) -> str:
    """The chart in the page: caption, picture, legend, and a link that saves it as a file."""
    caption = f"<figcaption><b>{text(chart.title)}</b> <span>{text(chart.subtitle)}</span> {save_link(chart)}</figcaption>"
    return f"<figure>{caption}{picture(chart)}{legend_list(chart.legend)}</figure>"


def picture(chart: Chart, css_class: str = "chart") -> str:
    """The inline SVG alone."""
    return (
        f'<svg class="{css_class}" viewBox="0 0 {chart.width} {chart.height}" width="{chart.width}" height="{chart.height}"'
        f' role="img"><title>{text(chart.title)}</title><desc>{text(chart.description)}</desc>{chart.body}</svg>'
    )


def legend_list(entries: Sequence[LegendEntry]) -> str:
    """The names of the series beside their marks, as an HTML list; "" without any."""
    items = "".join(
        f'<li><svg width="26" height="12" viewBox="0 0 26 12" aria-hidden="true">{entry.sample}</svg> {text(entry.name)}</li>'
        for entry in entries
    )
    return f'<ul class="legend">{items}</ul>' if items else ""


def standalone(chart: Chart) -> str:
    """The chart as the content of an SVG file: title above, legend below, on white, in colours of its own."""
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
            f'<g transform="translate(12 {y})">{entry.sample}<text class="tick" x="34" y="10">{text(entry.name)}</text></g>'
        )
    body = f'<g transform="translate(0 {top})">{chart.body}</g>{"".join(words)}'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        f"<title>{text(chart.title)}</title><desc>{text(chart.description)}</desc><style>{_file_style(body)}</style>"
        f'<rect width="{width}" height="{height}" fill="#fff"/>{body}</svg>\n'
    )


def save_link(chart: Chart) -> str:
    """A link that saves the figure as an SVG file, without a network."""
    return download(f"{chart.name}.svg", "image/svg+xml", standalone(chart), "SVG", f"Save the figure {chart.title} as SVG")


def download(file_name: str, mime_type: str, content: str, shown: str, label: str) -> str:
    """A link that saves `content`, which it carries in itself."""
    encoded = base64.b64encode(content.encode()).decode()
    return (
        f'<a class="save" download="{text(file_name)}" href="data:{mime_type};charset=utf-8;base64,{encoded}"'
        f' aria-label="{text(label)}">{text(shown)}</a>'
    )


def _file_style(body: str) -> str:
    """The rules for a file, of those series only that occur in it. Literal colours: not every program knows CSS variables."""
    rules = [
        f".title{{font:600 14px {FONT};fill:{LIGHT['ink']}}}",
        f".tick{{font:11px {FONT};fill:{LIGHT['quiet']}}}",
        f".name,.count{{font:11px {FONT};fill:{LIGHT['ink']}}}",
        ".strong{font-weight:700}",
        f".grid{{stroke:{LIGHT['rule']};stroke-width:1}}",
        f".band{{fill:{LIGHT['rule']}}}",
        f".pin{{stroke:{LIGHT['quiet']};stroke-width:1.5;fill:none}}",
        f".best{{stroke:{LIGHT['quiet']};stroke-width:1;stroke-dasharray:3 3}}",
        f".cross{{stroke:{LIGHT['fail']};stroke-width:2;fill:none;stroke-linecap:round}}",
        ".line{fill:none;stroke-linejoin:round;stroke-linecap:round}",
        ".thin{stroke-width:1.3}.thick{stroke-width:3}.whisker{stroke-width:1.6;opacity:.75}.mark{stroke-width:1.4}",
        *(f".heat-{kind}{{fill:{LIGHT[f'heat-{kind}']}}}" for kind in ("right", "wrong", "apart") if f"heat-{kind}" in body),
    ]
    for slot in range(SLOTS):
        if f"slot-{slot}" in body:
            colour = LIGHT[f"slot-{slot}"]
            rules.append(f".line.slot-{slot}{{stroke:{colour}}}.mark.slot-{slot}{{fill:{colour};stroke:{colour}}}")
            rules.append(f".bar.slot-{slot}{{fill:{colour}}}")
    return "".join([*rules, ".mark.hollow{fill:#fff}"])


def marker(slot: int, x: float, y: float, radius: float, label: str = "") -> str:
    """A mark whose shape goes with its slot: circle, square, triangle, diamond, each filled and then hollow."""
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
