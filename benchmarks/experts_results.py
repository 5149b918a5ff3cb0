"""The table of experts and routers for docs/results.md: the kept cells of `benchmarks.experts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean

from benchmarks.small_grid import TASKS, Figures
from fedfinlora.files import read_json
from fedfinlora.run.typed import from_json

MULTI = "all"
MODELS: Mapping[str, str] = {
    "base": "base model",
    **{task: f"adapter of {task} alone" for task in TASKS},
    MULTI: "one adapter of all four",
    "arrow": "the four, by Arrow",
    "xlora": "the four, by X-LoRA's gate",
}
"""What a cell scores -> its name in the table."""
ROUTES: Mapping[str, str] = {"task": "the four, each benchmark by its own", "oracle": "the four, best on the test rows"}
"""Computed from the cells of the four adapters."""
LOST_POINTS = "27 and 30"
"""FinLoRA, section 4: what one adapter a group of tasks costs on general and reporting tasks; analysis gains 7."""


@dataclass(frozen=True)
class Cell(Figures):
    """One model and what it scores on all four benchmarks."""

    model: str
    """A key of MODELS."""
    seed: int
    base: str = ""
    """The base model."""
    steps: int = 0
    """As `rows`, of the gate for xlora."""

    @property
    def name(self) -> str:
        """Of the cell's file."""
        return f"{self.model}-s{self.seed}"


def read_experts(folder: Path) -> list[Cell]:
    """The kept cells."""
    return [from_json(Cell, read_json(file), str(file)) for file in sorted(folder.glob("*.json"))]


def routed_accuracy(cells: Mapping[str, Cell], route: str) -> dict[str, float]:
    """Benchmark -> accuracy of the four adapters under `task` or `oracle`, from their own cells (model -> cell of one
    seed); {} where one of the four is missing.
    """
    experts = [cells[task].accuracy for task in TASKS if task in cells]
    if len(experts) < len(TASKS):
        return {}
    if route == "task":
        return {task: cells[task].accuracy[task] for task in TASKS}
    return {task: max(accuracy[task] for accuracy in experts) for task in TASKS}


def experts_section(folder: Path) -> str:
    """The table; "" where no cell is kept."""
    cells = read_experts(folder)
    if not cells:
        return ""
    by_seed: dict[int, dict[str, Cell]] = {}
    for cell in cells:
        by_seed.setdefault(cell.seed, {})[cell.model] = cell
    found: dict[str, list[Mapping[str, float]]] = {}
    for model in (*MODELS, *ROUTES):
        for own in by_seed.values():
            accuracy = routed_accuracy(own, model) if model in ROUTES else own[model].accuracy if model in own else {}
            if accuracy:
                found.setdefault(model, []).append(accuracy)
    lines = [
        f"| model | {' | '.join(TASKS)} | mean | seeds |",
        f"|---|{'---|' * len(TASKS)}---|---|",
        *(_line(model, accuracies) for model, accuracies in found.items()),
    ]
    return "\n".join([*lines, "", _words(cells, found), "", *_origins(cells)])


def _line(model: str, accuracies: Sequence[Mapping[str, float]]) -> str:
    each = [fmean(accuracy[task] for accuracy in accuracies) for task in TASKS]
    shown = " | ".join(f"{100 * value:.1f}" for value in (*each, fmean(each)))
    return f"| {(MODELS | ROUTES)[model]} | {shown} | {len(accuracies)} |"


def _words(cells: Sequence[Cell], found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """What the table is of, and what one adapter for all costs here."""
    trained = next((cell for cell in cells if cell.model in TASKS), cells[0])
    words = [
        f"Accuracy in per cent, {cells[0].base} on a 4-bit base, centralised LoRA of rank 8: {trained.rows} train rows "
        f"a task (repeats counted) in {trained.steps} steps, so the adapter "
        f"of all four takes as many rows of each task as a task's own. "
        f"{cells[0].test_rows // len(TASKS)} test rows a benchmark."
    ]
    if found.get("task") and found.get(MULTI):
        means = {model: [fmean(accuracy.values()) for accuracy in found[model]] for model in (MULTI, "task")}
        many, own = (fmean(means[model]) for model in (MULTI, "task"))
        rows = cells[0].test_rows * len(means[MULTI])
        half = 1.96 * sqrt((many * (1 - many) + own * (1 - own)) / rows)
        points = 100 * (many - own)
        verdict = "more than chance of the rows" if abs(many - own) > half else "within chance of the rows"
        words.append(
            f"One adapter for all four against each benchmark's own: {points:+.1f} points ({verdict}: ±{100 * half:.1f}"
            f"). FinLoRA reports that one adapter a group of tasks costs {LOST_POINTS} points on general and reporting "
            "tasks and gains 7 on analysis: its groups hold tasks of different kinds, the four here are one kind."
        )
    return " ".join([*words, "`python -m benchmarks.experts DIR`"])


def _origins(cells: Sequence[Cell]) -> list[str]:
    return [
        f"- {MODELS[cell.model]}, seed {cell.seed}: `{cell.command}`, commit `{cell.commit}`, {cell.wall_s / 60:.1f} "
        f"minutes, load {cell.load:.1f}."
        for cell in sorted(cells, key=lambda cell: (cell.seed, list(MODELS).index(cell.model)))
    ]
