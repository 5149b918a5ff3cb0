"""One adapter a task, one of all tasks, and the four as one model by a router: FinLoRA's multi-task question.

    python -m benchmarks.experts DIR                              all cells that are not there yet
    python -m benchmarks.experts DIR --models fpb all --seeds 0 1
    python -m benchmarks.experts DIR --minutes 20                 begins no further cell after so long
    python -m benchmarks.experts DIR -- model=tiny-random         words after -- go to every run

DIR has the rows in FinLoRA's layout. An adapter of one sentiment benchmark trains twice on 240 of its rows, in 120
steps of 4, the adapter of all four on 240 of each in 480; each scores 60 test rows of every benchmark. `arrow` and
`xlora` score the four together. What `task` and `oracle` would give follows from the adapters' own cells. All of it is
centralised. A cell is done when docs/results/experts/CELL.json is there; a stopped command resumes. `python -m
benchmarks.results` makes the table.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.experts_results import MODELS, MULTI, Cell
from benchmarks.grid_runs import begun, completed, fedfinlora
from benchmarks.small_grid import TASKS, figures_of, options_of, run_grid
from fedfinlora.compose import compose
from fedfinlora.files import read_json
from fedfinlora.run.evaluation import Scores, read_evaluation
from fedfinlora.run.records import read_result

ROWS_A_TASK = 240
TEST_ROWS_A_TASK = 60
GATE_ROWS_A_TASK = 60
SCORED = (
    f"evaluation.benchmarks=[{','.join(TASKS)}]", f"evaluation.limit={TEST_ROWS_A_TASK}", "dataset=finlora",
)  # fmt: skip
"""Of every cell."""
TRAINED = (
    f"dataset.max_rows_per_task={ROWS_A_TASK}", "banks=1", "num_server_rounds=3", "peft.rank=8", "peft.alpha=16",
    "peft.dropout=0", "train.batch_rows=4", "train.epochs=2", "train.learning_rate=2e-3", "train.warmup_steps=3",
    "train.holdout_max_rows=0", "evaluation.base=false", "keep_rounds=1",
)  # fmt: skip
"""Of an adapter's run."""
GATE = (
    f"dataset.max_rows_per_task={GATE_ROWS_A_TASK}", f"dataset.tasks=[{','.join(TASKS)}]", "train.batch_rows=8",
    "train.epochs=1",
)  # fmt: skip


def main() -> None:
    """Run the cells that are asked for and not there yet; exit status 1 if one failed."""
    options = options_of("experts", __doc__)
    options.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    run_grid(
        options,
        lambda chosen: [Cell(model, seed) for seed in chosen.seeds for model in MODELS if model in chosen.models],
        measured,
    )


def measured(cell: Cell, more: Sequence[str], work: Path) -> Cell:
    """The cell with its figures. Adapters that a router needs are trained first where they are not there."""
    started = time.monotonic()
    if cell.model in (*TASKS, MULTI):
        run = trained(cell, more, work)
        scores: Scores = read_result(run).scores["final"]
        rows, steps = read_result(run).rows_trained or 0, read_result(run).steps_trained or 0
    else:
        run, rows, steps = scored(cell, more, work)
        scores = read_evaluation(run, cell.model).scores
    command = f"python -m benchmarks.experts DIR --models {cell.model} --seeds {cell.seed}"
    figures = figures_of(run, scores, started, command, more)
    return replace(cell, base=compose(list(more)).model.name, rows=rows, steps=steps, **figures)


def trained(cell: Cell, more: Sequence[str], work: Path) -> Path:
    """The finished run of an adapter: resumed or begun where it is not there."""
    run = work / cell.name
    if not completed(run):
        place = [f"resume={run}"] if begun(run) else [*words_of(cell, more, work), "overwrite=true"]
        fedfinlora(["centralized", *place], {})
    return run


def words_of(cell: Cell, more: Sequence[str], work: Path) -> list[str]:
    """Of the run that trains an adapter."""
    tasks = TASKS if cell.model == MULTI else (cell.model,)
    names = [f"seed={cell.seed}", f"output_dir={work}", f"run_name={cell.name}"]
    return [*SCORED, *TRAINED, f"dataset.tasks=[{','.join(tasks)}]", *names, *more]


def scored(cell: Cell, more: Sequence[str], work: Path) -> tuple[Path, int, int]:
    """(run folder, rows, steps) of an evaluation: of the base model, or of the four adapters under a router. Rows and
    steps are the gate's.
    """
    run = work / cell.name
    names = [f"seed={cell.seed}", f"output_dir={work}", f"run_name={cell.name}"]
    options, rows, steps = list[str](), 0, 0
    if cell.model != "base":
        for task in TASKS:
            expert = trained(replace(cell, model=task), more, work)
            options += ["--adapter", f"{task}={expert / 'adapters' / 'final'}"]
    if cell.model == "xlora":
        gate, rows, steps = gate_of(cell, options, more, work)
        options += ["--gate", str(gate)]
    options += ["--base"] if cell.model == "base" else ["--route", cell.model]
    if not completed(run):
        place = [f"resume={run}"] if (run / "config.yaml").is_file() else names
        fedfinlora(["evaluate", *options, *SCORED, *more, *place], {})
    return run, rows, steps


def gate_of(cell: Cell, adapters: Sequence[str], more: Sequence[str], work: Path) -> tuple[Path, int, int]:
    """(folder, rows, steps) of the gate over the four adapters, trained where it is not there."""
    folder = work / f"gate-s{cell.seed}"
    if not (folder / "gate.json").is_file():
        words = [*SCORED, *GATE, f"seed={cell.seed}", *more]
        fedfinlora(["gate", str(folder), *adapters, *words], {})
    said = read_json(folder / "gate.json")
    return folder, int(said["rows"]), int(said["steps"])


if __name__ == "__main__":
    main()
