"""What each figure that crosses the network may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedfinlora.config.schema import MOST_ROUNDS
from fedfinlora.privacy.head import MOST_LINES

MOST_ROWS = 2**40 - 1
"""A claim of more is a claim on the whole average."""
MOST_TOKENS = 2**53 - 1
"""Whole numbers up to here survive JSON and float64."""
MOST_STEPS = 2**31 - 1
MOST_SECONDS = 1e9
MOST_LOSS = 1e6
"""Nats a token. Figures beyond these are no measurements."""


class FigureError(ValueError):
    """A figure that is not as RANGES has it. The message never has what was sent."""


@dataclass(frozen=True)
class Range:
    """What a figure that crosses the network may be; both bounds are allowed."""

    kind: type[int] | type[float]
    lowest: float
    highest: float
    unit: str
    sender: str
    """bank or coordinator."""
    may_be_nan: bool = False
    """NaN means: not measured."""

    def __str__(self) -> str:
        what = "a whole number" if self.kind is int else "a number"
        top = f" to {_shown(self.highest)}" if self.highest < math.inf else ", infinite too"
        return f"{what} from {_shown(self.lowest)}{top} ({self.unit})"


RANGES: Mapping[str, Range] = {
    "rows": Range(int, 0, MOST_ROWS, "rows", "bank"),
    "steps": Range(int, 1, MOST_STEPS, "optimiser steps", "bank"),
    "tokens": Range(int, 0, MOST_TOKENS, "tokens", "bank"),
    "answer_tokens": Range(int, 0, MOST_TOKENS, "tokens", "bank"),
    "train_loss": Range(float, -1.0, MOST_LOSS, "nats a token", "bank", may_be_nan=True),
    "holdout_rows": Range(int, 0, MOST_ROWS, "rows", "bank"),
    "holdout_loss": Range(float, -1.0, MOST_LOSS, "nats a token", "bank", may_be_nan=True),
    "train_s": Range(float, 0.0, MOST_SECONDS, "seconds", "bank"),
    "load_s": Range(float, 0.0, MOST_SECONDS, "seconds", "bank"),
    "bank_rows": Range(int, 0, MOST_ROWS, "rows", "bank"),
    "skipped_rows": Range(int, 0, MOST_ROWS, "rows", "bank"),
    "epsilon_planned": Range(float, 0.0, math.inf, "epsilon", "bank", may_be_nan=True),
    "epsilon_spent": Range(float, 0.0, math.inf, "epsilon", "bank", may_be_nan=True),
    "delta": Range(float, 1e-300, 0.5, "probability", "bank", may_be_nan=True),
    "ledger-number": Range(int, 0, MOST_LINES - 1, "lines of a ledger", "bank"),
    "round": Range(int, 1, MOST_ROUNDS, "rounds", "coordinator"),
    "silent": Range(int, 0, 1, "yes or no", "coordinator"),
    "ledger-heads": Range(int, 0, MOST_LINES - 1, "lines of a ledger", "coordinator"),
}  # fmt: skip
"""Every figure outside the configuration that crosses the network. The schema bounds the numbers of the configuration,
the layout those of an adapter and of a delta. A loss may lie a rounding below 0.
"""


def checked(name: str, value: Any) -> Any:
    """A figure that arrived, in the type that RANGES gives it. FigureError for another type or value."""
    known = RANGES[name]
    is_of_kind = isinstance(value, int | float if known.kind is float else int) and not isinstance(value, bool)
    if is_of_kind and (known.lowest <= value <= known.highest or (known.may_be_nan and value != value)):
        return known.kind(value)
    raise FigureError(f"{name} must be {known}")


def _shown(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"
