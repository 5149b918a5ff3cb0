"""What dishonest banks did to each server rule: the kept cells of `benchmarks.attacks` for docs/results.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean

from fedfinlora.files import read_json
from fedfinlora.run.typed import from_json

HEADS = {
    "none": "all honest",
    "sign_flip": "negative update",
    "scaling": "10 times its update",
    "sign_flip_scaled": "-10 times its update",
    "label_flip": "wrong labels",
    "trigger_one": "trigger at one bank",
    "trigger_all": "trigger over all banks",
}
"""Attack -> head of its column."""


@dataclass(frozen=True)
class Cell:
    """What one federation came to."""

    rule: str
    attack: str
    model: str
    task: str
    seed: int
    banks: int
    rounds: int
    rows: int
    """Train rows of each bank."""
    test_rows: int
    accuracy: float
    """Share of clean test rows whose label has the highest log-probability."""
    loss: float
    """Mean negative log-likelihood of the right label, nats."""
    trigger_success: float
    """Share of test rows of other labels that become the wanted one with the trigger in them."""
    rejected: int
    """Replies that the server's checks refused."""
    wall_s: float
    """Where a bank's round was the same as in another cell, it was not trained again."""
    load: float = 0.0
    """Mean number of waiting processes in the last minute before the end."""
    command: str = ""
    commit: str = ""

    @property
    def setting(self) -> tuple[str, str, int, int, int, int]:
        """What cells of one table share."""
        return self.model, self.task, self.banks, self.rounds, self.rows, self.test_rows


def read_cell(file: Path) -> Cell:
    """A cell's file. UserError where it is damaged."""
    return from_json(Cell, read_json(file), str(file))


def table(cells: Sequence[Cell]) -> str:
    """Rules down, attacks across: accuracy on clean rows in %, the loss, and the trigger's success where it counts."""
    rules, attacks = ([*dict.fromkeys(getattr(cell, key) for cell in cells)] for key in ("rule", "attack"))
    lines = [f"| rule | {' | '.join(HEADS[attack] for attack in attacks)} |", "|---" * (len(attacks) + 1) + "|"]
    for rule in rules:
        shown = [_shown([cell for cell in cells if (cell.rule, cell.attack) == (rule, attack)]) for attack in attacks]
        lines.append(f"| {rule} | {' | '.join(shown)} |")
    note = (
        "Accuracy on clean test rows in % (loss of the right label in nats); behind the slash how often, in %, the "
        "trigger turns another label into the wanted one."
    )
    return "\n".join([*lines, "", note])


def _shown(cells: Sequence[Cell]) -> str:
    if not cells:
        return "not run"
    text = f"{100 * fmean(cell.accuracy for cell in cells):.1f} ({fmean(cell.loss for cell in cells):.2f})"
    if cells[0].attack.startswith("trigger") or cells[0].attack == "none":
        text += f" / {100 * fmean(cell.trigger_success for cell in cells):.0f}"
    return text


def attacks_section(folder: Path) -> str:
    """A table for each setting that has cells; "" where there are none."""
    cells = sorted(map(read_cell, folder.glob("*.json")), key=_order)
    parts = []
    for (model, task, banks, rounds, rows, test), group in groupby(cells, key=lambda cell: cell.setting):
        here = list(group)
        seeds, commits, commands = (
            sorted({getattr(cell, key) for cell in here}) for key in ("seed", "commit", "command")
        )
        minutes, loads = sum(cell.wall_s for cell in here) / 60, [cell.load for cell in here]
        words = (
            f"{model} on {task}, {banks} banks of which one attacks, {rows} train rows a bank, {rounds} "
            f"round{'' if rounds == 1 else 's'}, {test} test rows, seed{'s' if len(seeds) > 1 else ''} "
            f"{', '.join(map(str, seeds))}."
        )
        origin = (
            f"{len(here)} cells, {minutes:.1f} minutes in all, load {min(loads):.1f} to {max(loads):.1f}; "
            f"{', '.join(f'`{command}`' for command in commands)}, commit {', '.join(f'`{one}`' for one in commits)}. "
            f"With {test} test rows an accuracy is known to some {100 * 0.98 / test**0.5:.0f} points; where it is "
            "about the share of the commonest label (59 % of FPB's rows are neutral) the loss says more. No rule is "
            "shown to withstand an attack that was not run."
        )
        parts.append("\n".join([words, "", table(here), "", origin]))
    return "\n\n".join(parts)


def _order(cell: Cell) -> tuple[object, ...]:
    attacks = [*HEADS]
    from benchmarks.attacks import RULES

    return (*cell.setting, RULES.index(cell.rule), attacks.index(cell.attack), cell.seed)
