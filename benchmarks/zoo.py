"""Every PEFT method on the four sentiment benchmarks, pooled and federated, at equal rows, bytes and steps.

    python -m benchmarks.zoo DIR                                  all cells that are not there yet
    python -m benchmarks.zoo DIR --methods lora pissa vera --modes federated --seeds 0 1 2
    python -m benchmarks.zoo DIR --minutes 8                      begins no further cell after so long
    python -m benchmarks.zoo DIR -- model=tiny-random             words after -- go to every run

DIR has the rows in FinLoRA's layout. A cell trains twice on 240 rows (60 of each benchmark) in 120 optimiser steps of
4 rows, pooled (one bank) or at four banks with one row each a step, and scores 240 test rows with the final adapter.
Each method takes the highest rank whose parameters are no more than LoRA's at rank 8, so all send about as many bytes.
A cell is done when docs/results/zoo/CELL.json is there; a stopped command resumes after the last round. `python -m
benchmarks.results` makes the table. The learning rates are each method's usual multiple of LoRA's, not tuned.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.small_grid import TASKS, figures_of, options_of, run_grid
from benchmarks.zoo_results import BANKS, MODES, ROUNDS, STEPS, ZOO, Cell
from fedfinlora.commands.in_process import train_here
from fedfinlora.compose import compose
from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError, choose
from fedfinlora.privacy.forecast import adapter_parameters, layer_shapes
from fedfinlora.run.records import read_result

STEP_ROWS = 4
"""Of all banks together."""
ROWS_A_TASK = 60
LORA = PeftConfig(method="lora", rank=8)
HIGHEST_RANK = 128
WORDS = (
    "dataset=finlora", f"dataset.tasks=[{','.join(TASKS)}]", f"dataset.max_rows_per_task={ROWS_A_TASK}",
    "partition=iid", f"num_server_rounds={ROUNDS}", "peft.dropout=0",
    f"train.max_steps={STEPS}", "train.epochs=2", "train.holdout_max_rows=0", "train.warmup_steps=3",
    f"evaluation.benchmarks=[{','.join(TASKS)}]", f"evaluation.limit={ROWS_A_TASK}", "evaluation.base=false",
    "keep_rounds=1",
)  # fmt: skip
"""Of every cell, before the method's own."""


def main() -> None:
    """Run the cells that are asked for and not there yet; exit status 1 if one failed."""
    options = options_of("zoo", __doc__)
    options.add_argument("--methods", nargs="+", default=list(ZOO), metavar="NAME", help=", ".join(ZOO))
    options.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    run_grid(options, lambda chosen: cells_of(chosen.methods, chosen.modes, chosen.seeds), measured)


def cells_of(methods: Sequence[str], modes: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """Seed by seed, so that a stopped command leaves whole rows of the table. UserError for an unknown method."""
    return [
        Cell(choose(method, tuple(ZOO), "method"), mode, seed) for seed in seeds for method in methods for mode in modes
    ]


def measured(cell: Cell, more: Sequence[str], work: Path) -> Cell:
    """The cell with its figures: one run in this process, which holds the base model for all of them."""
    started = time.monotonic()
    config = config_of(cell, more, work)
    run = train_here(config)
    result = read_result(run)
    command = f"python -m benchmarks.zoo DIR --methods {cell.method} --modes {cell.mode} --seeds {cell.seed}"
    return replace(
        cell,
        model=config.model.name,
        rank=config.peft.rank,
        parameters=adapter_parameters(config.peft, layer_shapes(config.model)),
        learning_rate=config.train.learning_rate,
        rows=result.rows_trained or 0,
        bytes_up=(result.bytes_up or 0) if cell.mode == "federated" else 0,
        **figures_of(run, result.scores["final"], started, command, more),
    )


def config_of(cell: Cell, more: Sequence[str], work: Path) -> Config:
    """The run of a cell: its rank is the highest with no more parameters than LoRA at rank 8."""
    entry = ZOO[cell.method]
    banks = 1 if cell.mode == "pooled" else BANKS  # of one bank: the same as `centralized`, to the byte
    own = [f"banks={banks}", f"train.batch_rows={STEP_ROWS // banks}", f"train.learning_rate={entry.learning_rate}"]
    names = [f"seed={cell.seed}", f"output_dir={work}", f"run_name={cell.name}"]
    config = compose([*WORDS, *entry.words, *own, *names, *more])
    shapes = layer_shapes(config.model)
    rank = rank_for(
        config.peft, adapter_parameters(replace(LORA, target_modules=config.peft.target_modules), shapes), shapes
    )
    return replace(config, peft=replace(config.peft, rank=rank, alpha=entry.scale * rank))


def rank_for(peft: PeftConfig, budget: int, shapes: dict[str, tuple[int, int]]) -> int:
    """The highest rank of the method with no more than `budget` parameters; IR-QLoRA's divides every layer's sides."""
    sides = {side for name, shape in shapes.items() if name.endswith(peft.target_modules) for side in shape}
    spare = 2 * len(shapes) if peft.method == "ir_qlora" else 0  # its two factors a layer
    fitting = [
        rank
        for rank in range(1, min(HIGHEST_RANK, *sides) + 1)
        if adapter_parameters(replace(peft, rank=rank), shapes) <= budget + spare
        and (peft.method != "ir_qlora" or not any(side % rank for side in sides))
    ]
    if not fitting:
        raise UserError(f"peft={peft.method} has more parameters at rank 1 than LoRA at rank 8.")
    return fitting[-1]


if __name__ == "__main__":
    main()
