"""What lies between a federated and a pooled run: explain.json (`fedfinlora.commands.explain`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedfinlora.files import write_json
from fedfinlora.run.evaluation import Estimate
from fedfinlora.run.records import SCHEMA_VERSION
from fedfinlora.run.typed import to_json

EXPLANATION_FILE = "explain.json"
NOT_MEASURED = Estimate(None)


@dataclass(frozen=True, slots=True)
class Cause:
    """One change on the way from the pooled to the federated run."""

    name: str
    title: str
    from_run: str
    """The adapter before the change: a label of `scores`."""
    to_run: str
    effect: Estimate = NOT_MEASURED
    """Score after minus score before, a fraction, with its 95 % interval over rows."""
    advice: str = ""
    """What to change where the effect is a loss."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The causes in the order of the changes; their effects add up to the whole difference."""

    schema_version: int = SCHEMA_VERSION
    federated: str = ""
    pooled: str = ""
    difference: Estimate = NOT_MEASURED
    causes: tuple[Cause, ...] = ()
    replays: tuple[Cause, ...] = ()
    """What another mean would have given, of the recorded updates or in a run of its own: parts of the causes above,
    not added to them.
    """
    unknown: tuple[str, ...] = ()
    """What could not be computed, and what to keep for it."""
    benchmarks: tuple[str, ...] = ()
    rows: int = 0


def write_explanation(file: Path, explanation: Explanation) -> None:
    write_json(file, to_json(explanation))
