"""A grid file: which runs are compared, as cells of rule x partition x rounds x budget x seed, and the words of each.

A file in benchmarks/grids introduces itself and holds:

    name: sentiment              # of the folder in docs/results/grid
    banks: 4
    common: [WORD, …]            # key=value words of every run
    epochs: 1                    # passes of each bank over its rows at equal rows
    steps: 200                   # optimiser steps of each bank at equal rows; 0 = as many as epochs and batch_rows give
    course: 10                   # how often a measured run is scored on validation rows; 0 = at its end
    tune: {seed: 100, rates: [1e-3, 2e-3], words: [WORD, …]}
    expect: {rows: 2400, scored: 2418, rows_per_minute: 400, scored_per_minute: 500}
    rules: {NAME: {title: TEXT, mode: federated, rate: KEY, words: [WORD, …]}, …}
    partitions: {NAME: [WORD, …], …}
    phases: [{rules: […], partitions: […], rounds: […], budgets: […], seeds: […]}, …]

Two budgets. `rows`: the federation takes as many rows as the pooled run, so each bank takes 1/banks of its steps.
`steps`: each bank takes as many steps as the pooled run, since banks work at the same time; that is banks times the
rows. Every rule is tuned over the same learning rates (`rate` is the key that a rate goes to), by validation rows on a
seed and with cells of their own, which score no test row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedfinlora.errors import UserError, choose
from fedfinlora.run.typed import from_json

BUDGETS = ("rows", "steps")
MODES = ("federated", "centralized", "local", "evaluate")


@dataclass(frozen=True)
class Rule:
    """One line of the tables: a server rule with its settings, or a baseline."""

    title: str = ""
    mode: str = "federated"
    """federated, centralized (the pooled run), local (each bank alone), or evaluate (the untouched base model)."""
    rate: str = "train.learning_rate"
    """The key that a tuned learning rate goes to."""
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tuning:
    """How each rule's learning rate is chosen."""

    rates: tuple[float, ...] = ()
    """The same for every rule; () = nothing is tuned."""
    seed: int = 100
    """Another one than those measured."""
    words: tuple[str, ...] = ()
    """Of tuning runs only: fewer rows."""
    rows: int = 0
    """That a tuning run trains on, to estimate its minutes."""


@dataclass(frozen=True)
class Expected:
    """What a cell at equal rows takes: measured on the machine that the file's header names."""

    rows: int = 0
    """Trained on."""
    scored: int = 0
    """Test rows."""
    rows_per_minute: float = 1.0
    scored_per_minute: float = 1.0


@dataclass(frozen=True)
class Phase:
    """A part of the grid; phases run one after the other."""

    rules: tuple[str, ...]
    partitions: tuple[str, ...]
    rounds: tuple[int, ...]
    budgets: tuple[str, ...] = ("rows",)
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Grid:
    """A grid file."""

    name: str
    rules: Mapping[str, Rule]
    partitions: Mapping[str, tuple[str, ...]]
    phases: tuple[Phase, ...]
    banks: int = 4
    epochs: float = 1.0
    steps: int = 0
    course: int = 0
    """For the column of rounds to the pooled score."""
    common: tuple[str, ...] = ()
    tune: Tuning = field(default_factory=Tuning)
    expect: Expected = field(default_factory=Expected)


@dataclass(frozen=True, order=True)
class Cell:
    """One run of the grid, or one tuning run of it."""

    rule: str
    partition: str
    rounds: int
    """0: of a baseline, which has none."""
    budget: str
    seed: int
    rate: str = ""
    """Of a tuning run: the learning rate that is tried; "" for a measured cell."""

    @property
    def name(self) -> str:
        """What --cells and the file call it."""
        parts = [self.rule, self.partition, *([f"r{self.rounds}", self.budget] if self.rounds else [])]
        return "-".join(["tune", *parts, self.rate] if self.rate else [*parts, f"s{self.seed}"])


def read_grid(file: Path) -> Grid:
    """A grid file. UserError names what is wrong in it."""
    import yaml

    try:
        values = yaml.safe_load(file.read_text("utf-8"))
    except OSError as error:
        where = "Name a file such as benchmarks/grids/sentiment.yaml."
        raise UserError(f"{file} cannot be read: {error.strerror}. {where}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    grid = from_json(Grid, values, str(file))
    for phase in grid.phases:
        for chosen, there, what in (
            (phase.rules, grid.rules, "rule"),
            (phase.partitions, grid.partitions, "partition"),
            (phase.budgets, BUDGETS, "budget"),
        ):
            for name in chosen:
                choose(name, tuple(there), f"{file}: {what}")
    for name, rule in grid.rules.items():
        choose(rule.mode, MODES, f"{file}: rules.{name}.mode")
    return grid


def cells_of(grid: Grid) -> list[Cell]:
    """The measured cells in the file's order, each once. A baseline has one cell for all rounds and budgets."""
    found: dict[Cell, None] = {}
    for phase in grid.phases:
        for partition in phase.partitions:
            for budget in phase.budgets:
                for rounds in phase.rounds:
                    for seed in phase.seeds:
                        for rule in phase.rules:
                            cell = Cell(rule, partition, rounds, budget, seed)
                            found[_baseline(grid, cell)] = None
    return list(found)


def _baseline(grid: Grid, cell: Cell) -> Cell:
    """The pooled run sets both budgets, and rounds are nothing to a baseline."""
    return cell if grid.rules[cell.rule].mode == "federated" else replace(cell, rounds=0, budget="rows")


def tuning_cells(grid: Grid, cell: Cell) -> Iterator[Cell]:
    """The runs by which a measured cell's rate is chosen: shared by all its partitions and seeds."""
    if grid.rules[cell.rule].mode == "evaluate":
        return
    partition = next(phase.partitions[0] for phase in grid.phases if cell.rule in phase.rules)
    for rate in grid.tune.rates:
        yield replace(cell, partition=partition, seed=grid.tune.seed, rate=f"{rate:g}")


def words_of(grid: Grid, cell: Cell, rate: str) -> list[str]:
    """The configuration of a cell's run, without places; `rate` is the learning rate, "" for that of the file."""
    rule = grid.rules[cell.rule]
    factor = grid.banks if cell.budget == "steps" else 1
    rounds = cell.rounds or most_rounds(grid)
    budget = [f"num_server_rounds={rounds}", f"train.epochs={factor * grid.epochs:g}"]
    if grid.steps:
        steps, rest = divmod(factor * grid.steps, rounds)
        if rest or not steps:
            raise UserError(f"{grid.name}: {factor * grid.steps} steps cannot be spread over {rounds} rounds evenly.")
        budget.append(f"train.steps_per_round={steps}")
    if grid.course and not cell.rate:
        budget.append(f"evaluation.every={max(1, rounds // grid.course)}")
    return [
        *grid.common,
        f"banks={grid.banks}",
        *grid.partitions[cell.partition],
        *budget,
        *rule.words,
        *(grid.tune.words if cell.rate else ()),
        *([f"{rule.rate}={rate}"] if rate else []),
        f"seed={cell.seed}",
    ]


def most_rounds(grid: Grid) -> int:
    """The rounds that a baseline reports in; they change nothing of its training."""
    return min(rounds for phase in grid.phases for rounds in phase.rounds)


def expected_minutes(grid: Grid, cell: Cell, took: Mapping[tuple[str, str, bool], Sequence[float]]) -> float:
    """Minutes of a cell: the median of finished cells of its mode and budget, else by the file's `expect`."""
    from statistics import median

    rule, expect = grid.rules[cell.rule], grid.expect
    known = took.get((rule.mode, cell.budget, bool(cell.rate)))
    if known:
        return median(known)
    factor = grid.banks if cell.budget == "steps" else 1
    adapters = grid.banks if rule.mode == "local" else 1
    rows = 0 if rule.mode == "evaluate" else grid.tune.rows if cell.rate else expect.rows
    scored = 0 if cell.rate else expect.scored * adapters
    return factor * rows / expect.rows_per_minute + scored / expect.scored_per_minute


def as_table(values: Sequence[Sequence[Any]]) -> str:
    """Columns of text, the last one left as it is."""
    widths = [max(len(str(row[column])) for row in values) for column in range(len(values[0]) - 1)]
    return "\n".join(
        "  ".join([*(f"{item!s:<{width}}" for item, width in zip(row[:-1], widths, strict=True)), str(row[-1])])
        for row in values
    )
