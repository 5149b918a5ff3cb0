"""One cell of a grid: its run, and what is kept of it in docs/results/grid/NAME/CELL.json."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.grid_plan import Cell, Grid, tuning_cells, words_of
from benchmarks.grid_runs import Command, begun, completed, fedfinlora, machine_of
from benchmarks.provenance import shown_command
from eval.metrics.averages import headline_name, headline_score
from eval.metrics.row_values import RowValues, row_values
from fedfinlora.commands.in_process import is_of
from fedfinlora.compose import PROJECT_ROOT, compose
from fedfinlora.errors import UserError
from fedfinlora.files import read_json
from fedfinlora.run.evaluation import read_evaluation, read_records
from fedfinlora.run.records import RoundLine, RunResult, read_result, read_rounds
from fedfinlora.run.typed import from_json, to_json

FIGURES = PROJECT_ROOT / "docs" / "results" / "grid"
RIGHT, WRONG = "1", "0"


@dataclass(frozen=True)
class KeptScore:
    """One benchmark of a cell."""

    n: int
    score: float
    """The strict headline: accuracy, or BERTScore F1."""
    rows_sha256: str
    """Of the rows' prompts and ids: cells are paired row by row where it is the same."""
    right: str = ""
    """A character a row, 1 or 0, where rows are right or wrong; "" elsewhere."""
    values: tuple[float, ...] = ()
    """Of each row where they are shares; () where `right` says all."""
    weights: tuple[int, ...] = ()
    """Tags of each row; () where each counts once."""

    @property
    def rows(self) -> RowValues:
        """The rows as they are compared."""
        values = self.values or tuple(float(one == RIGHT) for one in self.right)
        return RowValues(self.rows_sha256, values, self.weights or (1,) * len(values))


@dataclass(frozen=True)
class ScoredRound:
    """How far a run was after a scored round."""

    round: int
    score: float
    """Mean over benchmarks: on public validation rows where there are any, else on the rows of round scores."""
    size_bytes: int
    """Sent in both directions so far."""
    wall_s: float
    """So far, without scoring."""


@dataclass(frozen=True)
class KeptCell:
    """What is committed of a run."""

    rule: str
    partition: str
    rounds: int
    budget: str
    seed: int
    rate: str
    """Of a tuning run; "" of a measured cell."""
    tuned: Mapping[str, float | None] = field(default_factory=dict)
    """Learning rate -> validation score of its tuning run; the best was taken."""
    chosen_rate: str = ""
    validation: float | None = None
    """Mean score of the final adapter on public rows that no bank trains on."""
    scores: Mapping[str, KeptScore] = field(default_factory=dict)
    """Of the final adapter on test rows; {} of a tuning run and of `local`."""
    alone: Mapping[str, Mapping[str, KeptScore]] = field(default_factory=dict)
    """Bank -> scores, of `local`."""
    course: tuple[ScoredRound, ...] = ()
    """Scored rounds in order; () of `local`."""
    sequential_steps: int = 0
    """Optimiser steps one after the other."""
    rows_trained: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    minutes: float = 0.0
    load: float = 0.0
    """Mean number of waiting processes in the last 15 minutes before the end: other work on the machine shows here."""
    machine: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    commit: str = ""

    @property
    def cell(self) -> Cell:
        """Which it is."""
        return Cell(self.rule, self.partition, self.rounds, self.budget, self.seed, self.rate)


def cell_file(grid: Grid, cell: Cell) -> Path:
    """Where a cell's figures are kept."""
    return FIGURES / grid.name / f"{cell.name}.json"


def read_cell(file: Path) -> KeptCell:
    """A cell's file. UserError where it is damaged."""
    return from_json(KeptCell, read_json(file), str(file))


@dataclass(frozen=True)
class Runner:
    """Runs the cells of one grid."""

    grid: Grid
    data: Path
    work: Path
    more: Sequence[str] = ()
    command: Command = fedfinlora

    def file_of(self, cell: Cell) -> Path:
        """Where its figures are kept."""
        return cell_file(self.grid, cell)

    def figures(self, cell: Cell) -> dict[str, Any]:
        """Run a cell, or what is left of it, and sum it up."""
        rate, tuned = self._rate(cell)
        folders = self._run(cell, rate)
        results = [read_result(folder) for folder in folders]
        manifest = read_json(folders[0] / "manifest.json")
        mode = self.grid.rules[cell.rule].mode
        label = "base" if mode == "evaluate" else "final"
        scores = {
            folder.name.rsplit("-bank-")[-1]: {} if cell.rate else kept_scores(folder, label) for folder in folders
        }
        is_local = mode == "local"
        kept = KeptCell(
            cell.rule, cell.partition, cell.rounds, cell.budget, cell.seed, cell.rate,
            tuned=tuned, chosen_rate=rate, validation=_validation(folders),
            scores={} if is_local else next(iter(scores.values())),
            alone={f"bank-{name}": one for name, one in scores.items()} if is_local else {},
            course=() if is_local else course_of(read_rounds(folders[0])),
            sequential_steps=max(_sequential_steps(folder) for folder in folders),
            rows_trained=_total(results, "rows_trained"), bytes_up=_total(results, "bytes_up"),
            bytes_down=_total(results, "bytes_down"),
            minutes=sum(map(_minutes, results)), load=os.getloadavg()[2],
            machine=machine_of(manifest), command=shown_command(manifest["command"]), commit=manifest["git_commit"],
        )  # fmt: skip
        return to_json(kept)

    def _rate(self, cell: Cell) -> tuple[str, dict[str, float | None]]:
        """(the learning rate to take, what tuning said): the best on validation rows, the smaller of equal ones."""
        if cell.rate:
            return cell.rate, {}
        tuned = {one.rate: read_cell(self.file_of(one)).validation for one in tuning_cells(self.grid, cell)}
        known = {rate: score for rate, score in tuned.items() if score is not None}
        if tuned and not known:
            raise UserError(f"{cell.name}: no tuning run has a validation score. Set evaluation.validation_rows.")
        return (min(known, key=lambda rate: (-known[rate], float(rate))) if known else ""), tuned

    def _run(self, cell: Cell, rate: str) -> list[Path]:
        """The folders of its finished run: one, or of `local` one for each bank."""
        mode = self.grid.rules[cell.rule].mode
        folder = self.work / cell.name
        banks = range(self.grid.banks) if mode == "local" else [None]
        folders = [folder if bank is None else self.work / f"{cell.name}-bank-{bank}" for bank in banks]
        words = [*words_of(self.grid, cell, rate), *self.more]
        place = [f"dataset.root={self.data}", f"output_dir={self.work}", f"run_name={folder.name}", "overwrite=true"]
        place.append(f"evaluation.answers_dir={self.work / 'answers'}")
        name = "simulate" if mode == "federated" else mode
        asked = compose([*words, *place])
        own = [one for one in folders if is_of(one, asked)]
        left = [one for one in own if begun(one) and not completed(one)]
        for one in left:
            self.command([name, f"resume={one}"], {})
        if len(own) < len(folders) or not all(completed(one) for one in folders):
            self.command([name, *words, *place], {})
        return folders


def kept_scores(run: Path, label: str) -> dict[str, KeptScore]:
    """What is kept of a run's scores: no text of any row."""
    found = {}
    for key, metrics in read_evaluation(run, label).scores.items():
        rows = row_values(read_records(run / "eval" / label / f"{key}.jsonl"))
        plain = set(rows.values) <= {0.0, 1.0} and set(rows.weights) == {1}
        found[key] = KeptScore(
            metrics.n,
            metrics.value(headline_name(metrics, "strict")) or 0.0,
            rows.rows_sha256,
            right="".join(RIGHT if value else WRONG for value in rows.values) if plain else "",
            values=() if plain else tuple(round(value, 4) for value in rows.values),
            weights=() if plain or set(rows.weights) == {1} else rows.weights,
        )
    return found


def course_of(lines: Sequence[RoundLine]) -> tuple[ScoredRound, ...]:
    """The scored ones of a run's rounds."""
    found, size_bytes, wall_s = [], 0, 0.0
    for line in lines:
        size_bytes += line.bytes_up + line.bytes_down
        wall_s += line.timings.total_s
        if line.validation:
            score = line.validation.score
        else:
            known = [headline_score(metrics, "strict") for metrics in line.scores.values()]
            score = fmean(one for one in known if one is not None) if any(one is not None for one in known) else None
        if score is not None:
            found.append(ScoredRound(line.round, score, size_bytes, round(wall_s, 1)))
    return tuple(found)


def _validation(folders: Sequence[Path]) -> float | None:
    lines = [line for folder in folders for line in read_rounds(folder)[-1:]]
    scores = [line.validation.score for line in lines if line.validation and line.validation.score is not None]
    return fmean(scores) if scores else None


def _sequential_steps(run: Path) -> int:
    """Banks of a round work at the same time: the most steps of any of them count."""
    return sum(max((entry.steps for entry in line.banks), default=0) for line in read_rounds(run))


def _minutes(result: RunResult) -> float:
    """Of a resumed run `total` is the last stretch alone, its parts are of all."""
    wall_s = result.wall_s
    return max(wall_s.total or 0.0, wall_s.train + wall_s.evaluate + wall_s.aggregate) / 60


def _total(results: Sequence[RunResult], name: str) -> int:
    return sum(getattr(result, name) or 0 for result in results)
