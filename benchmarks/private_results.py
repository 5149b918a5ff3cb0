"""The section on what privacy costs, for docs/results.md and README.md: from the figures of `benchmarks.private_grid`
alone.

A cell has no epsilon (`none`), an epsilon, so much noise that nothing else moves the adapter (`noise`), or is the
public adapter that all started from (`start`). Seeds of a setting are averaged; the spread shown is from the lowest to
the highest of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from data.catalog import BENCHMARKS
from fedfinlora.files import read_json
from fedfinlora.report.charts import Series, line_chart
from fedfinlora.report.drawing import standalone
from fedfinlora.report.intervals import Interval, IntervalRow, interval_chart

Cell = Mapping[str, Any]
"""Figures of one run, as docs/private/CELL.json holds them."""
TITLES = {"none": "without privacy", "noise": "noise alone", "start": "public start"}
AIMS = {"8": 3.0, "3": 6.0}
"""Epsilon -> how many points below the run without privacy were aimed at."""


def read_cells(folder: Path) -> list[Cell]:
    """All cells that are done, by adapter, then without privacy first, falling epsilon, noise alone, the public start;
    seeds in order.
    """
    cells = [read_json(file) for file in sorted(folder.glob("*.json"))]
    adapters = sorted(
        {cell["adapter"] for cell in cells}, key=lambda name: -sum(cell["adapter"] == name for cell in cells)
    )
    return sorted(cells, key=lambda cell: (adapters.index(cell["adapter"]), _rank(cell["kind"]), cell["seed"]))


def mean_of(scores: Mapping[str, Mapping[str, Any]]) -> tuple[float, float]:
    """(mean accuracy over benchmarks, half of its 95 % interval): shares of independent rows, by the normal
    approximation.
    """
    shares = [float(metrics["accuracy"]) for metrics in scores.values()]
    variance = sum(share * (1 - share) / metrics["n"] for share, metrics in zip(shares, scores.values(), strict=True))
    return fmean(shares), 1.96 * math.sqrt(variance) / len(shares)


def private_table(cells: Sequence[Cell]) -> str:
    """One line a setting: sigma, noise, each benchmark's accuracy and the mean over its seeds, with what it lost."""
    keys = [key for key in BENCHMARKS if key in cells[0]["scores"]]
    counts = [f"{BENCHMARKS[key].title} ({cells[0]['scores'][key]['n']})" for key in keys]
    heads = [
        "epsilon",
        "adapter",
        "parameters",
        "sigma",
        "noise in a step",
        "signal to noise",
        *counts,
        "mean",
        "to none",
        "seeds",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for setting in settings(cells):
        first, means = setting[0], [cell["mean"] for cell in setting]
        noise, signal = first.get("noise_to_signal"), first.get("signal_to_noise")
        shares = [f"{100 * fmean(cell['scores'][key]['accuracy'] for cell in setting):.1f}" for key in keys]
        row = [
            TITLES.get(str(first["kind"]), str(first["kind"])), _adapter(first), f"{first['parameters']:,}",
                _sigmas(setting),
            f"{noise:.2f} C" if noise else "–", f"{signal:.0f}" if signal else "–", *shares, _spread(means),
            _lost(setting, cells),
            ", ".join(str(cell["seed"]) for cell in setting),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def private_words(cells: Sequence[Cell]) -> str:
    """How to read the table and whether the aims are reached, each sentence from figures."""
    said = []
    half = max(cell["mean_half_interval"] for cell in cells)
    private = [cell for cell in cells if "privacy" in cell and cell["kind"] != "noise"]
    for adapter in dict.fromkeys(cell["adapter"] for cell in cells):
        said += _aims([cell for cell in cells if cell["adapter"] == adapter])
    one = next((cell for cell in cells if "rounds" in cell), None)
    how = (
        (
            f"{one['banks']} banks with unequal shares, {one['rounds']} rounds, {one['steps']} steps of each bank, "
            f"{one['rows_processed']:,} rows processed. "
        )
        if one
        else ""
    )
    text = (
        f"{how}Each line is the mean over its seeds, the lowest and highest seed in brackets; a seed decides "
        "partition, order and the scored rows. The 95 % interval of one run's "
        f"mean is ±{100 * half:.1f} points. Noise is the norm of the noise in a step's mean over the banks, in units "
        "of C, the longest that this mean can "
        "be; signal to noise is sqrt(T) over the noise of one parameter of that mean, the most that a run can reach in "
        "one direction. `noise alone` has a "
        "multiplier so large that as good as nothing of a row is left: a setting that lies within its spread has not "
        "shown that it learnt from rows. The public start "
        "was trained on the bundled synthetic rows only, so no bank's row is in it. "
    )
    if private:
        spent = max(bank["epsilon_spent"] or math.inf for cell in private for bank in cell["privacy"])
        text += f"Every cell has a ledger of its own; the largest epsilon spent by a row of any is {spent:.2f} (the "
        text += "simulated banks of a cell share one, so a row whose text is at several of them counts for each). "
    return text + " ".join(said)


def private_short(cells: Sequence[Cell]) -> str:
    """The means in a sentence or two, for the README."""
    keys = [key for key in BENCHMARKS if key in cells[0]["scores"]]
    half = max(cell["mean_half_interval"] for cell in cells)
    said = []
    for adapter in dict.fromkeys(cell["adapter"] for cell in cells):
        own = settings([cell for cell in cells if cell["adapter"] == adapter])
        means = [f"{_epsilon(setting[0])} {100 * fmean(cell['mean'] for cell in setting):.1f}" for setting in own]
        said.append(f"{_adapter(own[0][0])}: {', '.join(means)}.")
    titles = ", ".join(BENCHMARKS[key].title for key in keys)
    return f"Mean accuracy of {titles}, % (one run: ±{100 * half:.0f}). {' '.join(said)}"


def private_chart(cells: Sequence[Cell]) -> str:
    """The means with their spread over seeds, a row for each epsilon, as the content of an SVG file."""
    adapters = list(dict.fromkeys(cell["adapter"] for cell in cells))
    rows: dict[str, list[Interval]] = {}
    for setting in sorted(settings(cells), key=lambda setting: _rank(setting[0]["kind"])):
        means = [cell["mean"] for cell in setting]
        slot = adapters.index(setting[0]["adapter"])
        rows.setdefault(_epsilon(setting[0]), []).append(
            Interval(_adapter(setting[0]), fmean(means), min(means), max(means), slot)
        )
    chart = interval_chart(
        "privacy",
        "What privacy costs",
        "mean accuracy, from the lowest to the highest seed",
        [IntervalRow(*row) for row in rows.items()],
    )
    assert chart is not None
    return standalone(chart)


def noise_curve(cells: Sequence[Cell]) -> str:
    """Mean accuracy against the run's signal-to-noise ratio, a line for each adapter, as the content of an SVG file; ""
    without private cells.
    """
    adapters = list(dict.fromkeys(cell["adapter"] for cell in cells))
    points: dict[str, dict[int, float]] = {}
    for setting in settings(cells):
        signal = setting[0].get("signal_to_noise")
        if signal is not None:
            points.setdefault(setting[0]["adapter"], {})[round(signal)] = fmean(cell["mean"] for cell in setting)
    places = sorted({place for found in points.values() for place in found})
    series = [
        Series(
            next(_adapter(cell) for cell in cells if cell["adapter"] == adapter),
            tuple(found.get(place) for place in places),
            adapters.index(adapter),
        )
        for adapter, found in points.items()
    ]
    chart = series and line_chart(
        "privacy-noise",
        "Accuracy by signal to noise",
        places,
        series,
        "mean accuracy",
        lambda value: f"{100 * value:.0f} %",
        x_label="signal to noise",
    )
    return standalone(chart) if chart else ""


def origins(cells: Sequence[Cell]) -> list[str]:
    """Command, commit and machine of each cell."""
    return [
        f"- {cell['adapter']}, {_epsilon(cell)}, seed {cell['seed']}: `{cell['command']}`, commit "
        f"`{cell['commit'] or 'unknown'}`, {cell['minutes']:.1f} minutes on "
        f"{cell['machine']['gpu'] or f'''{cell['machine']['cpus']} CPUs'''}."
        for cell in cells
    ]


def settings(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The seeds of each adapter and kind together, in the order of `cells`."""
    return [list(group) for _, group in groupby(cells, key=lambda cell: (cell["adapter"], cell["kind"]))]


def _aims(own: Sequence[Cell]) -> list[str]:
    """What one adapter's run reached without privacy, and how far each epsilon stayed from it."""
    by_kind = {setting[0]["kind"]: setting for setting in settings(own)}
    if "none" not in by_kind:
        return []
    said = [f"{_adapter(own[0])}: {100 * fmean(cell['mean'] for cell in by_kind['none']):.1f} without privacy"]
    for kind, setting in by_kind.items():
        lost = _points_lost(setting, by_kind["none"])
        if kind not in TITLES and lost is not None:
            aim = AIMS.get(kind)
            reached = "" if aim is None else f" (aim: at most {aim:g} below; {'reached' if lost <= aim else 'missed'})"
            said.append(f"epsilon {kind} {-lost:+.1f} points{reached}")
    return [f"{', '.join(said)}."]


def _points_lost(setting: Sequence[Cell], without: Sequence[Cell]) -> float | None:
    """Mean points below the runs without privacy, over the seeds that both have."""
    means = {cell["seed"]: cell["mean"] for cell in without}
    lost = [100 * (means[cell["seed"]] - cell["mean"]) for cell in setting if cell["seed"] in means]
    return fmean(lost) if lost else None


def _lost(setting: Sequence[Cell], cells: Sequence[Cell]) -> str:
    without = [cell for cell in cells if cell["adapter"] == setting[0]["adapter"] and cell["kind"] == "none"]
    lost = None if setting[0]["kind"] in ("none", "start") else _points_lost(setting, without)
    return "–" if lost is None else f"{-lost:+.1f}"


def _sigmas(setting: Sequence[Cell]) -> str:
    found = sorted(
        {f"{bank['noise_multiplier']:.2f}" for cell in setting for bank in cell.get("privacy", [])}, key=float
    )
    return " to ".join(dict.fromkeys([found[0], found[-1]])) if found else "–"


def _spread(means: Sequence[float]) -> str:
    shown = f"{100 * fmean(means):.1f}"
    return shown if len(means) == 1 else f"{shown} ({100 * min(means):.1f} to {100 * max(means):.1f})"


def _epsilon(cell: Cell) -> str:
    return TITLES.get(cell["kind"]) or f"epsilon {cell['kind']}"


def _adapter(cell: Cell) -> str:
    peft = cell["peft"]
    name = "LoRA-XS" if peft["method"] == "lora_xs" else "FFA-LoRA" if peft["freeze_a"] else "LoRA"
    return (
        f"{name}, rank {peft['rank']} on {', '.join(target.removesuffix('_proj') for target in peft['target_modules'])}"
    )


def _rank(kind: str) -> float:
    """Order of the lines: without privacy, falling epsilon, noise alone, the public start."""
    return {"none": -math.inf, "noise": 1.0, "start": 2.0}.get(kind) or -float(kind)
