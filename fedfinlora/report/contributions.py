"""What each bank gains and contributes, for the report and the command `contributions`."""

from __future__ import annotations

from pathlib import Path

from fedfinlora.errors import UserError
from fedfinlora.report.formats import DASH, count
from fedfinlora.report.tables import Table
from fedfinlora.run.contributions import Contributions, read_contributions
from fedfinlora.run.evaluation import Estimate

HEAD = ("Bank", "Updates", "Shapley value", "Without it", "Alone, its updates", "Over training alone")


def contributions_view(folder: Path) -> tuple[Table, list[str]] | None:
    """(table, how to read it) of a run folder; None where nothing was computed."""
    problems: list[str] = []
    try:
        found = read_contributions(folder, problems)
    except UserError as error:
        return Table("", HEAD, ()), [str(error)]
    return (contributions_table(found), notes(found) + problems) if found else None


def contributions_table(found: Contributions) -> Table:
    """In percentage points, 95 % intervals over rows in brackets."""
    rows = [
        [
            one.bank,
            count(one.updates),
            points(one.shapley) + ("" if one.shapley_error is None else f" ± {100 * one.shapley_error:.1f}"),
            points(turned(one.leave_one_out)),
            points(one.alone_replayed),
            DASH if one.gain_over_local is None else points(one.gain_over_local),
        ]
        for one in found.banks
    ]
    return Table("Contributions of the banks", HEAD, rows)


def notes(found: Contributions) -> list[str]:
    """How to read the table."""
    where = f"{count(found.rows)} rows of {', '.join(found.benchmarks)}"
    gain = f"The run went from {_percent(found.first_score)} to {_percent(found.score)} on {where}."
    said = [
        f"{gain} Shapley values share this gain out among the banks and add up to it. Percentage points, 95 % "
        "intervals over rows in brackets."
    ]
    if found.method == "permutations":
        said.append(
            f"Shapley values are sampled: {found.permutations} permutations, {found.coalitions} coalitions; ± is their "
            "standard error."
        )
    said.append(
        "Without it: how the score changes when its updates are removed. Alone, its updates: what they change of the "
        "first adapter's score. Over training alone: the run's score minus that of the bank's own run of `local`."
    )
    if found.is_replay:
        said.append(
            "Later updates were computed from adapters of all banks, so leaving updates out replays recorded ones; a "
            "run without the bank would have made others."
        )
    return said


def points(estimate: Estimate) -> str:
    """`+1.2 (-0.3 to +2.7)`."""
    if estimate.value is None:
        return DASH
    if estimate.low is None or estimate.high is None:
        return f"{100 * estimate.value:+.1f}"
    return f"{100 * estimate.value:+.1f} ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"


def turned(one: Estimate) -> Estimate:
    """The same with the other sign."""
    if one.value is None:
        return one
    low, high = (None if end is None else 0.0 - end for end in (one.high, one.low))
    return Estimate(0.0 - one.value, low, high)


def _percent(one: Estimate) -> str:
    return DASH if one.value is None else f"{100 * one.value:.1f} %"
