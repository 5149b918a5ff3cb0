"""What each rule does with updates that no honest bank sends, and where an algorithm's arithmetic has an edge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import Layout
from fedfinlora.wire.messages import Figures, RejectedReply, Reply, pack_reply, unpack_reply
from server_app.replies import Replies, replies_of
from server_app.strategies import RULES, rule_of
from server_app.strategies.strategy import ServerState, Strategy, take_step

LAYOUT = Layout(("q.lora_A.weight", "q.lora_B.weight"), ((3, 7), (5, 3)))
FIGURES = Figures(4, 1, 10, 5, 1.0, 0, 0.0, 0.0, 0.0, 4, 0)
SETTINGS: dict[str, dict[str, Any]] = {
    "fltrust": {"root_bank": "bank-0"},
    "residual": {"residual_rank": 1},
    "flora": {"residual_rank": 1},
    "rosa": {"residual_rank": 1},
}
ROBUST = ("krum", "multi_krum", "geometric_median", "trimmed_mean", "norm_clip", "fltrust")


def rule(name: str) -> Strategy:
    return rule_of(StrategyConfig(name=name, **SETTINGS.get(name, {})), 60)


def drawn(seed: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (scale * np.random.default_rng(seed).normal(size=LAYOUT.size)).astype(np.float32)


def replies(updates: Sequence[NDArray[Any]]) -> Replies:
    made = [Reply(f"bank-{number}", np.float32(update), FIGURES, 1.0) for number, update in enumerate(updates)]
    return replies_of(made, [1.0] * len(made), LAYOUT)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("factor", [0, 1], ids=["A", "B"])
def test_a_number_that_is_not_finite_in_one_factor_is_rejected(factor: int, value: float) -> None:
    """Before any rule sees the update."""
    update = drawn(0)
    LAYOUT.layers[0].of(update)[factor][-1, -1] = value
    with pytest.raises(RejectedReply, match="1 of 36 numbers are NaN or infinite"):
        unpack_reply(pack_reply("north", LAYOUT.id, update, FIGURES), LAYOUT, 100.0)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("factor", [0, 1], ids=["A", "B"])
def test_a_nan_never_becomes_part_of_an_adapter(name: str, factor: int) -> None:
    """Of one bank of four, in one factor, should the check before ever fail: the round ends with a reason, or Krum
    chooses another bank.
    """
    updates = [drawn(bank, 0.1) for bank in (1, 2, 3, 4)]
    LAYOUT.layers[0].of(updates[2])[factor][0, 0] = np.nan
    if name in ("krum", "multi_krum"):
        assert np.isfinite(take_step(rule(name), ServerState(0, drawn(0)), replies(updates)).adapter).all()
        return
    with np.errstate(invalid="ignore"), pytest.raises(UserError, match="not finite"):
        take_step(rule(name), ServerState(0, drawn(0)), replies(updates))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("update", [drawn(1, 0.1), np.zeros(LAYOUT.size, np.float32)], ids=["same", "zero"])
def test_banks_that_all_send_the_same_are_one_bank(name: str, update: NDArray[np.float32]) -> None:
    """No median, distance or share divides by the spread of the updates, which is zero."""
    start = ServerState(0, drawn(0))
    one = take_step(rule(name), start, replies([update]))
    for banks in (2, 4, 7):
        same = take_step(rule(name), start, replies([update] * banks))
        (a, b), (a_one, b_one) = (LAYOUT.layers[0].of(state.adapter.astype(np.float64)) for state in (same, one))
        np.testing.assert_allclose(b @ a, b_one @ a_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["residual", "flora"])
def test_what_is_held_does_not_grow_with_the_rounds(name: str) -> None:
    """Fifty rounds of banks that pull to and fro: rank and norm of the held ranks stay."""
    state, norms = ServerState(0, drawn(0, 0.1)), []
    for number in range(50):
        updates = [drawn(100 * number + bank, 0.1) for bank in range(4)]
        local = [*updates[:2], *(-update for update in updates[:2])]
        state = take_step(rule(name), state, replies(local))
        a, b = LAYOUT.layers[0].of(state.adapter)
        norms.append(float(np.linalg.norm(np.outer(b[:, -1], a[-1]))))
        assert np.linalg.matrix_rank(b[:, 2:] @ a[2:]) <= 1
    assert max(norms[25:]) < 2 * max(norms[:25])
    assert 0 <= state.arrays["residual_lost"][0] <= 1


@pytest.mark.parametrize("name", ROBUST)
def test_one_reply_is_enough_for_a_robust_rule(name: str) -> None:
    """Without others to compare with, the bank's own update is the step."""
    update = drawn(1, 0.1)
    following = take_step(rule(name), ServerState(0, drawn(0)), replies([update]))
    (a, b), (own_a, own_b) = (LAYOUT.layers[0].of(vector) for vector in (following.adapter, drawn(0) + update))
    np.testing.assert_allclose(b @ a, own_b @ own_a, atol=1e-5)
