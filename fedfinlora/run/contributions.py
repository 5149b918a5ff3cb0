"""contributions.json of a run folder (`python -m fedfinlora contributions`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedfinlora.files import read_json, write_json
from fedfinlora.run.evaluation import Estimate
from fedfinlora.run.records import SCHEMA_VERSION
from fedfinlora.run.typed import Problems, from_json, omitted, to_json

CONTRIBUTIONS_FILE = "contributions.json"
NOT_MEASURED = Estimate(None)


@dataclass(frozen=True, slots=True)
class BankContribution:
    """One bank. Scores are fractions, their intervals 95 % over the scored rows."""

    bank: str
    updates: int = 0
    """In the aggregate."""
    shapley: Estimate = NOT_MEASURED
    """Its share of what the run gained over its first adapter (Shapley 1953). The shares add up to that gain."""
    shapley_error: float | None = omitted()
    """Standard error over the permutations drawn; absent where all coalitions were computed."""
    leave_one_out: Estimate = NOT_MEASURED
    """Score of all banks' updates minus that without this bank's."""
    alone_replayed: Estimate = NOT_MEASURED
    """Score of this bank's recorded updates alone minus that of the first adapter."""
    gain_over_local: Estimate | None = None
    """Score of the run minus that of the bank training alone; None where no local run was named."""


@dataclass(frozen=True, slots=True)
class Contributions:
    """All banks of a run, from the server's rule on subsets of its recorded updates."""

    schema_version: int = SCHEMA_VERSION
    run: str = ""
    rounds: int = 0
    method: str = ""
    """exact: all 2^N - 1 coalitions; permutations: a seeded sample of them (Castro, Gómez, Tejada 2009)."""
    permutations: int = 0
    coalitions: int = 0
    """Scored, the empty one (the first adapter) among them."""
    is_replay: bool = True
    """Whether later updates were computed from adapters of all banks, so that a coalition is a replay of recorded
    updates and not the run that it would have made.
    """
    benchmarks: tuple[str, ...] = ()
    rows: int = 0
    first_score: Estimate = NOT_MEASURED
    """Of the first adapter: mean over benchmarks of strict scores."""
    score: Estimate = NOT_MEASURED
    """Of the run's adapter."""
    banks: tuple[BankContribution, ...] = ()


def write_contributions(run: Path, contributions: Contributions) -> None:
    write_json(run / CONTRIBUTIONS_FILE, to_json(contributions))


def read_contributions(run: Path, problems: Problems | None = None) -> Contributions | None:
    """None where there is none. UserError where it is damaged, unless `problems` takes what cannot be read."""
    file = run / CONTRIBUTIONS_FILE
    return from_json(Contributions, read_json(file), CONTRIBUTIONS_FILE, problems) if file.is_file() else None
