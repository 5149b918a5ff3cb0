"""Charts of runs by round: lines, and bars by bank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedfinlora.report.drawing import Chart, LegendEntry, marker, text

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
    """Lines over `places`, the round `best` marked; None without any value. A point alone on its line is a marker."""
    values = [value for line in series for value in line.values if value is not None]
    if not values:
        return None
    ticks = nice_ticks(min(values), max(values))
    x_at = scale(places[0], places[-1], LEFT + 8, WIDTH - RIGHT - 8)
    y_at = scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [_y_axis(ticks, y_at, y_format), *(_x_label(x_at(place), str(place)) for place in _thinned(places, 8))]
    if best is not None and best in places:
        parts.append(_best_line(x_at(best), best))
    for line in sorted(series, key=lambda item: item.thick):
        points = [
            (x_at(place), y_at(value)) for place, value in zip(places, line.values, strict=True) if value is not None
        ]
        if len(points) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline class="line {_weight(line)} slot-{line.slot}" points="{path}"{_dashes(line)}/>')
        # Markers on every point of a long line would hide it.
        marked = set(_thinned(places, 20)) if len(points) > 1 else set(places)
        for place, value in zip(places, line.values, strict=True):
            if value is not None and place in marked:
                label = f"{line.name}, {x_label} {place}: {y_format(value)}"
                parts.append(marker(line.slot, x_at(place), y_at(value), 3.6 if line.thick else 2.8, label))
    last = ", ".join(
        f"{line.name} {_ends(line, y_format)}" for line in series if any(v is not None for v in line.values)
    )
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
    """Groups of bars from zero. A place without a value but with a note shows a cross."""
    values = [value for bars in series for value in bars.values if value is not None]
    if not values:
        return None
    ticks = nice_ticks(0.0, max(values))
    y_at = scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
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
                    f'<rect class="bar slot-{bars.slot}" x="{x:.1f}" y="{y_at(value):.1f}"'
                    f' width="{max(bar_width - 1, 0.8):.1f}" height="{height:.1f}"><title>{text(label)}</title></rect>'
                )
            if note:
                parts.append(_cross(x + bar_width / 2, y_at(value or 0.0) - 6, f"{place}: {note}"))
    highest = y_format(max(values))
    described = f"{y_label} for each of {len(series)} series over {len(groups)} groups; the highest is {highest}."
    parts.append(_x_title(x_label))
    entries = legend(series, bars=True) if len(series) > 1 else ()
    return Chart(name, title, y_label, described, WIDTH, HEIGHT, "".join(parts), entries)


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


def scale(from_low: float, from_high: float, to_low: float, to_high: float) -> Callable[[float], float]:
    """A linear map; an input without extent lands in the middle."""
    if from_high == from_low:
        return lambda value: (to_low + to_high) / 2
    return lambda value: to_low + (value - from_low) / (from_high - from_low) * (to_high - to_low)


def _thinned(places: Sequence[int], most: int) -> list[int]:
    """At most `most` of the places, evenly apart, from the first."""
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


def _x_title(label: str) -> str:
    x = (LEFT + WIDTH - RIGHT) / 2
    return f'<text class="tick" x="{x:.0f}" y="{HEIGHT - 3}" text-anchor="middle">{text(label)}</text>'


def _best_line(x: float, best: int) -> str:
    at, anchor = (x - 4, "end") if x > WIDTH - 70 else (x + 4, "start")
    return (
        f'<line class="best" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 4}" y2="{HEIGHT - BOTTOM}">'
        f"<title>best round: {best}</title></line>"
        f'<text class="tick" x="{at:.1f}" y="{TOP + 5}" text-anchor="{anchor}">best</text>'
    )


def _cross(x: float, y: float, label: str) -> str:
    return f'<path class="cross" d="M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6"><title>{text(label)}</title></path>'
