"""Charts as inline SVG: lines by round, bars by bank and round, and the small interval plots inside the score table.

Colours come from style.py by class (`slot-0` to `slot-7`), so that light, dark and print each have their own. A series is
also told apart by its marker and dash pattern, never by colour alone, and each mark has a `<title>` with its value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedfinlora.report.markup import text

WIDTH, HEIGHT = 360, 224
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 34
SLOTS = 8
DASHES = ("", "6 3", "2 3", "8 3 2 3", "4 2", "1 3", "10 4", "6 2 1 2 1 2")

Format = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """One line, or one bar in every group."""

    name: str
    values: tuple[float | None, ...]
    """One for each place on the x axis; None leaves a gap."""
    slot: int
    """Colour, marker and dash: 0 to 7."""
    thick: bool = False
    """The global line among those of the banks."""
    notes: tuple[str, ...] = ()
    """For bars: why there is none at a place ("rejected: …"), "" elsewhere."""
    legend: str = ""
    """What the legend says instead of the name; the same for several series, it is said once."""


def line_chart(title: str, places: Sequence[int], series: Sequence[Series], y_label: str, y_format: Format) -> str:
    """Lines over the rounds in `places`. A lone point is a marker; "" if there is no value at all."""
    values = [value for line in series for value in line.values if value is not None]
    if not values:
        return ""
    ticks = nice_ticks(min(values), max(values))
    x_at = _scale(places[0], places[-1], LEFT + 8, WIDTH - RIGHT - 8)
    y_at = _scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [_y_axis(ticks, y_at, y_format), *(_x_label(x_at(place), str(place)) for place in _thinned(places, 8))]
    for line in sorted(series, key=lambda item: item.thick):
        points = [(x_at(place), y_at(value)) for place, value in zip(places, line.values, strict=True) if value is not None]
        if len(points) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline class="line {_weight(line)} slot-{line.slot}" points="{path}"{_dashes(line)}/>')
        # Markers on every point of a long line would hide it.
        marked = set(_thinned(places, 20)) if len(points) > 1 else set(places)
        for place, value in zip(places, line.values, strict=True):
            if value is not None and place in marked:
                label = f"{line.name}, round {place}: {y_format(value)}"
                parts.append(marker(line.slot, x_at(place), y_at(value), 3.6 if line.thick else 2.8, label))
    last = ", ".join(f"{line.name} {_ends(line, y_format)}" for line in series if any(v is not None for v in line.values))
    return _figure(title, f"{y_label} by round: {last}.", y_label, "round", parts, legend(series))


def bar_chart(
    title: str, groups: Sequence[str], series: Sequence[Series], y_label: str, y_format: Format, x_label: str = "round"
) -> str:
    """Groups of bars from zero, one bar for each series. A place without a value but with a note shows a cross."""
    values = [value for bars in series for value in bars.values if value is not None]
    if not values:
        return ""
    ticks = nice_ticks(0.0, max(values))
    y_at = _scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    group_width = (WIDTH - LEFT - RIGHT) / len(groups)
    bar_width = min(group_width * 0.8 / len(series), 30.0)
    parts = [_y_axis(ticks, y_at, y_format)]
    labelled = set(_thinned(range(len(groups)), 10))
    for index, group in enumerate(groups):
        middle = LEFT + group_width * (index + 0.5)
        if index in labelled:
            parts.append(_x_label(middle, group))
        for position, bars in enumerate(series):
            x = middle + bar_width * (position - len(series) / 2)
            value = bars.values[index]
            note = bars.notes[index] if bars.notes else ""
            place = f"{bars.name}, {x_label} {group}" if x_label else f"{bars.name} {group}".strip()
            if value is not None:
                height = max(y_at(0.0) - y_at(value), 0.0)
                label = f"{place}: {y_format(value)}" + (f" ({note})" if note else "")
                parts.append(
                    f'<rect class="bar slot-{bars.slot}" x="{x:.1f}" y="{y_at(value):.1f}" width="{max(bar_width - 1, 0.8):.1f}"'
                    f' height="{height:.1f}"><title>{text(label)}</title></rect>'
                )
            if note:
                parts.append(_cross(x + bar_width / 2, y_at(value or 0.0) - 6, f"{place}: {note}"))
    highest = y_format(max(values))
    described = f"{y_label} for each of {len(series)} series over {len(groups)} groups; the highest is {highest}."
    return _figure(title, described, y_label, x_label, parts, legend(series, bars=True) if len(series) > 1 else "")


@dataclass(frozen=True)
class Interval:
    """One row of an interval plot: a value with its 95 % interval, all fractions from 0 to 1."""

    name: str
    value: float
    low: float | None
    high: float | None
    slot: int


def interval_plot(title: str, intervals: Sequence[Interval], width: int = 150, row_height: int = 9) -> str:
    """Values on a scale from 0 to 100 % with their intervals, one under the other: a picture for one table cell."""
    height = row_height * len(intervals) + 5
    x_at = _scale(0.0, 1.0, 5, width - 5)
    parts = [
        f'<line class="grid" x1="{x_at(at):.1f}" x2="{x_at(at):.1f}" y1="0" y2="{height}"/>' for at in (0, 0.25, 0.5, 0.75, 1)
    ]
    for index, item in enumerate(intervals):
        y = 2.5 + row_height * (index + 0.5)
        label = f"{item.name} {100 * item.value:.1f} %"
        if item.low is not None and item.high is not None:
            label += f" ({100 * item.low:.1f} to {100 * item.high:.1f})"
            parts.append(
                f'<line class="line whisker slot-{item.slot}" x1="{x_at(item.low):.1f}" x2="{x_at(item.high):.1f}" '
                f'y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        parts.append(marker(item.slot, x_at(item.value), y, 3.2, label))
    description = "; ".join(f"{item.name} {100 * item.value:.1f} %" for item in intervals)
    return _svg(title, description, width, height, parts, "intervals")


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


def legend(series: Sequence[Series], bars: bool = False) -> str:
    """The names of the series beside their marks, as an HTML list in the order of the series."""
    unique: dict[str, Series] = {}
    for line in series:
        unique.setdefault(line.legend or line.name, line)
    items = "".join(f"<li>{_sample(line, bars)} {text(name)}</li>" for name, line in unique.items())
    return f'<ul class="legend">{items}</ul>'


def _sample(line: Series, bars: bool) -> str:
    if bars:
        return (
            '<svg width="12" height="12" viewBox="0 0 12 12" aria-hidden="true">'
            f'<rect class="bar slot-{line.slot}" width="12" height="12"/></svg>'
        )
    return (
        '<svg width="26" height="12" viewBox="0 0 26 12" aria-hidden="true">'
        f'<line class="line {_weight(line)} slot-{line.slot}" x1="1" x2="25" y1="6" y2="6"{_dashes(line)}/>'
        f"{marker(line.slot, 13, 6, 3.2)}</svg>"
    )


def _weight(line: Series) -> str:
    return "thick" if line.thick else "thin"


def _dashes(line: Series) -> str:
    dash = "" if line.thick else DASHES[line.slot]
    return f' stroke-dasharray="{dash}"' if dash else ""


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high]; at least two.

    >>> nice_ticks(0.0, 9.3)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * max(size, 1.0):
        spread = 0.1 * size if size > 1e-6 else 1.0
        low, high = (low if 0 <= low < spread else low - spread), high + spread
    rough = (high - low) / (wanted - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _scale(from_low: float, from_high: float, to_low: float, to_high: float) -> Callable[[float], float]:
    """A linear map; where the input has no extent, everything lands in the middle."""
    if from_high == from_low:
        return lambda value: (to_low + to_high) / 2
    return lambda value: to_low + (value - from_low) / (from_high - from_low) * (to_high - to_low)


def _thinned(places: Sequence[int], most: int) -> list[int]:
    """At most `most` of the places, evenly apart, the first among them."""
    return list(places)[:: math.ceil(len(places) / most)]


def _ends(line: Series, y_format: Format) -> str:
    known = [value for value in line.values if value is not None]
    return y_format(known[0]) if len(known) == 1 else f"from {y_format(known[0])} to {y_format(known[-1])}"


def _y_axis(ticks: Sequence[float], y_at: Callable[[float], float], y_format: Format) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_at(tick):.1f}" y2="{y_at(tick):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y_at(tick) + 4:.1f}" text-anchor="end">{text(y_format(tick))}</text>'
        for tick in ticks
    )


def _x_label(x: float, label: str) -> str:
    shown = label if len(label) <= 14 else label[:13] + "…"
    return f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{text(shown)}</text>'


def _cross(x: float, y: float, label: str) -> str:
    return f'<path class="cross" d="M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6"><title>{text(label)}</title></path>'


def _figure(title: str, description: str, y_label: str, x_label: str, parts: Sequence[str], below: str) -> str:
    axis = (
        f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 3}" text-anchor="middle">{text(x_label)}</text>'
    )
    picture = _svg(title, description, WIDTH, HEIGHT, [*parts, axis], "chart")
    caption = f"<figcaption><b>{text(title)}</b> <span>{text(y_label)}</span></figcaption>"
    return f"<figure>{caption}{picture}{below}</figure>"


def _svg(title: str, description: str, width: int, height: int, parts: Sequence[str], css_class: str) -> str:
    return (
        f'<svg class="{css_class}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        f"<title>{text(title)}</title><desc>{text(description)}</desc>{''.join(parts)}</svg>"
    )
