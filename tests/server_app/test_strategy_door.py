"""Rules that the project does not ship, written through the public door only (docs/extending.md), and what the door
refuses.

FedLion needs the mean, the trimmed mean each update, and the mean of the products each layer's A and B.
"""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extending_page import page_module
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import Layout
from fedfinlora.wire.messages import Figures, Reply
from server_app.central_privacy import CentralMechanism
from server_app.replies import Replies, StoredDeltas, replies_of
from server_app.strategies.fedavg import FedAvg
from server_app.strategies.private_mean import PrivateMean
from server_app.strategies.strategy import ServerState, Strategy, take_step

EQUAL = StrategyConfig(weighting="equal")
LAYOUT = Layout(
    ("q_proj.lora_A.weight", "q_proj.lora_B.weight", "q_proj.lora_magnitude_vector"), ((2, 3), (4, 2), (4,))
)


FedLion, TrimmedMean, ProductMean = (
    getattr(page_module(f"server_app/strategies/{file}.py"), rule)
    for file, rule in (("fedlion", "FedLion"), ("trimmed", "TrimmedMean"), ("product_mean", "ProductMean"))
)


def replies(*updates: NDArray[Any], rows: Sequence[int] = (), layout: Layout | None = None) -> Replies:
    made = [
        Reply(f"bank-{number}", np.float32(update), Figures.withheld(1, 0.0, 1.0, 1.0, 0.1), 1.0)
        for number, update in enumerate(updates)
    ]
    return replies_of(made, rows or [1] * len(made), layout)


def drawn(seed: int, size: int = LAYOUT.size) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def test_fedlion_equals_the_papers_loop() -> None:
    config = StrategyConfig(name="fedadam", beta1=0.9, beta2=0.99, tau=1e-3, server_learning_rate=3e-3)
    rule, state = FedLion(config, 5), ServerState(0, np.zeros(3, np.float32))
    momentum = np.zeros(3)
    for number in range(5):
        update = drawn(number, 3) * np.float32(1e-2)
        step = 3e-3 * np.sign(0.9 * momentum + 0.1 * update.astype(float))
        momentum = 0.99 * momentum + 0.01 * update.astype(float)
        before, state = state, take_step(rule, state, replies(update))
        np.testing.assert_allclose(state.adapter, before.adapter + step, rtol=1e-5, atol=1e-9)
    assert state.round == 5


def test_trimmed_mean_by_hand_ignores_one_bank_of_five_at_either_end() -> None:
    updates = [np.array([value, -value]) for value in (1.0, 2.0, 3.0, 4.0, 1e30)]
    state = take_step(TrimmedMean(EQUAL, 1), ServerState(0, np.zeros(2, np.float32)), replies(*updates))
    np.testing.assert_array_equal(state.adapter, [3.0, -3.0])
    assert state.step_norm == pytest.approx(math.sqrt(18))


@given(st.integers(1, 6), st.integers(0, 100), st.randoms(use_true_random=False))
def test_a_trimmed_mean_does_not_depend_on_the_order_of_the_banks(banks: int, seed: int, random: Any) -> None:
    updates = [drawn(seed + number, 5) for number in range(banks)]
    shuffled = random.sample(updates, len(updates))
    start = ServerState(0, np.zeros(5, np.float32))
    one, other = (take_step(TrimmedMean(EQUAL, 1), start, replies(*each)).adapter for each in (updates, shuffled))
    np.testing.assert_allclose(one, other, rtol=1e-6)


def products(adapter: NDArray[np.float32]) -> NDArray[np.float64]:
    (layer,) = LAYOUT.layers
    a, b = layer.of(adapter.astype(np.float64))
    return np.asarray(b @ a)


@pytest.mark.parametrize("rows", [[1], [3, 1], [5, 2, 1]])
def test_the_mean_of_products_is_the_nearest_of_its_rank(rows: list[int]) -> None:
    """With one bank it is that bank's own product; with more what is lost is the tail of the singular values (Eckart
    and Young 1936).
    """
    start, updates = ServerState(0, drawn(0)), [drawn(1 + number) for number in range(len(rows))]
    state = take_step(ProductMean(EQUAL, 1), start, replies(*updates, rows=rows, layout=LAYOUT))
    exact = np.average([products(start.adapter + update) for update in updates], axis=0, weights=rows)
    lost = np.linalg.norm(products(state.adapter) - exact)
    assert lost == pytest.approx(np.linalg.norm(np.linalg.svd(exact)[1][2:]), abs=1e-5)
    averaged = take_step(FedAvg(EQUAL, 1), start, replies(*updates, rows=rows))
    assert lost <= np.linalg.norm(products(averaged.adapter) - exact) + 1e-6
    np.testing.assert_array_equal(state.adapter[-4:], averaged.adapter[-4:])


def test_layers_are_those_whose_factors_are_both_in_the_vector() -> None:
    (layer,) = LAYOUT.layers
    assert (layer.layer, layer.a, layer.b) == ("q_proj", slice(0, 6), slice(6, 14))
    assert Layout(("q_proj.lora_B.weight",), ((4, 2),)).layers == ()
    assert Layout(("q_proj.lora_xs_R.weight",), ((2, 2),)).layers == ()


def test_a_rule_that_holds_a_block_of_each_bank_stays_within_four_adapters(tmp_path: Path) -> None:
    size, peaks = 2**21, []
    for count in (2, 20):
        with StoredDeltas(tmp_path, size) as stored:
            for number in range(count):
                stored.keep(f"bank-{number}", drawn(number, size))
            names = tuple(f"bank-{number}" for number in range(count))
            asked = Replies(names, (1.0,) * count, (), partial(stored.read, names))
            tracemalloc.start()
            take_step(TrimmedMean(EQUAL, 1), ServerState(0, drawn(0, size)), asked)
            peaks.append(tracemalloc.get_traced_memory()[1] / (4 * size))
            tracemalloc.stop()
    assert peaks[1] == pytest.approx(peaks[0], abs=0.2)
    assert peaks[1] < 4


MECHANISM = CentralMechanism(1.0, 1.0, 1.0, 4, 1e-5, 1.0, reproducible_seed=0)


def test_a_rule_that_needs_single_replies_is_refused_around_a_sum() -> None:
    with pytest.raises(
        UserError, match=r"needs each bank's reply on its own, and privacy=bank shows a rule only their sum"
    ):
        PrivateMean.around(TrimmedMean(EQUAL, 1), MECHANISM)


def test_any_rule_of_the_mean_may_be_made_private() -> None:
    """What it makes of the noisy mean is what it makes of an update that is that mean."""
    rule = FedLion(EQUAL, 1)
    start, asked = ServerState(0, drawn(0)), replies(drawn(1), drawn(2))
    noisy = take_step(PrivateMean.around(FedAvg(EQUAL, 1), MECHANISM), start, asked).adapter - start.adapter
    private = take_step(PrivateMean.around(rule, MECHANISM), start, asked)
    np.testing.assert_allclose(private.adapter, take_step(rule, start, replies(noisy)).adapter, rtol=1e-4)
    assert set(private.arrays) == {"momentum", "bank_clip_norm"}


def test_a_rule_on_layers_is_refused_where_the_layers_are_not_known() -> None:
    with pytest.raises(UserError, match="reads A and B of each layer"):
        take_step(ProductMean(EQUAL, 1), ServerState(0, drawn(0)), replies(drawn(1)))


class Wrong(Strategy):
    """Gives what each test puts in."""

    given: Any = None

    def aggregate(self, state: ServerState, replies: Replies) -> ServerState:
        return ServerState(**{"round": 1, "adapter": np.zeros(2, np.float32), **type(self).given})


@pytest.mark.parametrize(
    "given",
    [
        {"adapter": np.zeros(2)},
        {"adapter": np.zeros(3, np.float32)},
        {"round": 2},
        {"adapter": np.float32([math.nan, 0.0])},
        {"adapter": np.float32([math.inf, 0.0])},
    ],
)
def test_what_a_rule_gives_is_checked(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wrong, "given", given)
    with pytest.raises((UserError, ValueError), match=r"not finite|not round 1 and \(2,\) of float32"):
        take_step(Wrong(EQUAL, 1), ServerState(0, np.zeros(2, np.float32)), replies(np.zeros(2)))
