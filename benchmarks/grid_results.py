"""The section on what federating costs, for docs/results.md: from the cells of `benchmarks.grid` alone.

A difference to the pooled run is paired: the same seeds and the same test rows. Its interval draws seeds and rows, both
with replacement, a row for all seeds at once (the pigeonhole bootstrap for crossed effects, Owen 2007, section 4); with
one seed it draws rows only. The mean over benchmarks counts each benchmark alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from benchmarks.grid_cells import KeptCell, KeptScore, ScoredRound, read_cell
from benchmarks.grid_plan import BUDGETS, Grid, read_grid
from data.catalog import BENCHMARKS
from eval.metrics.intervals import BOOTSTRAP_SEED, RESAMPLES, bootstrap_interval
from fedfinlora.run.evaluation import Estimate
from fedfinlora.seeds import generator

GRIDS = Path(__file__).resolve().parent / "grids"
NOTHING = "–"
NEAR = 0.01
"""One point."""
HEADS = {"rows": "equal rows", "steps": "equal sequential steps"}


@dataclass(frozen=True)
class Column:
    """The cells of one rule at one budget, a seed each."""

    cells: tuple[KeptCell, ...]

    @property
    def mean(self) -> float | None:
        """Over seeds and benchmarks; None without a cell."""
        return fmean(mean_score(cell) for cell in self.cells) if self.cells else None


def grid_section(folder: Path, grids: Path = GRIDS) -> str:
    """The tables of every grid that has cells; "" where there are none."""
    parts = []
    for file in sorted(grids.glob("*.yaml")):
        grid = read_grid(file)
        cells = [read_cell(one) for one in sorted((folder / grid.name).glob("*.json"))]
        measured = [cell for cell in cells if not cell.rate]
        if measured:
            parts += [grid_text(grid, measured, [cell for cell in cells if cell.rate])]
    return "\n\n".join(parts)


def grid_text(grid: Grid, cells: Sequence[KeptCell], tuning: Sequence[KeptCell]) -> str:
    """One grid: a table for each partition and number of rounds, and how to read them."""
    parts = []
    for partition in (name for name in grid.partitions if any(cell.partition == name for cell in cells)):
        here = [cell for cell in cells if cell.partition == partition]
        for rounds in sorted({cell.rounds for cell in here if cell.rounds}, reverse=True) or [0]:
            heading = f"{rounds} rounds" if rounds else "baselines"
            parts += [f"### {grid.name}, {partition}: {heading}", "", _table(grid, here, cells, rounds), ""]
    return "\n".join([*parts, _words(grid, cells, tuning)])


def _table(grid: Grid, here: Sequence[KeptCell], cells: Sequence[KeptCell], rounds: int) -> str:
    shown = [cell for cell in here if cell.rounds in (0, rounds)]
    keys = [key for key in BENCHMARKS if any(key in scores for cell in shown for scores in scores_of(cell))]
    counts = {key: next(one[key].n for cell in shown for one in scores_of(cell) if key in one) for key in keys}
    heads = ["rule", "seeds", *(f"{BENCHMARKS[key].title} ({counts[key]})" for key in keys)]
    heads += [text for budget in BUDGETS for text in (f"mean, {HEADS[budget]}", "to pooled")]
    heads += [f"rounds to pooled - {100 * NEAR:g}", "sent up, MB", "minutes"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, rule in grid.rules.items():
        columns = {
            budget: Column(tuple(sorted((c for c in shown if (c.rule, c.budget) == (name, budget)), key=_seed)))
            for budget in BUDGETS
        }
        first = columns["rows"] if columns["rows"].cells else columns["steps"]
        if not first.cells:
            continue
        row = [rule.title or name, ", ".join(str(cell.seed) for cell in first.cells)]
        row += [_percent(_of_benchmark(first.cells, key)) for key in keys]
        for budget in BUDGETS:
            row += [_percent(columns[budget].mean), _to_pooled(grid, columns[budget], cells)]
        row += [_reached(grid, first, cells)]
        row += [f"{fmean(cell.bytes_up for cell in first.cells) / 1e6:.0f}"]
        row += [f"{fmean(cell.minutes for cell in first.cells):.1f}"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _reached(grid: Grid, column: Column, cells: Sequence[KeptCell]) -> str:
    """Rounds, MB and minutes until a rule is as near to the pooled run of its seed as NEAR; the mean over seeds."""
    pooled = _pooled(grid, cells)
    pairs = [(cell, partner) for cell in column.cells if (partner := _partner(cell, pooled))]
    if (column.cells and column.cells[0] in pooled) or not all(one.course and other.course for one, other in pairs):
        return NOTHING
    found = [first_near(cell, partner) for cell, partner in pairs]
    reached = [one for one in found if one is not None]
    if not reached:
        return f"not in {column.cells[0].rounds}" if found else NOTHING
    means = [fmean(getattr(one, name) for one in reached) for name in ("round", "size_bytes", "wall_s")]
    text = f"{means[0]:.0f} ({means[1] / 1e6:.0f} MB, {means[2] / 60:.1f} min)"
    return text if len(reached) == len(found) else f"{text} in {len(reached)} of {len(found)} seeds"


def first_near(cell: KeptCell, pooled: KeptCell) -> ScoredRound | None:
    """The first scored round whose score is at most NEAR below that of the pooled run's last scored round, on the same
    rows; None where there is none.
    """
    return next((one for one in cell.course if one.score >= pooled.course[-1].score - NEAR), None)


def _pooled(grid: Grid, cells: Sequence[KeptCell]) -> list[KeptCell]:
    """Those of the pooled run."""
    return [cell for cell in cells if grid.rules.get(cell.rule) and grid.rules[cell.rule].mode == "centralized"]


def _to_pooled(grid: Grid, column: Column, cells: Sequence[KeptCell]) -> str:
    """Difference to the pooled runs of the same seeds, in points, with its interval."""
    pooled = _pooled(grid, cells)
    if not column.cells or column.cells[0] in pooled:
        return NOTHING
    pairs = [(cell, partner) for cell in column.cells if (partner := _partner(cell, pooled))]
    found = paired_difference(pairs)
    if found is None or found.value is None:
        return NOTHING
    text = f"{100 * found.value:+.1f}"
    return (
        text
        if found.low is None or found.high is None
        else f"{text} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    )


def _partner(cell: KeptCell, pooled: Sequence[KeptCell]) -> KeptCell | None:
    """The pooled run of the same seed: of the same partition where there is one, since pooled rows are the same."""
    same = [one for one in pooled if one.seed == cell.seed]
    return next((one for one in same if one.partition == cell.partition), same[0] if same else None)


def paired_difference(pairs: Sequence[tuple[KeptCell, KeptCell]]) -> Estimate | None:
    """Mean over benchmarks and seeds of cell minus partner, with its 95 % interval. None where nothing can be paired.

    A benchmark counts where all pairs have scored the same of its rows in both runs. Where seeds score other rows (a
    limit was set), each seed's rows are drawn on their own.
    """
    keys = [key for key in BENCHMARKS if pairs and all(_pairable(one, other, key) for one, other in pairs)]
    if not keys:
        return None
    total = np.zeros(1 + RESAMPLES)
    for key in keys:
        total += _resampled(key, pairs)
    means = total / len(keys)
    low, high = bootstrap_interval(means, lowest=-1.0, highest=1.0) or (None, None)
    return Estimate(float(means[0]), low, high)


def _resampled(key: str, pairs: Sequence[tuple[KeptCell, KeptCell]]) -> NDArray[np.float64]:
    """(1 + RESAMPLES,) differences in one benchmark: of the sample, and with seeds and rows drawn again."""
    rows = [_rows(one, key) for one, _ in pairs]
    differences = [_values(one, key) - _values(other, key) for one, other in pairs]
    seeds = len(pairs)
    drawn_seeds = generator(BOOTSTRAP_SEED, "grid seeds").multinomial(seeds, [1 / seeds] * seeds, size=RESAMPLES)
    of_seeds = np.vstack([np.ones(seeds), drawn_seeds])
    means = np.empty((1 + RESAMPLES, seeds))
    for place, values in enumerate(differences):
        count = len(values)
        draw = generator(BOOTSTRAP_SEED, "grid rows", key, rows[place].rows_sha256)
        times = np.vstack([np.ones(count), draw.multinomial(count, [1 / count] * count, size=RESAMPLES)])
        weighed = times * np.asarray(rows[place].weights or (1,) * count, np.float64)
        means[:, place] = (weighed @ values) / weighed.sum(axis=1)
    found: NDArray[np.float64] = (of_seeds * means).sum(axis=1) / seeds
    return found


def scores_of(cell: KeptCell) -> list[Mapping[str, KeptScore]]:
    """Of the one final adapter, or of each bank's alone."""
    return [*cell.alone.values()] if cell.alone else [cell.scores]


def mean_score(cell: KeptCell) -> float:
    """Over benchmarks, and over banks alone."""
    return fmean(fmean(score.score for score in scores.values()) for scores in scores_of(cell))


def _of_benchmark(cells: Sequence[KeptCell], key: str) -> float | None:
    known = [scores[key].score for cell in cells for scores in scores_of(cell) if key in scores]
    return fmean(known) if known else None


def _pairable(one: KeptCell, other: KeptCell, key: str) -> bool:
    every = [*scores_of(one), *scores_of(other)]
    return all(key in scores for scores in every) and len({scores[key].rows_sha256 for scores in every}) == 1


def _rows(cell: KeptCell, key: str) -> KeptScore:
    return scores_of(cell)[0][key]


def _values(cell: KeptCell, key: str) -> NDArray[np.float64]:
    """(n,) of each row; the mean over banks alone."""
    found: NDArray[np.float64] = np.mean([scores[key].rows.values for scores in scores_of(cell)], axis=0)
    return found


def _words(grid: Grid, cells: Sequence[KeptCell], tuning: Sequence[KeptCell]) -> str:
    """What the tables show and what was run."""
    machines = Counter(cell.machine.get("gpu") or f"{cell.machine.get('cpus')} CPUs" for cell in cells)
    where = ", ".join(f"{name} ({count})" for name, count in machines.items())
    commits = ", ".join(f"`{one}`" for one in sorted({cell.commit or "unknown" for cell in cells}))
    hours = sum(cell.minutes for cell in (*cells, *tuning)) / 60
    rates = ", ".join(f"{rate:g}" for rate in grid.tune.rates)
    tuned = (
        f"Each rule's learning rate is the best of {rates} by the score on public validation rows, at seed "
        f"{grid.tune.seed}, which is not measured. "
        if grid.tune.rates
        else ""
    )
    example = next((f" For example: `{cell.command}`." for cell in cells if cell.command), "")
    return (
        f"{len(cells)} cells and {len(tuning)} tuning runs of `benchmarks/grids/{grid.name}.yaml`, {hours:.1f} "
        "hours on "
        f"{where}, commits {commits}. {tuned}At equal rows a bank takes 1/{grid.banks} of the pooled run's steps, "
        "unless its title names another number; "
        "at equal "
        "sequential steps it takes as many as the pooled run, since banks work at the same time. Columns of "
        "benchmarks, bytes "
        "and minutes are of equal rows where that was run. Rounds to pooled - 1: until the score on public validation "
        "rows was at most one point below that of the pooled run's last round, with all bytes and minutes of training "
        "up to there; these rows are few, so it is a rough figure. Differences to pooled are paired by seed and row, "
        "with 95 % intervals. Command, commit, minutes and load of each cell are in "
        f"docs/results/grid/{grid.name}.{example}"
    )


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f}"


def _seed(cell: KeptCell) -> int:
    return cell.seed
