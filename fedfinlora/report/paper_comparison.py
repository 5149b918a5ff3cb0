"""Figures for papers that compare systems: scores by benchmark, and score against bytes and seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedfinlora.report.content import Content
from fedfinlora.report.formats import plural
from fedfinlora.report.paper_drawing import PAGE_IN, legend_below, look, panels
from fedfinlora.report.resources import Resources, resources_of
from fedfinlora.report.scores import common_accuracy_keys, mean_accuracy_bounds
from fedfinlora.report.systems import System

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG_SPAN = 20
"""Largest over smallest value from which an axis is logarithmic."""


def performance_figure(content: Content) -> Figure | None:
    """The score of every system on each benchmark with its 95 % interval, %; BERTScore F1 times 100."""
    items = [item for item in content.catalogue if any(_has(system, item.key) for system in content.systems)]
    if not items:
        return None
    rows, systems = len(items), content.systems
    figure, (axes,) = panels(1, height_in=0.9 + rows * max(0.2, 0.09 * len(systems)), width_in=PAGE_IN * 0.75)
    for number, system in enumerate(systems):
        shift = 0.7 * ((number + 0.5) / len(systems) - 0.5)
        places = [place for place, item in enumerate(items) if _has(system, item.key)]
        scores = [system.scores[items[place].key] for place in places]
        values = [100 * (score.value or 0.0) for score in scores]
        spread = [
            (value - 100 * low, 100 * high - value) if (low := score.bounds[0]) is not None
            and (high := score.bounds[1]) is not None else (0.0, 0.0)
            for score, value in zip(scores, values, strict=True)
        ]  # fmt: skip
        style = look(number) | {"linestyle": "none", "elinewidth": 0.8, "label": system.heading}
        axes.errorbar(
            values, [place + shift for place in places], xerr=[[max(one, 0.0) for one in side]
            for side in zip(*spread, strict=True)], **style,
        )  # fmt: skip
    names = [item.title + (" (BERTScore F1)" if content.is_bertscored(item.key) else "") for item in items]
    axes.set_yticks(range(rows), names)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.grid(axis="y", visible=False)
    for edge in range(1, rows):
        axes.axhline(edge - 0.5, color="0.9", linewidth=0.5, zorder=0)
    mean = any(score.of_banks for score in content.scores)
    bars = "worst to best bank, else 95 % interval" if mean else "95 % interval"
    axes.set_xlabel(f"accuracy, % (bars: {bars})")
    legend_below(figure, [axes], columns=4)
    return figure


def efficiency_figure(content: Content) -> Figure | None:
    """Mean accuracy over the common benchmarks against bytes moved and seconds trained; the base model as a line."""
    keys = common_accuracy_keys(content.systems, content.titles)
    found = [(system, resources_of(content, system)) for system in content.systems if system.kind != "base"]
    trained = [(system, spent) for system, spent in found if spent is not None and spent.seconds is not None]
    if not keys or not trained:
        return None
    moved = any(spent.megabytes for _, spent in trained)
    figure, axes = panels(2 if moved else 1, height_in=2.6)
    slots = {system.heading: number for number, system in enumerate(content.systems)}
    for panel, unit in zip(axes, ("MB", "s") if moved else ("s",), strict=True):
        for system, spent in trained:
            _point(panel, system, keys, spent, unit, slots[system.heading])
        for system in content.systems:
            if system.kind == "base":
                level = 100 * (system.accuracy(keys) or 0.0)
                panel.axhline(level, color="0.4", linewidth=1, linestyle="--", label=system.heading)
        _fit(panel, [value for _, spent in trained if (value := _spent(spent, unit)) is not None])
        panel.set_xlabel("bytes sent and received, MB" if unit == "MB" else "training time, s")
        panel.set_ylabel("mean accuracy, %")
        panel.set_title(plural(len(keys), "benchmark"))
    low, high = zip(*(panel.get_ylim() for panel in axes), strict=True)
    for panel in axes:
        panel.set_ylim(min(low), max(high))
    legend_below(figure, axes, columns=3 if moved else 2)
    return figure


def _point(axes: Axes, system: System, keys: list[str], spent: Resources, unit: str, slot: int) -> None:
    """One system; one that moves nothing has no point among the bytes, but a line at its height."""
    value, place = 100 * (system.accuracy(keys) or 0.0), _spent(spent, unit)
    style = look(slot) | {"linestyle": "none"}
    if not place:
        label = f"{system.heading} (moves no bytes)" if unit == "MB" else system.heading
        axes.axhline(value, color=style["color"], linewidth=1, linestyle=":", label=label)
        return
    low, high = mean_accuracy_bounds(system, keys)
    error = None if low is None or high is None else [[value - 100 * low], [100 * high - value]]
    axes.errorbar([place], [value], yerr=error, elinewidth=0.8, label=system.heading, **style)


def _fit(axes: Axes, values: list[float]) -> None:
    """A logarithmic axis where the values are far apart, and room at both ends."""
    known = [value for value in values if value > 0]
    if known and max(known) / min(known) >= LOG_SPAN:
        axes.set_xscale("log")
        axes.set_xlim(min(known) / 2, max(known) * 2)
    elif known:
        axes.set_xlim(0, 1.15 * max(known))
    low, high = axes.get_ylim()
    axes.set_ylim(max(low - 0.05 * (high - low), 0), min(high + 0.05 * (high - low), 101))


def _spent(spent: Resources, unit: str) -> float | None:
    return spent.megabytes if unit == "MB" else spent.seconds


def _has(system: System, key: str) -> bool:
    return key in system.scores and system.scores[key].value is not None
