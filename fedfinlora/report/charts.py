"""Charts: lines by round, bars by bank and round, and values with their intervals, in groups or small inside a table cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedfinlora.report.drawing import Chart, LegendEntry, marker
from fedfinlora.report.markup import text

WIDTH, HEIGHT = 360, 224
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 34
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


def line_chart(
    name: str,
    title: str,
    places: Sequence[int],
    series: Sequence[Series],
    y_label: str,
    y_format: Format,
    best: int | None = None,
    x_label: str = "round",
) -> Chart | None:
    """Lines over the rounds (or what `x_label` says) in `places`, the round `best` marked. A lone point is a marker; None if there is no value at all."""
    values = [value for line in series for value in line.values if value is not None]
    if not values:
        return None
    ticks = nice_ticks(min(values), max(values))
    x_at = _scale(places[0], places[-1], LEFT + 8, WIDTH - RIGHT - 8)
    y_at = _scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [_y_axis(ticks, y_at, y_format), *(_x_label(x_at(place), str(place)) for place in _thinned(places, 8))]
    if best is not None and best in places:
        parts.append(_best_line(x_at(best), best))
    for line in sorted(series, key=lambda item: item.thick):
        points = [(x_at(place), y_at(value)) for place, value in zip(places, line.values, strict=True) if value is not None]
        if len(points) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline class="line {_weight(line)} slot-{line.slot}" points="{path}"{_dashes(line)}/>')
        # Markers on every point of a long line would hide it.
        marked = set(_thinned(places, 20)) if len(points) > 1 else set(places)
        for place, value in zip(places, line.values, strict=True):
            if value is not None and place in marked:
                label = f"{line.name}, {x_label} {place}: {y_format(value)}"
                parts.append(marker(line.slot, x_at(place), y_at(value), 3.6 if line.thick else 2.8, label))
    last = ", ".join(f"{line.name} {_ends(line, y_format)}" for line in series if any(v is not None for v in line.values))
    noted = f" Best round: {best}." if best is not None and best in places else ""
    parts.append(_x_title(x_label))
    return Chart(
        name, title, y_label, f"{y_label} by {x_label}: {last}.{noted}", WIDTH, HEIGHT, "".join(parts), legend(series)
    )  # fmt: skip


def bar_chart(
    name: str,
    title: str,
    groups: Sequence[str],
    series: Sequence[Series],
    y_label: str,
    y_format: Format,
    x_label: str = "round",
) -> Chart | None:
    """Groups of bars from zero, one bar for each series. A place without a value but with a note shows a cross."""
    values = [value for bars in series for value in bars.values if value is not None]
    if not values:
        return None
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
    parts.append(_x_title(x_label))
    entries = legend(series, bars=True) if len(series) > 1 else ()
    return Chart(name, title, y_label, described, WIDTH, HEIGHT, "".join(parts), entries)


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval, all fractions from 0 to 1."""

    name: str
    value: float
    low: float | None
    high: float | None
    slot: int


@dataclass(frozen=True)
class IntervalRow:
    """One label of an interval chart with the values under it."""

    label: str
    intervals: Sequence[Interval]
    band: tuple[float, float, str] | None = None
    """A grey range behind the values (low, high, what it is)."""
    pin: tuple[float, str] | None = None
    """One more value, drawn as an upright stroke (value, what it is)."""


def interval_plot(title: str, intervals: Sequence[Interval], width: int = 150, row_height: int = 9) -> Chart:
    """Values on a scale from 0 to 100 % with their intervals, one under the other: a picture for one table cell."""
    height = row_height * len(intervals) + 5
    x_at = _scale(0.0, 1.0, 5, width - 5)
    parts = [_percent_grid(x_at, 0, height)]
    for index, item in enumerate(intervals):
        parts.append(_interval(item, x_at, 2.5 + row_height * (index + 0.5)))
    description = "; ".join(f"{item.name} {100 * item.value:.1f} %" for item in intervals)
    return Chart("", title, "", description, width, height, "".join(parts))


def interval_chart(
    name: str, title: str, subtitle: str, rows: Sequence[IntervalRow], extra_legend: Sequence[LegendEntry] = ()
) -> Chart | None:
    """Rows of values with intervals on one scale from 0 to 100 %, each under its label; None if there is no value at all."""
    rows = [row for row in rows if row.intervals]
    if not rows:
        return None
    x_at = _scale(0.0, 1.0, 12, WIDTH - 12)
    step, gap, head = 11, 11, 19
    heights = [head + step * len(row.intervals) + gap for row in rows]
    bottom = sum(heights) + 2
    parts = [_percent_grid(x_at, 4, bottom)]
    y = 0.0
    for row, height in zip(rows, heights, strict=True):
        parts.append(f'<text class="name" x="12" y="{y + 13:.0f}">{text(row.label)}</text>')
        first, last = y + head + 1, y + height - gap + 1
        if row.band is not None:
            low, high, meaning = row.band
            parts.append(
                f'<rect class="band" x="{x_at(low):.1f}" y="{first:.1f}" width="{max(x_at(high) - x_at(low), 1):.1f}"'
                f' height="{last - first:.1f}"><title>{text(meaning)}</title></rect>'
            )
        if row.pin is not None:
            at, meaning = row.pin
            parts.append(
                f'<line class="pin" x1="{x_at(at):.1f}" x2="{x_at(at):.1f}" y1="{first:.1f}" y2="{last:.1f}">'
                f"<title>{text(meaning)}</title></line>"
            )
        parts += [_interval(item, x_at, y + head + step * (index + 0.5)) for index, item in enumerate(row.intervals)]
        y += height
    for at in (0, 0.25, 0.5, 0.75, 1):
        anchor = "start" if at == 0 else "end" if at == 1 else "middle"
        parts.append(
            f'<text class="tick" x="{x_at(at):.1f}" y="{bottom + 14}" text-anchor="{anchor}">{100 * at:.0f}'
            f"{' %' if at == 1 else ''}</text>"
        )
    described = "; ".join(
        f"{row.label}: " + ", ".join(f"{item.name} {100 * item.value:.1f} %" for item in row.intervals) for row in rows
    )
    found = {item.name: item.slot for row in rows for item in row.intervals}
    entries = [LegendEntry(marker(slot, 13, 6, 3.6), heading) for heading, slot in found.items()]
    return Chart(name, title, subtitle, described + ".", WIDTH, bottom + 20, "".join(parts), (*entries, *extra_legend))


def _interval(item: Interval, x_at: Callable[[float], float], y: float) -> str:
    label = f"{item.name} {100 * item.value:.1f} %"
    whisker = ""
    if item.low is not None and item.high is not None:
        label += f" ({100 * item.low:.1f} to {100 * item.high:.1f})"
        whisker = (
            f'<line class="line whisker slot-{item.slot}" x1="{x_at(item.low):.1f}" x2="{x_at(item.high):.1f}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/>'
        )
    return whisker + marker(item.slot, x_at(item.value), y, 3.2, label)


def legend(series: Sequence[Series], bars: bool = False) -> tuple[LegendEntry, ...]:
    """One entry for each name, in the order of the series."""
    unique: dict[str, Series] = {}
    for line in series:
        unique.setdefault(line.legend or line.name, line)
    return tuple(LegendEntry(_sample(line, bars), name) for name, line in unique.items())


def _sample(line: Series, bars: bool) -> str:
    if bars:
        return f'<rect class="bar slot-{line.slot}" x="7" width="12" height="12"/>'
    return (
        f'<line class="line {_weight(line)} slot-{line.slot}" x1="1" x2="25" y1="6" y2="6"{_dashes(line)}/>'
        f"{marker(line.slot, 13, 6, 3.2)}"
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


def _percent_grid(x_at: Callable[[float], float], top: float, bottom: float) -> str:
    return "".join(
        f'<line class="grid" x1="{x_at(at):.1f}" x2="{x_at(at):.1f}" y1="{top:.0f}" y2="{bottom:.0f}"/>'
        for at in (0, 0.25, 0.5, 0.75, 1)
    )


def _y_axis(ticks: Sequence[float], y_at: Callable[[float], float], y_format: Format) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_at(tick):.1f}" y2="{y_at(tick):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y_at(tick) + 4:.1f}" text-anchor="end">{text(y_format(tick))}</text>'
        for tick in ticks
    )


def _x_label(x: float, label: str) -> str:
    shown = label if len(label) <= 14 else label[:13] + "…"
    return f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{text(shown)}</text>'


def _x_title(label: str) -> str:
    return f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 3}" text-anchor="middle">{text(label)}</text>'


def _best_line(x: float, best: int) -> str:
    near_end = x > WIDTH - 70
    return (
        f'<line class="best" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 4}" y2="{HEIGHT - BOTTOM}"><title>best round: {best}</title></line>'
        f'<text class="tick" x="{x + (-4 if near_end else 4):.1f}" y="{TOP + 5}" text-anchor="{"end" if near_end else "start"}">best</text>'
    )


def _cross(x: float, y: float, label: str) -> str:
    return f'<path class="cross" d="M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6"><title>{text(label)}</title></path>'
