"""Figures for papers by round: losses, scores, and what the machine did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from fedfinlora.report.content import Content
from fedfinlora.report.curves import NAMED_LINES, score_points
from fedfinlora.report.paper_drawing import legend_below, look, panels, rounds_axis
from fedfinlora.report.reading import Run
from fedfinlora.report.resources import events_of
from fedfinlora.run.events import Load

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Mapping[int, float]
"""Round -> value."""


def loss_figure(content: Content) -> Figure | None:
    """Mean loss over answer tokens, train and held-out: each run, and the banks of a run that is alone."""
    kinds = {"train_loss": "train loss", "holdout_loss": "held-out loss"}
    runs = [run for run in content.runs if run.rounds]
    known = [name for name in kinds if any(getattr(line, name) is not None for run in runs for line in run.rounds)]
    if not known:
        return None
    figure, axes = panels(len(known))
    for panel, name in zip(axes, known, strict=True):
        for run in runs if len(runs) == 1 else ():
            _bank_lines(panel, run, name)
        for slot, run in enumerate(runs):
            _line(panel, _points((line.round, getattr(line, name)) for line in run.rounds), run.name, slot)
        panel.set_ylabel(f"{kinds[name]}, nats/token")
        rounds_axis(panel)
    legend_below(figure, axes)
    return figure


def score_figure(content: Content) -> Figure | None:
    """Mean accuracy on test rows, from the base model (round 0) to the final adapter, and score on validation rows."""
    tests = [{place: 100 * value for place, value in score_points(run).items()} for run in content.runs]
    validations = [
        _points(
            (line.round, 100 * line.validation.score)
            for line in run.rounds
            if line.validation and line.validation.score is not None
        )
        for run in content.runs
    ]
    chosen = [
        (points, label)
        for points, label in (
            (tests, "test accuracy, mean, %"), (validations, "validation score, mean, %")
        )
        if any(points)
    ]  # fmt: skip
    if not chosen:
        return None
    figure, axes = panels(len(chosen))
    for panel, (by_run, label) in zip(axes, chosen, strict=True):
        for slot, (run, points) in enumerate(zip(content.runs, by_run, strict=True)):
            _line(panel, points, run.name, slot)
        panel.set_ylabel(label)
        rounds_axis(panel)
    legend_below(figure, axes)
    return figure


LOADS: Sequence[tuple[str, float, Mapping[str, str]]] = (
    ("mean use, %", 100, {"cpu_share": "CPU", "gpu_share": "GPU"}),
    ("most memory, GiB", 1,
    {"rss_gib": "server process", "memory_gib": "machine", "gpu_memory_gib": "GPU"}),
    ("mean power, W", 1, {"gpu_watts": "GPU"}),
)  # fmt: skip
"""Panel: label of its y axis, factor, field of `Load` -> name of its line."""
LOAD_LOOKS = {"CPU": 0, "GPU": 1, "server process": 2, "machine": 3}


def load_figure(run: Run) -> Figure | None:
    """CPU, GPU, memory and power by round, from the `load` events of progress.jsonl; None where there are none."""
    loads = {event.round: event for event in events_of(run.folder) if isinstance(event, Load) and event.of == "round"}
    shown = [
        (label, factor, {name: title for name, title in lines.items() if any(getattr(one, name) is not None
         for one in loads.values())})
        for label, factor, lines in LOADS
    ]  # fmt: skip
    shown = [(label, factor, lines) for label, factor, lines in shown if lines]
    if not shown:
        return None
    figure, axes = panels(len(shown))
    for panel, (label, factor, lines) in zip(axes, shown, strict=True):
        for name, title in lines.items():
            values = {number: getattr(load, name) for number, load in sorted(loads.items())}
            points = {number: factor * value for number, value in values.items() if value is not None}
            _line(panel, points, title, LOAD_LOOKS[title])
        panel.set_ylabel(label)
        panel.set_ylim(0, 105 if factor == 100 else 1.1 * panel.get_ylim()[1])
        rounds_axis(panel)
    legend_below(figure, axes, columns=4)
    return figure


def _points(pairs: Iterable[tuple[int, float | None]]) -> dict[int, float]:
    return {place: value for place, value in pairs if value is not None}


def _line(axes: Axes, points: Points, name: str, slot: int) -> None:
    """A line; without markers where there are too many to see."""
    if points:
        style = look(slot)
        if len(points) > 40:
            style.pop("marker")
        axes.plot(list(points), list(points.values()), label=name, **style)


def _bank_lines(axes: Axes, run: Run, name: str) -> None:
    """The banks in grey behind the run's own line."""
    banks = run.banks
    for number, bank in enumerate(banks if len(banks) > 1 else ()):
        points = _points((line.round, getattr(line.bank(bank), name, None)) for line in run.rounds)
        label = "each bank" if number == 0 else None
        width = 0.8 if len(banks) <= NAMED_LINES else 0.4
        axes.plot(list(points), list(points.values()), color="0.65", linewidth=width, label=label, zorder=1)
