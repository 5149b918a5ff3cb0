"""What privacy costs, cell by cell: adapter x epsilon x seed, each a `simulate` of experiment=sentiment_private with a
ledger of its own.

    python -m benchmarks.private_grid --list
    python -m benchmarks.private_grid --data /data/finlora --work /scratch/grid
    python -m benchmarks.private_grid --data /data/finlora --work /scratch/grid --cells lora_xs-none-0 lora_xs-8-0
    python -m benchmarks.private_grid --data /data/finlora --work /scratch/grid -- workers=1 model.threads=2

A cell is done when docs/private/CELL.json is there: figures only, no row. What is killed resumes: a finished cell is
skipped, a begun run resumes after its last round. Besides epsilon (`none`, 8, 3, 1) there are cells of `noise` (a
multiplier so large that noise alone moves the adapter) and of `start`, the public adapter that all others of its kind
started from. Words after `--` go to every run: what suits the machine, nothing that changes what is measured.
docs/results.md is made from the figures by `python -m benchmarks.results --private`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import grid_runs
from benchmarks.grid_runs import NICENESS, Command, begun, completed, fedfinlora, machine_of
from benchmarks.private_results import mean_of
from benchmarks.provenance import shown_command
from client_app.own_rows import divide
from fedfinlora.compose import PROJECT_ROOT, compose
from fedfinlora.deployment.bank_settings import rounded_rows
from fedfinlora.files import read_json
from fedfinlora.privacy.forecast import adapter_parameters, forecast, layer_shapes

FIGURES = PROJECT_ROOT / "docs" / "private"
SEEDS = (0, 1, 2)
ADAPTERS: dict[str, tuple[str, ...]] = {
    "lora_xs": (),
    "lora": ("peft=lora", "peft.rank=2", "peft.alpha=4", "peft.target_modules=[v_proj]"),
    "ffa": ("peft=lora", "peft.freeze_a=true", "peft.rank=2", "peft.alpha=4", "peft.target_modules=[v_proj,o_proj]"),
}
"""Name -> what it sets besides experiment=sentiment_private, for the start and for the runs; the first is the
experiment's own. The other two have six times its parameters, 46,080 each: fewer leave LoRA little to train.
"""
NOISE_MULTIPLIER = 20
NOISE_WORDS = (
    "privacy=example", "privacy.epsilon=0", f"privacy.noise_multiplier={NOISE_MULTIPLIER}", "train.epochs=0.02",
    "strategy.max_update_norm=0",
)  # fmt: skip
"""Next to nothing of a row is left in the run; the server's steps are as long as in any other, since Adam knows no
scale.
"""
PHASES = (("start", "none", "8"), ("noise",), ("3",), ("1",))
"""Of each adapter, one after the other; inside a phase seed by seed."""


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    adapter: str
    kind: str
    """none, start, noise, or an epsilon."""
    seed: int

    @property
    def name(self) -> str:
        """What --cells and the file call it."""
        return f"{self.adapter}-{self.kind}-{self.seed}"

    @property
    def start_seed(self) -> int:
        """Of the public start: one for all seeds, but with A frozen A comes from the run's seed, so the start's must be
        the same.
        """
        return self.seed if "peft.freeze_a=true" in ADAPTERS[self.adapter] else 0

    def words(self) -> list[str]:
        """The settings of its run, without places."""
        private = {"none": (), "start": (), "noise": NOISE_WORDS}.get(
            self.kind, ("privacy=example", f"privacy.epsilon={self.kind}")
        )
        return ["experiment=sentiment_private", *ADAPTERS[self.adapter], f"seed={self.seed}", *private]


def cells() -> Iterator[Cell]:
    """All cells, what says most first."""
    for adapter in ADAPTERS:
        for kinds in PHASES:
            for seed in SEEDS:
                for kind in kinds:
                    cell = Cell(adapter, kind, seed)
                    if kind != "start" or cell.start_seed == seed:
                        yield cell


def main() -> None:
    """Run what is asked for and not there yet; exit status 1 if a cell failed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, metavar="DIR", help="the train and test rows, in FinLoRA's layout")
    options.add_argument("--work", type=Path, metavar="DIR", help="where the runs' folders are put")
    options.add_argument("--cells", nargs="+", metavar="CELL", help="only these (default: all, in order)")
    options.add_argument("--list", action="store_true", help="show all cells and which are done, run nothing")
    options.add_argument("words", nargs="*", metavar="key=value", help="after `--`: what suits the machine")
    chosen = options.parse_args()
    by_name = {cell.name: cell for cell in cells()}
    unknown = sorted(set(chosen.cells or ()) - set(by_name))
    if unknown:
        options.error(f"no such cell: {', '.join(unknown)}. --list shows them all.")
    if chosen.list:
        print(
            "\n".join(f"{'done' if figures_file(cell).is_file() else '    '}  {cell.name}" for cell in by_name.values())
        )
        return
    if chosen.data is None or chosen.work is None:
        options.error("--data and --work are needed to run anything.")
    os.nice(NICENESS)
    wanted = [by_name[name] for name in chosen.cells or by_name]
    failed = run_cells(wanted, chosen.data.absolute(), chosen.work.absolute(), chosen.words)
    if failed:
        sys.exit(f"failed: {', '.join(cell.name for cell in failed)}. The same command tries them again.")


def run_cells(
    wanted: Sequence[Cell], data: Path, work: Path, more: Sequence[str], command: Command | None = None
) -> list[Cell]:
    """Run the cells that are not done and write their figures. Returns those that failed; the others continue."""
    return grid_runs.run_cells(
        wanted,
        figures_file,
        lambda cell: figures(cell, run_cell(cell, data, work, more, command or fedfinlora), data),
    )


def run_cell(cell: Cell, data: Path, work: Path, more: Sequence[str], command: Command) -> Path:
    """Make the public start if it is not there, then the cell's run, or what is left of it. Returns the run's
    folder.
    """
    start, run = work / f"public-{cell.adapter}-{cell.start_seed}", work / cell.name
    if not completed(start):
        words = ["experiment=sentiment_public", *ADAPTERS[cell.adapter], f"seed={cell.start_seed}", *more]
        command(["centralized", *words, f"output_dir={work}", f"run_name={start.name}", "overwrite=true"], {})
    if completed(run):
        return run
    place = [f"dataset.root={data}", f"output_dir={work}", f"run_name={run.name}", "overwrite=true"]
    adapter = start / "adapters" / "final"
    ledger = {"FEDFINLORA_LEDGER": str(work / "ledgers" / cell.name)}
    if cell.kind == "start":
        command(["evaluate", "--adapter", str(adapter), *cell.words(), *more, *place], {})
    elif begun(run):
        command(["simulate", f"resume={run}"], ledger)
    else:
        words = [*cell.words(), *sizes_words(cell, data), "evaluation.base=false", *more]
        command(["simulate", *words, f"start_adapter={adapter}", *place], ledger)
    return run


def sizes_words(cell: Cell, data: Path) -> list[str]:
    """The banks' public sizes, by which the server weighs them: their row counts to two significant digits, as a bank
    would declare them.
    """
    config = compose([*cell.words(), f"dataset.root={data}"])
    sizes = [f"bank-{number}:{rounded_rows(len(rows))}" for number, rows in enumerate(divide(config, config.banks))]
    return ["strategy.weighting=declared", f"strategy.sizes=[{','.join(sizes)}]"]


def figures_file(cell: Cell) -> Path:
    """Where a cell's figures are kept."""
    return FIGURES / f"{cell.name}.json"


def figures(cell: Cell, run: Path, data: Path) -> dict[str, Any]:
    """What is committed of a run: scores, what was promised and spent, seconds, origin."""
    result, manifest = read_json(run / "result.json"), read_json(run / "manifest.json")
    config = compose([*cell.words(), f"dataset.root={data}"])
    scores = {key: _score(metrics) for key, metrics in result["scores"]["final"].items()}
    mean, half = mean_of(scores)
    peft = config.peft
    found = {
        **asdict(cell),
        "peft": {
            "method": peft.method,
            "freeze_a": peft.freeze_a,
            "rank": peft.rank,
            "target_modules": list(peft.target_modules),
        },
        "parameters": adapter_parameters(peft, layer_shapes(config.model)),
        "scores": scores,
        "mean": mean,
        "mean_half_interval": half,
        "minutes": result["wall_s"]["total"] / 60,
        "command": shown_command(manifest["command"]),
        "commit": manifest["git_commit"],
        "machine": machine_of(manifest),
    }
    return found | ({} if cell.kind == "start" else _training(cell, run, data))


def _training(cell: Cell, run: Path, data: Path) -> dict[str, Any]:
    """Steps, rows and, of a private run, each bank's sigma and epsilon and the noise in the mean."""
    config = compose([*cell.words(), *sizes_words(cell, data), f"dataset.root={data}"])
    result = read_json(run / "result.json")
    steps = {"banks": result["banks"], "rounds": result["rounds"], "steps": result["steps_trained"] // result["banks"]}
    if config.privacy.mode == "none":
        return {**steps, "rows_processed": result["rows_trained"]}
    planned = forecast(
        config, config.strategy.declared_sizes(), adapter_parameters(config.peft, layer_shapes(config.model))
    )
    card = read_json(run / "privacy.json")["banks"]
    return {
        **steps,
        "rows_processed": round(planned.rows_processed),
        "clip_norm": config.privacy.clip_norm,
        "noise_to_signal": planned.noise_to_signal,
        "signal_to_noise": planned.signal_to_noise,
        "privacy": [
            {
                **asdict(bank),
                "delta": card[bank.bank]["delta"],
                "epsilon_planned": card[bank.bank]["epsilon_planned"],
                "epsilon_spent": card[bank.bank]["epsilon_spent"],
            }
            for bank in planned.banks
        ],
    }


def _score(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: metrics.get(name) for name in ("n", "accuracy", "accuracy_ci95", "matthews")}


if __name__ == "__main__":
    main()
