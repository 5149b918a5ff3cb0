"""No figure of a deployed bank has more digits than it may: `client_app.published`."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hostile_server import Bank, write_bank
from hypothesis import given
from hypothesis import strategies as st

from client_app.published import DIGITS, published, rounded
from fedfinlora.wire.messages import ALWAYS_SENT, Figures, pack_request

FIGURES = Figures(
    rows=1672, steps=210, tokens=123_456, answer_tokens=7_890, train_loss=2.345678, holdout_rows=104,
    holdout_loss=1.0006, train_s=12.3456,
    load_s=0.98765, bank_rows=4846, skipped_rows=3,
)  # fmt: skip


def digits(value: float) -> int:
    """Significant digits of a number."""
    shown = f"{abs(value):.15g}".replace(".", "").partition("e")[0]
    return len(shown.strip("0"))


def test_each_figure_as_it_leaves() -> None:
    found = published(FIGURES, min_rows=20, weighting="equal")
    assert found == replace(
        FIGURES, rows=1700, tokens=120_000, answer_tokens=7_900, train_loss=2.35, holdout_rows=100, holdout_loss=1.0,
        train_s=12.3,
        load_s=0.988, bank_rows=4800, skipped_rows=0, epsilon_planned=found.epsilon_planned,
        epsilon_spent=found.epsilon_spent,
        delta=found.delta,
    )  # fmt: skip
    assert published(FIGURES, 20, weighting="rows").rows == FIGURES.rows, "the weights of the average do not change"


def test_two_answers_that_differ_in_a_row_have_the_same_figures() -> None:
    """One row of 1,672 with a loss that is 0.6 above the mean, and 80 tokens."""
    other = replace(
        FIGURES,
        rows=1673,
        tokens=123_536,
        answer_tokens=7_893,
        train_loss=FIGURES.train_loss + 0.6 / 1673,
        bank_rows=4847,
    )
    assert asdict(published(other, 20, "equal")) == pytest.approx(asdict(published(FIGURES, 20, "equal")), nan_ok=True)


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_rounded_number_is_near_and_has_few_digits(value: float) -> None:
    found = rounded(value)
    if math.isfinite(value):
        assert digits(found) <= DIGITS or not math.isfinite(found)
        assert not math.isfinite(found) or found == pytest.approx(value, rel=0.005, abs=1e-320)
    else:
        assert str(found) == str(value)


def test_what_a_deployed_bank_sends_of_a_real_round_has_few_digits(tmp_path: Path) -> None:
    bank = Bank(write_bank(tmp_path, budget_epsilon=0.0, min_rows=5), tmp_path)
    answer = bank.answers(
        pack_request(bank.request("privacy.mode=none", "strategy.weighting=equal", "train.holdout_max_rows=20"))
    )
    sent = {name: value for name, value in dict(answer.metric_records["figures"]).items() if name not in ALWAYS_SENT}
    assert sent["train_loss"] > 0
    assert {name: value for name, value in sent.items() if math.isfinite(value) and digits(value) > DIGITS} == {}
    assert all(digits(sent[name]) <= 2 for name in ("rows", "tokens", "answer_tokens", "bank_rows", "skipped_rows"))
    sent_line = bank.history[-1]
    assert sent_line["outcome"] == "sent"
