"""The figures of a round as they leave a deployed bank: rounded, so that their digits do not identify a single row.

| figure | as it leaves |
|---|---|
| rows, tokens, held-out rows, rows that could not be used | two significant digits |
| rows trained on, or answer tokens, where strategy.weighting names them | exact: the bank's weight in the mean |
| rows of the bank, rows that could not be used, where they are fewer than min_rows | 0 |
| losses, seconds | three significant digits |
| distance from the last global adapter (strategy.sync=drift) | three significant digits, simulated banks' too |
| steps, epsilon, delta | exact: they follow from the request, the declared sizes and the ledger |

This takes the row out of the figures, not out of the update: in a round without the bank's own noise the update itself
is a function of all rows. A simulated bank's figures are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from fedfinlora.deployment.bank_settings import rounded_rows
from fedfinlora.wire.messages import NOT_SENT, Figures

DIGITS = 3
"""Significant digits of losses and seconds."""


def published(figures: Figures, min_rows: int, weighting: str) -> Figures:
    """The figures of a round without the bank's own noise, rounded as above."""
    return replace(
        figures,
        rows=figures.rows if weighting == "rows" else rounded_rows(figures.rows),
        tokens=rounded_rows(figures.tokens),
        answer_tokens=figures.answer_tokens if weighting == "answer_tokens" else rounded_rows(figures.answer_tokens),
        train_loss=rounded(figures.train_loss),
        holdout_rows=rounded_rows(figures.holdout_rows),
        holdout_loss=rounded(figures.holdout_loss),
        train_s=rounded(figures.train_s),
        load_s=rounded(figures.load_s),
        bank_rows=published_count(figures.bank_rows, min_rows),
        skipped_rows=published_count(figures.skipped_rows, min_rows),
    )


def reported(figures: Figures, reveal: Sequence[str], has_own_trainer: bool) -> tuple[str, ...]:
    """The figures of `reveal` that leave: of a bank's own trainer only those that it has reported."""
    if not has_own_trainer:
        return tuple(reveal)
    unknown = [name for name in ("tokens", "answer_tokens", "train_loss") if _is_unknown(figures, name)]
    return tuple(name for name in reveal if name not in unknown)


def _is_unknown(figures: Figures, name: str) -> bool:
    value = getattr(figures, name)
    return bool(value == NOT_SENT[name] or value != value)


def rounded(value: float) -> float:
    """A number to DIGITS significant digits; NaN and infinity as they are.

    >>> rounded(2.34567), rounded(0.00123456), rounded(-12345.6), rounded(math.inf)
    (2.35, 0.00123, -12300.0, inf)
    """
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else value


def published_count(count: int, min_rows: int) -> int:
    """A count of rows that a server can move by one, e.g. with a shorter context window: two digits of it, and nothing
    below min_rows.

    >>> published_count(1672, 20), published_count(19, 20), published_count(19, 0)
    (1700, 0, 19)
    """
    return rounded_rows(count) if count >= min_rows else 0
