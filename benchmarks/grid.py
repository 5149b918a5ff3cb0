"""Run a grid of comparisons (`benchmarks.grid_plan`), cell by cell, and keep one small file of figures for each.

    python -m benchmarks.grid benchmarks/grids/sentiment.yaml --dry-run
    python -m benchmarks.grid benchmarks/grids/sentiment.yaml --data /data/finlora --work /scratch/grid
    python -m benchmarks.grid benchmarks/grids/sentiment.yaml --data DIR --cells '*-dirichlet0.5-r20-rows-s0' 'pooled-*'
    python -m benchmarks.grid benchmarks/grids/sentiment.yaml --data DIR -- model.threads=2

A cell is done when docs/results/grid/NAME/CELL.json is there: scores, whether each test row is right (a character a
row, no text), the validation score, wall time and load. What is killed resumes: finished cells are skipped, a begun
run resumes after its last round. Where rates are tuned, a cell's tuning runs come first, and are shared by its seeds
and partitions. Words after `--` go to every run: what suits the machine, nothing that changes what is measured.
docs/results.md is made from the cells by `python -m benchmarks.results`.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.grid_cells import Runner, cell_file, read_cell
from benchmarks.grid_plan import Cell, Grid, as_table, cells_of, expected_minutes, read_grid, tuning_cells
from benchmarks.grid_runs import NICENESS, run_cells
from fedfinlora.errors import UserError


def main() -> None:
    """Run what is asked for and not there yet; exit status 1 if a cell failed."""
    options = argparse.ArgumentParser(
        usage="%(prog)s FILE.yaml [options] [-- key=value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("file", type=Path, metavar="FILE.yaml", help="a file in benchmarks/grids, or one like it")
    options.add_argument("--data", type=Path, metavar="DIR", help="the train and test rows, in FinLoRA's layout")
    options.add_argument("--work", type=Path, metavar="DIR", default=Path("outputs/grid"), help="where runs are put")
    options.add_argument("--cells", nargs="+", metavar="GLOB", default=["*"], help="only those whose names fit one")
    options.add_argument(
        "--dry-run", action="store_true", help="show the cells and their expected minutes, run nothing"
    )
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    chosen, words = options.parse_args(given[:split]), given[split + 1 :]
    try:
        grid = read_grid(chosen.file)
        wanted = [one for one in cells_of(grid) if any(fnmatch.fnmatch(one.name, glob) for glob in chosen.cells)]
        if not wanted:
            options.error(f"no cell is called {' or '.join(chosen.cells)}. --dry-run shows them all.")
        if chosen.dry_run:
            print(plan_text(grid, wanted))
            return
        if chosen.data is None:
            options.error("--data is needed to run anything.")
        os.nice(NICENESS)
        failed = run_grid(grid, wanted, chosen.data.absolute(), chosen.work.absolute(), words)
    except UserError as error:
        sys.exit(f"error: {error}")
    if failed:
        sys.exit(f"failed: {', '.join(cell.name for cell in failed)}. The same command tries them again.")


def run_grid(grid: Grid, wanted: Sequence[Cell], data: Path, work: Path, more: Sequence[str]) -> list[Cell]:
    """Run the cells that are not done, each after its tuning runs. Returns those that failed; the others continue."""
    runner = Runner(grid, data, work / grid.name, more)
    failed: list[Cell] = []
    for cell in wanted:
        if cell_file(grid, cell).is_file():
            continue
        untuned = run_cells(list(tuning_cells(grid, cell)), runner.file_of, runner.figures)
        failed += [one for one in untuned if one not in failed]
        failed += [cell] if untuned else run_cells([cell], runner.file_of, runner.figures)
    return failed


def plan_text(grid: Grid, wanted: Sequence[Cell]) -> str:
    """All cells with their expected minutes, tuning runs among them, and the sum of what is not done."""
    took: dict[tuple[str, str, bool], list[float]] = {}
    every = list(dict.fromkeys(one for cell in wanted for one in (*tuning_cells(grid, cell), cell)))
    done = {cell for cell in every if cell_file(grid, cell).is_file()}
    for cell in done:
        kind = (grid.rules[cell.rule].mode, cell.budget, bool(cell.rate))
        took.setdefault(kind, []).append(read_cell(cell_file(grid, cell)).minutes)
    lines, left = [], 0.0
    for cell in every:
        minutes = expected_minutes(grid, cell, took)
        left += 0.0 if cell in done else minutes
        lines.append(("done" if cell in done else "", f"{minutes:5.1f} min", cell.name))
    total = f"{len(every) - len(done)} of {len(every)} runs are left, about {left / 60:.1f} hours"
    return f"{as_table(lines)}\n{total} ({time.strftime('%H:%M')}, load {os.getloadavg()[0]:.1f})."


if __name__ == "__main__":
    main()
