"""Charts of shares with their 95 % intervals on one scale from 0 to 100 %, in groups or small inside a table cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedfinlora.report.charts import WIDTH, scale
from fedfinlora.report.drawing import Chart, LegendEntry, marker, text


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
    """Values with their intervals on a scale from 0 to 100 %, for one table cell."""
    height = row_height * len(intervals) + 5
    x_at = scale(0.0, 1.0, 5, width - 5)
    parts = [_percent_grid(x_at, 0, height)]
    for index, item in enumerate(intervals):
        parts.append(_interval(item, x_at, 2.5 + row_height * (index + 0.5)))
    description = "; ".join(f"{item.name} {100 * item.value:.1f} %" for item in intervals)
    return Chart("", title, "", description, width, height, "".join(parts))


def interval_chart(
    name: str, title: str, subtitle: str, rows: Sequence[IntervalRow], extra_legend: Sequence[LegendEntry] = ()
) -> Chart | None:
    """Rows of values with intervals on one scale from 0 to 100 %; None without any value."""
    rows = [row for row in rows if row.intervals]
    if not rows:
        return None
    x_at = scale(0.0, 1.0, 12, WIDTH - 12)
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


def _percent_grid(x_at: Callable[[float], float], top: float, bottom: float) -> str:
    return "".join(
        f'<line class="grid" x1="{x_at(at):.1f}" x2="{x_at(at):.1f}" y1="{top:.0f}" y2="{bottom:.0f}"/>'
        for at in (0, 0.25, 0.5, 0.75, 1)
    )
