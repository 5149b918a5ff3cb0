"""What a machine's rounds have spent on each row, over all runs: one ledger, accounted by row, on the bank's own disk.

A line names the rows that take part in a round and is on the disk before the round's training begins: what was never
written can therefore never have left. What is spent is the largest over the rows of now. Rows that are new start at
zero; the name of the bank, the order of rows, white space, labels, the choice of tasks and the seed change nothing. A
round that is asked for again is paid for again, for its noise is fresh. `ledger_spent.py` says how lines by row and by
customer add up, `ledger_chain.py` which files there are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfinlora.errors import UserError
from fedfinlora.privacy.accounting import Steps, epsilon
from fedfinlora.privacy.cohorts import Rows, cohort_of, hash_rows
from fedfinlora.privacy.head import Head
from fedfinlora.privacy.ledger_chain import Entry, Ledger, opened
from fedfinlora.privacy.ledger_files import EVERY_ROW, HEAD, LINES, LedgerError, has_line, origins, refusal
from fedfinlora.privacy.ledger_spent import Histories, Units, histories, units_of
from fedfinlora.privacy.ledger_v1 import Version1, everything_is_spent, fingerprint, take_over

__all__ = [
    "Booked", "BudgetError", "Head", "LedgerError", "Rows", "Spending", "Version1", "book", "fingerprint",
    "ledger_root", "read_lines",
]  # fmt: skip


class BudgetError(UserError):
    """The next round would spend more than is allowed, on every row that there is or in the run."""


@dataclass(frozen=True)
class Spending:
    """One round's steps and what they belong to."""

    run: str
    round: int
    bank: str
    mechanism: str
    unit: str
    """example, customer or bank."""
    steps: Steps
    reproducible_noise: bool = False
    """Noise that others can compute protects no one: it is booked as none."""

    @property
    def booked_steps(self) -> Steps:
        """The steps as they count."""
        return Steps(self.steps.sampling_rate, 0.0, self.steps.count) if self.reproducible_noise else self.steps


@dataclass(frozen=True)
class Booked:
    """A round that is in the ledger."""

    head: Head
    """For the reply: the aggregator is a witness of it."""
    epsilon: float
    """The largest over the units that take part, after this round."""
    taking_part: NDArray[np.bool_]
    """(rows,): the rows that the round may use."""
    left_out: int
    """Units whose budget is exhausted."""
    epsilon_reported: float
    """What may leave the bank: its lines added up as if one unit had been in all, so no row decides it or has spent
    more.
    """


def ledger_root() -> Path:
    """Where the ledgers of this machine's banks and server are: $FEDFINLORA_LEDGER, or ~/.fedfinlora/ledger."""
    return Path(os.environ.get("FEDFINLORA_LEDGER") or Path.home() / ".fedfinlora" / "ledger").expanduser()


def book(
    folder: Path,
    rows: Rows,
    spending: Spending,
    *,
    delta: float,
    budget_epsilon: float = 0.0,
    run_epsilon: float = 0.0,
    witness: Head | None = None,
    version_1: Version1 | None = None,
    own_witness: Head | None = None,
    least_units: int = 0,
    one_bank: bool = False,
) -> Booked:
    """Write one round on all units whose budget allows it; it is on the disk when this returns.

    `budget_epsilon`: what a unit may spend over all runs; `run_epsilon`: what any unit may spend in this run; 0 = no
    limit. `witness`: the newest head that the aggregator has seen; `own_witness`: the newest in the bank's own history;
    `one_bank`: all lines are this bank's, under any name (else several simulated banks share the ledger). Raises
    BudgetError before anything is written where no unit may take part or the run's own total would be too large;
    LedgerError for a ledger that is damaged, cut, rolled back or cannot be written (the round may then be booked
    already); UserError for rows without a customer where the unit is the customer. Two processes book in turn.
    """
    if not rows.prompts:
        raise UserError(f"{spending.bank} has no rows to book round {spending.round} on.")
    by_customer = spending.unit == "customer"
    steps = spending.booked_steps
    with opened(folder) as ledger:
        _check_witness(ledger, witness, "the aggregator has seen its")
        _check_witness(ledger, own_witness, "the bank's own history has its")
        if version_1 is not None:
            take_over(ledger, version_1)
        hashed = hash_rows(rows, ledger.key)
        if by_customer and not hashed.customers.all():
            raise UserError("privacy.unit=customer: some rows have no `issuer`.")
        units = units_of(ledger.index, hashed, by_customer)
        after = histories(ledger.lines, ledger.index, units, steps)
        allowed = after.within(budget_epsilon, delta) if budget_epsilon else np.ones(len(after.counts), dtype=bool)
        if not allowed.any():
            raise BudgetError(
                f"{spending.bank}: round {spending.round} of {spending.run} would bring epsilon on every "
                f"{'customer' if by_customer else 'row'} above privacy.budget_epsilon={budget_epsilon:g}. Nothing was "
                "trained."
            )
        unit_allowed = allowed[after.of_unit]
        if int(unit_allowed.sum()) < least_units:
            raise BudgetError(
                f"{spending.bank}: {int(unit_allowed.sum())} units still have budget for round {spending.round} of "
                f"{spending.run}, fewer than "
                f"min_units={least_units}. Nothing was trained."
            )
        if run_epsilon:
            _check_run(ledger, units, unit_allowed, spending, run_epsilon, delta)
        taking_part = unit_allowed[units.of_row]
        cohort = cohort_of(hashed, by_customer, taking_part)
        ledger.append(
            Entry(spending.run, spending.round, spending.bank, spending.mechanism, spending.unit, steps, cohort)
        )  # fmt: skip
        ledger.commit()
        reported = _reported(ledger.lines, spending, delta, one_bank)
        left_out = int((~unit_allowed).sum() if by_customer else (~taking_part).sum())
        return Booked(ledger.head, after.largest(delta, allowed), taking_part, left_out, reported)


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a ledger, checked; [] where there is none."""
    if not (folder / LINES).exists() and not (folder / HEAD).exists():
        return []
    with opened(folder, writing=False) as ledger:
        return ledger.lines


def _reported(lines: Sequence[Mapping[str, Any]], spending: Spending, delta: float, one_bank: bool) -> float:
    """Epsilon of all lines of this bank, and of those that count for every row, together; infinite by customer after
    lines by row, whose cost to a customer depends on how many rows it has.
    """
    own = [line for line in lines if one_bank or line["bank"] == spending.bank or line["cohort"] == EVERY_ROW]
    if spending.unit == "customer" and any(line["unit"] != "customer" for line in own):
        return math.inf
    return epsilon([Steps(line["sampling_rate"], line["noise_multiplier"], line["steps"]) for line in own], delta)


def _check_witness(ledger: Ledger, witness: Head | None, who: str) -> None:
    """The ledger must have the line that the aggregator has seen, itself or booked again."""
    if witness is None or has_line(ledger.lines, witness) or everything_is_spent(ledger):
        return
    if not any(origin["hash"] == witness.hash for line in ledger.lines for origin in origins(line)):
        raise refusal(
            ledger.folder,
            f"{who} line {witness.number}, which it does not have: it was rolled back or cut",
        )


def _check_run(
    ledger: Ledger, units: Units, allowed: NDArray[np.bool_], spending: Spending, run_epsilon: float, delta: float
) -> None:
    in_run: Histories = histories(ledger.lines, ledger.index, units, spending.booked_steps, spending.run)
    among = np.zeros(len(in_run.counts), dtype=bool)
    among[in_run.of_unit[allowed]] = True
    if not in_run.within(run_epsilon, delta)[among].all():
        raise BudgetError(
            f"{spending.bank}: round {spending.round} would bring epsilon of {spending.run} to "
            f"{in_run.largest(delta, among):.3g}, more than "
            f"the {run_epsilon:g} that a run may spend. Nothing was trained."
        )
