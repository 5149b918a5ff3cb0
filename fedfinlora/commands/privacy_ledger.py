"""`privacy ledger FOLDER`: what a ledger says is spent, and two ways to repair a damaged one."""

from __future__ import annotations

from pathlib import Path

from fedfinlora.errors import ConfigError, UserError
from fedfinlora.privacy.accounting import Steps, default_delta, epsilon
from fedfinlora.privacy.cohorts import CUSTOMER_BIT, CohortError
from fedfinlora.privacy.ledger_chain import Ledger, opened
from fedfinlora.privacy.ledger_files import EVERY_ROW, HEAD, LINES
from fedfinlora.privacy.ledger_repair import Repair, book_as_spent, reconcile
from fedfinlora.privacy.ledger_spent import histories, members


def ledger_command(folder: Path, reconcile_with: Path | None, as_spent: bool, delta: float | None = None) -> int:
    """`delta` None: the bank's default for as many rows as the ledger knows."""
    if reconcile_with is not None and as_spent:
        raise ConfigError("--reconcile and --book-as-spent are two ways out: choose one.")
    if delta is not None and not 0 < delta < 1:
        raise ConfigError(f"--delta {delta:g} must be between 0 and 1.")
    if reconcile_with is not None:
        print(_said(reconcile(folder, reconcile_with)))
    elif as_spent:
        print(_said(book_as_spent(folder)))
        print("1 line without noise was booked on every row: no row of this ledger has any budget left")
    if not (folder / LINES).exists() and not (folder / HEAD).exists():
        raise UserError(f"There is no privacy ledger in {folder}.")
    with opened(folder, writing=False) as ledger:
        _show(ledger, delta)
        return _check_cohorts(ledger)


def _check_cohorts(ledger: Ledger) -> int:
    """Read every cohort file, which a booking does for the newest only; 1 where one is damaged."""
    damaged = []
    for address in sorted({line["cohort"] for line in ledger.lines} - {EVERY_ROW}):
        try:
            ledger.files.read(address)
        except CohortError as error:
            damaged.append(str(error))
    if not damaged:
        return 0
    print(
        f"{'; '.join(damaged)}. What is spent is still right, out of the index; without the index these lines could "
        "not be read. --reconcile HISTORY books them again."
    )
    return 1


def _said(repair: Repair) -> str:
    return (
        f"{repair.kept} lines hold and are kept; {repair.booked_again} were booked again on the rows that they named, "
        f"{repair.booked_on_every_row} on every row; the old files are in {repair.aside}"
    )


def largest_by_unit(ledger: Ledger, delta: float) -> dict[str, float]:
    """Row, and customer where rounds by customer were booked -> the largest epsilon of any that the ledger knows, rows
    that are gone too.
    """
    units = {"row": members(ledger.index, False), "customer": members(ledger.index, True)}
    return {
        unit: histories(ledger.lines, ledger.index, found).largest(delta)
        for unit, found in units.items()
        if found.count
    }


def _show(ledger: Ledger, delta: float | None) -> None:
    hashes = ledger.index.hashes
    customers = int((hashes >= CUSTOMER_BIT).sum())
    rows = len(hashes) - customers
    delta = delta or default_delta(max(rows, 1))
    for line in ledger.lines[-20:]:
        cohort = "every row" if line["cohort"] == "*" else f"cohort {line['cohort'][:12]}"
        print(
            f"{line['number']:>5}  {line['time']}  {line['run'][:40]}  round {line['round']}  {line['bank']}  by "
            f"{line['unit']}  "
            f"q {line['sampling_rate']:.3g}  sigma {line['noise_multiplier']:.3g}  {line['steps']} steps  {cohort}"
        )
    print(f"{len(ledger.lines)} lines, the last {min(20, len(ledger.lines))} shown; {rows} rows, {customers} customers")
    for kind, largest in largest_by_unit(ledger, delta).items():
        print(f"largest epsilon of a {kind}: {largest:.4g} at delta {delta:.1e}")
    on_every_row = [line for line in ledger.lines if line["cohort"] == EVERY_ROW]
    if on_every_row:
        steps = [Steps(line["sampling_rate"], line["noise_multiplier"], line["steps"]) for line in on_every_row]
        print(
            f"booked on every row, those that come later included: {len(on_every_row)} lines, epsilon "
            f"{epsilon(steps, delta):.4g}"
        )
    print(f"head: line {ledger.head.number}, {ledger.head.hash}")
