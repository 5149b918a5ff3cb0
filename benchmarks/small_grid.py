"""What the small grids of sentiment runs share (`benchmarks.zoo`, `benchmarks.experts`): their command line, and the
figures of a cell.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from benchmarks.grid_runs import machine_of, run_cells
from eval.metrics.averages import headline_score
from fedfinlora.compose import PROJECT_ROOT
from fedfinlora.errors import UserError
from fedfinlora.files import read_json
from fedfinlora.run.evaluation import Scores
from fedfinlora.run.typed import to_json

TASKS = ("fpb", "fiqa", "tfns", "nwgi")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one cell came to."""

    accuracy: Mapping[str, float] = field(default_factory=dict)
    """Benchmark -> share of test rows that are right."""
    test_rows: int = 0
    """Of all benchmarks."""
    rows: int = 0
    """Trained on, repeats counted."""
    wall_s: float = 0.0
    """With scoring; from other processes' work too."""
    load: float = 0.0
    """Mean number of waiting processes in the last minute before the end."""
    machine: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    commit: str = ""

    @property
    def name(self) -> str:
        """Of the cell's file."""
        raise NotImplementedError

    @property
    def mean(self) -> float:
        """Over the benchmarks."""
        return fmean(self.accuracy.values())


AnyCell = TypeVar("AnyCell", bound=Figures)


def figures_of(run: Path, scores: Scores, started: float, command: str, more: Sequence[str]) -> dict[str, Any]:
    """The fields of Figures, except rows: of a run's folder and the scores in it. `started` is time.monotonic() of the
    cell's begin, `command` chooses the cell, `more` are the words for every run.
    """
    manifest = read_json(run / "manifest.json")
    words = [word for word in more if not word.startswith("dataset.root=")]
    return {
        "accuracy": {task: score for task in TASKS if (score := headline_score(scores[task])) is not None},
        "test_rows": sum(scores[task].n for task in TASKS),
        "wall_s": time.monotonic() - started,
        "load": os.getloadavg()[0],
        "machine": machine_of(manifest),
        "command": command + (f" -- {shlex.join(words)}" if words else ""),
        "commit": manifest["git_commit"],
    }


def options_of(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options of every small grid; cells are kept in docs/results/NAME."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", type=Path, metavar="DIR", help="train and test rows in FinLoRA's layout")
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    options.add_argument("--minutes", type=float, default=float("inf"), help="begin no further cell after so long")
    options.add_argument("--work", type=Path, default=Path("outputs") / name, help="where runs are put")
    options.add_argument("--out", type=Path, default=folder_of(name), help="where the cells' figures are kept")
    return options


def folder_of(name: str) -> Path:
    """Where a grid's cells are kept."""
    return PROJECT_ROOT / "docs" / "results" / name


def run_grid(
    options: argparse.ArgumentParser,
    cells_of: Callable[[argparse.Namespace], Sequence[AnyCell]],
    measured: Callable[[AnyCell, Sequence[str], Path], AnyCell],
) -> None:
    """Run the cells that are asked for and not there yet, each by measured(cell, words, work folder); words after `--`
    go to every run. Exit status 1 if a cell failed.
    """
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    chosen, more = options.parse_args(given[:split]), given[split + 1 :]
    words, work = [f"dataset.root={chosen.data.absolute()}", *more], chosen.work.absolute()
    ends = time.monotonic() + 60 * chosen.minutes
    failed: list[AnyCell] = []
    try:
        for cell in cells_of(chosen):
            if time.monotonic() < ends:
                failed += run_cells(
                    [cell],
                    lambda one: chosen.out / f"{one.name}.json",
                    lambda one: to_json(measured(one, words, work)),
                )
    except UserError as error:
        sys.exit(f"error: {error}")
    if failed:
        sys.exit(f"failed: {', '.join(cell.name for cell in failed)}. The same command tries them again.")
