"""The arithmetic on products against dense matrices, and each rule on products against its paper's dense loop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import Layout
from fedfinlora.wire.messages import Figures, Reply
from server_app.replies import Replies, replies_of
from server_app.strategies import rule_of
from server_app.strategies.fedrot import rotation
from server_app.strategies.geometric_median import weiszfeld
from server_app.strategies.norm_clip import lengths_of
from server_app.strategies.product import MOST_BANKS, Product, gram, summed, truncated
from server_app.strategies.strategy import ServerState, take_step

RANK, D_IN, D_OUT = 3, 7, 5
LAYOUT = Layout(
    (
        "k.lora_A.weight", "k.lora_B.weight", "q.lora_A.weight", "q.lora_B.weight", "q.lora_magnitude_vector",
    ),
    ((RANK, D_IN), (D_OUT, RANK), (RANK, D_IN), (D_OUT, RANK), (D_OUT,)),
)  # fmt: skip
ROBUST = ("krum", "multi_krum", "geometric_median", "trimmed_mean", "norm_clip")
ALL = (*ROBUST, "residual", "flora", "flexlora", "hetlora", "fedrot")


def drawn(seed: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (scale * np.random.default_rng(seed).normal(size=LAYOUT.size)).astype(np.float32)


def replies(updates: Sequence[NDArray[Any]], rows: Sequence[float] = (), layout: Layout = LAYOUT) -> Replies:
    made = [
        Reply(f"bank-{number:03}", np.float32(update), Figures.withheld(1, 0.0, 1.0, 1.0, 0.1), 1.0)
        for number, update in enumerate(updates)
    ]
    return replies_of(made, list(rows) or [1.0] * len(made), layout)


def products(adapter: NDArray[Any]) -> list[NDArray[np.float64]]:
    """B A of each layer, dense."""
    return [np.asarray(b @ a) for a, b in (layer.of(adapter.astype(np.float64)) for layer in LAYOUT.layers)]


def flat_update(start: NDArray[Any], update: NDArray[Any]) -> NDArray[np.float64]:
    """What a bank changes, as one dense vector: the products of both layers, and the magnitudes."""
    after, before = products(start.astype(np.float64) + update), products(start)
    parts = [(one - other).reshape(-1) for one, other in zip(after, before, strict=True)]
    return np.concatenate([*parts, update[-D_OUT:].astype(np.float64)])


def step_of(
    name: str,
    start: NDArray[np.float32],
    updates: Sequence[NDArray[Any]],
    rows: Sequence[float] = (),
    round: int = 0,
    **settings: Any,
) -> ServerState:
    rule = rule_of(StrategyConfig(name=name, **settings), 5)
    asked = replies(updates, rows)
    if name in ROBUST:
        assert rule.weights([]) == []
    return take_step(rule, ServerState(round, start), asked)


# --- arithmetic -----------------------------------------------------------------------------------


def test_inner_products_equal_the_dense_ones() -> None:
    start, updates = drawn(0), [drawn(1 + number) for number in range(4)]
    dense = np.array([flat_update(start, update) for update in updates])
    found = gram(start, replies(updates))
    np.testing.assert_allclose(found, dense @ dense.T, rtol=1e-9)


@given(st.integers(0, 50), st.integers(1, 7), st.sampled_from([-1.0, 0.5, 2.0]))
def test_a_truncated_sum_is_the_dense_svds(seed: int, rank: int, weight: float) -> None:
    """Eckart and Young: the rank's first singular triplets, and the rest is what is lost; the scale of rsLoRA is a
    weight.
    """
    random = np.random.default_rng(seed)
    made = [Product(random.normal(size=(D_OUT, n)), random.normal(size=(n, D_IN))) for n in (2, 4)]
    scales = [weight, 16 / math.sqrt(8)]
    dense = sum(scale * each.left @ each.right for scale, each in zip(scales, made, strict=True))
    left, values, right = np.linalg.svd(dense, full_matrices=False)
    best = truncated(summed(made, scales), rank)
    np.testing.assert_allclose(
        best.product.left @ best.product.right, (left[:, :rank] * values[:rank]) @ right[:rank], atol=1e-9
    )
    np.testing.assert_allclose(best.lost, np.linalg.norm(values[rank:]), atol=1e-9)


def test_tail_energy_drops_directions_and_zero_has_none() -> None:
    made = Product(np.diag([3.0, 1.0, 0.1]), np.eye(3))
    assert [truncated(made, 3, tail).product.inner_size for tail in (0.0, 0.01, 0.2, 1.0)] == [3, 2, 1, 0]
    assert truncated(Product(np.zeros((4, 2)), np.ones((2, 3))), 2).product.inner_size == 0


# --- robust rules ---------------------------------------------------------------------------------


def compare(
    found: NDArray[Any], start: NDArray[Any], updates: Sequence[NDArray[Any]], shares: NDArray[np.float64]
) -> None:
    """The adapter's products are the dense sums of the updates with these shares, cut to the rank by a dense SVD."""
    step = shares @ np.array([flat_update(start, update) for update in updates])
    sizes = D_OUT * D_IN
    for number, (own, old) in enumerate(zip(products(found), products(start), strict=True)):
        left, values, right = np.linalg.svd(old + step[number * sizes : (number + 1) * sizes].reshape(D_OUT, D_IN))
        np.testing.assert_allclose(own, (left[:, :RANK] * values[:RANK]) @ right[:RANK], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[-D_OUT:], start[-D_OUT:] + step[-D_OUT:], rtol=1e-5)


def dense_krum(dense: NDArray[np.float64], liars: int, count: int) -> NDArray[np.float64]:
    scores = []
    for one in range(len(dense)):
        far = sorted(float(np.sum((dense[one] - dense[other]) ** 2)) for other in range(len(dense)) if other != one)
        scores.append(sum(far[: max(len(dense) - liars - 2, 1)]))
    shares = np.zeros(len(dense))
    shares[np.argsort(scores)[:count]] = 1 / count
    return shares


@pytest.mark.parametrize(
    ("name", "banks", "count"), [("krum", 4, 1), ("krum", 7, 1), ("multi_krum", 4, 3), ("multi_krum", 6, 5)]
)
def test_krum_equals_the_papers_loop_on_dense_products(name: str, banks: int, count: int) -> None:
    start, updates = drawn(0), [drawn(1 + number) for number in range(banks)]
    shares = dense_krum(np.array([flat_update(start, update) for update in updates]), 1, count)
    compare(step_of(name, start, updates).adapter, start, updates, shares)


def test_the_geometric_median_has_the_least_sum_of_distances() -> None:
    dense = np.random.default_rng(0).normal(size=(5, 6))
    shares = weiszfeld(dense @ dense.T)
    assert shares.sum() == pytest.approx(1)
    found = shares @ dense

    def cost(point: NDArray[np.float64]) -> float:
        return float(np.linalg.norm(dense - point, axis=1).sum())

    pushes = np.random.default_rng(1).normal(size=(200, 6)) * 1e-3
    assert all(cost(found) <= cost(found + push) + 1e-9 for push in pushes)


def test_the_trimmed_mean_leaves_out_the_farthest_update() -> None:
    updates = [drawn(1), drawn(2), drawn(3), drawn(4, 30.0)]
    found = step_of("trimmed_mean", drawn(0), updates).adapter
    compare(found, drawn(0), updates, np.array([1, 1, 1, 0]) / 3)


def test_a_clipped_product_is_at_most_clip_factor_times_the_median() -> None:
    start, updates = drawn(0), [drawn(1), drawn(2), drawn(3), drawn(4, 30.0)]
    lengths = lengths_of(start, replies(updates))
    np.testing.assert_allclose(lengths, [np.linalg.norm(flat_update(start, update)) for update in updates], rtol=1e-9)
    factors = np.minimum(1, 1.5 * np.median(lengths) / lengths)
    assert factors[3] < 1 == factors.min(initial=1, where=[True, True, False, False])
    compare(step_of("norm_clip", start, updates, clip_factor=1.5).adapter, start, updates, factors / 4)


def test_fltrust_by_hand_trusts_what_points_as_the_root_does() -> None:
    """Along the magnitudes alone, so that products are plain vectors: cosines 1, 0, -1 with the root."""
    updates = [np.zeros(LAYOUT.size) for _ in range(4)]
    for update, (place, value) in zip(updates, [(-1, 10.0), (-2, 3.0), (-1, -5.0), (-1, 2.0)], strict=True):
        update[place] = value
    state = step_of("fltrust", np.zeros(LAYOUT.size, np.float32), updates, root_bank="bank-003")
    np.testing.assert_allclose(state.adapter, updates[3])
    alone = step_of("fltrust", np.zeros(LAYOUT.size, np.float32), updates[2:], root_bank="bank-001")
    np.testing.assert_allclose(alone.adapter, updates[3])
    with pytest.raises(UserError, match=r"no usable reply of strategy\.root_bank=elsewhere"):
        step_of("fltrust", drawn(0), updates, root_bank="elsewhere")


@pytest.mark.parametrize("name", ["krum", "multi_krum", "geometric_median", "trimmed_mean"])
@pytest.mark.parametrize("factor", [-20.0, 50.0])
def test_one_liar_of_four_is_held_off(name: str, factor: float) -> None:
    """Honest banks that nearly agree, one that sends a multiple: the step stays near the honest mean."""
    start, common = drawn(0, 0.1), drawn(1, 0.1)
    honest = [common + drawn(2 + number, 0.02) for number in range(3)]
    found, averaged, mean = (
        flat_update(start, step_of(rule, start, updates).adapter - start)
        for rule, updates in (
            (name, [*honest, np.float32(factor) * common]),
            ("fedavg", [*honest, np.float32(factor) * common]),
            ("fedavg", honest),
        )
    )
    assert np.linalg.norm(found - mean) < 0.3 * np.linalg.norm(mean)
    assert np.linalg.norm(averaged - mean) > 3 * np.linalg.norm(mean)


def test_the_vote_does_not_depend_on_how_a_product_is_written() -> None:
    """(B Q)(Q^-1 A) is the same update: inner products do not see Q, numbers of A and B do."""
    start, updates = drawn(0), [drawn(1 + number) for number in range(4)]
    turned = updates[0].copy().astype(np.float64)
    q = np.random.default_rng(9).normal(size=(RANK, RANK)) + 3 * np.eye(RANK)
    for layer in LAYOUT.layers:
        (a, b), (da, db) = layer.of(start.astype(np.float64)), layer.of(turned)
        new_a, new_b = np.linalg.solve(q, a + da), (b + db) @ q
        da[:], db[:] = new_a - a, new_b - b
    one, other = (gram(start, replies([first, *updates[1:]])) for first in (updates[0], turned))
    np.testing.assert_allclose(one, other, rtol=1e-4)


@pytest.mark.parametrize("name", ROBUST)
def test_weights_that_a_bank_claims_change_nothing(name: str) -> None:
    updates = [drawn(1 + number) for number in range(4)]
    claimed = step_of(name, drawn(0), updates, rows=[1, 1, 1, 1e9]).adapter
    np.testing.assert_array_equal(claimed, step_of(name, drawn(0), updates).adapter)


# --- exact aggregation ----------------------------------------------------------------------------


def exact(
    start: NDArray[Any], updates: Sequence[NDArray[Any]], rows: Sequence[float], rate: float = 1.0
) -> list[NDArray[np.float64]]:
    """(1 - rate) B A + rate sum_k p_k (B + dB_k)(A + dA_k) of each layer, dense."""
    means = [
        np.average(layer, axis=0, weights=rows)
        for layer in zip(*(products(start.astype(np.float64) + u) for u in updates), strict=True)
    ]
    return [(1 - rate) * old + rate * mean for old, mean in zip(products(start), means, strict=True)]


def trained_only(update: NDArray[np.float32], held: int) -> NDArray[np.float32]:
    """As a bank sends it: nothing in the last `held` ranks."""
    update = update.copy()
    for layer in LAYOUT.layers:
        a, b = layer.of(update)
        a[RANK - held :], b[:, RANK - held :] = 0.0, 0.0
    return update


@pytest.mark.parametrize("rate", [1.0, 0.5, 1.7])
def test_the_residual_makes_the_mean_exact_where_its_rank_is_enough(rate: float) -> None:
    """Two banks of one trained rank: what averaging loses has rank 1 (rate 1), or 2."""
    rows, start = [3.0, 1.0], trained_only(drawn(0), 2)
    for number in range(3):  # what is held of earlier rounds would need more ranks: begin each time without
        updates = [trained_only(drawn(10 * number + bank), 2) for bank in (1, 2)]
        state = step_of("residual", start, updates, rows, residual_rank=2, server_learning_rate=rate)
        for found, expected in zip(products(state.adapter), exact(start, updates, rows, rate), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)
        assert state.arrays["residual_lost"][0] == pytest.approx(0, abs=1e-12)
        averaged = step_of("fedavg", start, updates, rows, server_learning_rate=rate)
        lost = sum(
            float(np.linalg.norm(a - b))
            for a, b in zip(products(averaged.adapter), exact(start, updates, rows, rate), strict=True)
        )
        assert lost > 0.1


def test_the_residual_is_bounded_over_rounds_and_says_what_it_lost() -> None:
    """Fifty rounds of four banks that disagree: rank and norm stay, and the cut is the best of its rank."""
    state = ServerState(0, trained_only(drawn(0, 0.1), 1))
    rule = rule_of(StrategyConfig(name="residual", residual_rank=1), 60)
    for number in range(50):
        updates = [trained_only(drawn(100 * number + bank, 0.1), 1) for bank in range(4)]
        before, state = state, take_step(rule, state, replies(updates))
        wanted = exact(before.adapter, updates, [1.0] * 4)
        for layer, target, found in zip(LAYOUT.layers, wanted, products(state.adapter), strict=True):
            a, b = layer.of(state.adapter.astype(np.float64))
            tail = np.linalg.svd(target - b[:, : RANK - 1] @ a[: RANK - 1])[1][1:]
            assert np.linalg.norm(found - target) == pytest.approx(np.linalg.norm(tail), rel=1e-4)
        assert 0 < state.arrays["residual_lost"][0] < 1
    a, b = LAYOUT.layers[0].of(state.adapter)
    assert np.linalg.norm(np.outer(b[:, -1], a[-1])) < 1


def test_a_banks_change_of_the_held_ranks_has_no_effect() -> None:
    start, updates = trained_only(drawn(0), 1), [drawn(1), drawn(2)]
    clean = [trained_only(update, 1) for update in updates]
    one, other = (step_of("residual", start, each, residual_rank=1).adapter for each in (updates, clean))
    np.testing.assert_array_equal(one, other)


def test_flexlora_is_the_dense_svd_of_the_mean_product() -> None:
    start, updates, rows = drawn(0), [drawn(1), drawn(2), drawn(3)], [5.0, 2.0, 1.0]
    state = step_of("flexlora", start, updates, rows)
    for found, expected in zip(products(state.adapter), exact(start, updates, rows), strict=True):
        left, values, right = np.linalg.svd(expected)
        np.testing.assert_allclose(found, (left[:, :RANK] * values[:RANK]) @ right[:RANK], atol=1e-5)


def test_flexlora_keeps_rows_of_a_that_can_still_be_trained() -> None:
    start = drawn(0)
    for layer in LAYOUT.layers:
        layer.of(start)[1][:] = 0.0
    still = step_of("flexlora", start, [np.zeros(LAYOUT.size, np.float32)] * 2).adapter
    np.testing.assert_array_equal(still, start)


def test_flora_keeps_the_exact_mean_and_begins_again() -> None:
    start, rows = trained_only(drawn(0), 2), [3.0, 1.0]
    updates = [trained_only(drawn(bank), 2) for bank in (1, 2)]
    state = step_of("flora", start, updates, rows, residual_rank=2)
    for layer, found, expected in zip(LAYOUT.layers, products(state.adapter), exact(start, updates, rows), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
        a, b = layer.of(state.adapter)
        assert not b[:, 0].any()
        assert 0 < np.abs(a[0]).max() <= 1 / math.sqrt(D_IN)


def test_rosa_is_residual_in_a_phase_and_flora_at_its_end() -> None:
    start, updates = trained_only(drawn(0), 2), [trained_only(drawn(bank), 2) for bank in (1, 2)]
    shown = [step_of(name, start, updates, residual_rank=2).adapter for name in ("residual", "flora")]
    for phase_rounds, wanted in ((2, shown[0]), (1, shown[1])):
        state = step_of("rosa", start, updates, residual_rank=2, phase_rounds=phase_rounds)
        np.testing.assert_array_equal(state.adapter, wanted)


def test_hetlora_weighs_banks_by_the_length_of_their_product() -> None:
    """Banks of ranks 1, 2 and 3: what they do not have is zero in their adapters."""
    start, updates = drawn(0), []
    for rank in (1, 2, 3):
        local = drawn(rank)
        for layer in LAYOUT.layers:
            a, b = layer.of(local)
            a[rank:], b[:, rank:] = 0.0, 0.0
        updates.append(local - start)
    locals_ = [start.astype(np.float64) + update for update in updates]
    lengths = [math.sqrt(sum(float(np.sum(p**2)) for p in products(local))) for local in locals_]
    expected = np.average(locals_, axis=0, weights=lengths)
    np.testing.assert_allclose(step_of("hetlora", start, updates).adapter, expected, rtol=1e-4, atol=1e-5)


# --- FedRot-LoRA ----------------------------------------------------------------------------------


@given(st.integers(0, 200), st.integers(2, 5))
def test_a_rotation_is_proper_and_the_best_of_those_drawn(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    cross = random.normal(size=(size, size))
    found = rotation(cross)
    np.testing.assert_allclose(found @ found.T, np.eye(size), atol=1e-12)
    assert np.linalg.det(found) == pytest.approx(1)
    for _ in range(50):
        other = np.linalg.qr(random.normal(size=(size, size))).Q
        other[:, 0] *= np.sign(np.linalg.det(other))
        assert np.sum(found * cross) >= np.sum(other * cross) - 1e-9


def test_where_a_reflection_is_best_the_rotation_is_still_one() -> None:
    np.testing.assert_allclose(rotation(np.diag([3.0, 2.0, -1.0])), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(rotation(np.diag([3.0, -2.0, -1.0])), np.diag([1.0, -1.0, -1.0]), atol=1e-12)
    np.testing.assert_array_equal(rotation(np.zeros((2, 2))), np.eye(2))


@pytest.mark.parametrize("round", [0, 1])
def test_fedrot_undoes_what_only_turned(round: int) -> None:
    """Two banks learn the same product, one of them turned by a half: the plain mean loses it, the aligned one does
    not.
    """
    start, update = drawn(0, 0.3), drawn(1, 0.05)
    turn = np.diag([-1.0, -1.0, 1.0])
    turned = update.copy()
    for layer in LAYOUT.layers:
        (a, b), (da, db) = layer.of(start), layer.of(turned)
        da[:], db[:] = turn @ (a + da) - a, (b + db) @ turn.T - b
    found = products(step_of("fedrot", start, [update, turned], round=round).adapter)
    plain = products(step_of("fedavg", start, [update, turned]).adapter)
    for own, averaged, wanted in zip(found, plain, products(start + update), strict=True):
        np.testing.assert_allclose(own, wanted, atol=1e-5)
        assert np.linalg.norm(averaged - wanted) > 0.1 * np.linalg.norm(wanted)


# --- edges of all ---------------------------------------------------------------------------------


def settings_of(name: str) -> dict[str, Any]:
    return {"residual_rank": 1} if name in ("residual", "flora") else {}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("banks", [1, 4])
def test_equal_banks_and_a_single_bank_give_their_own_product(name: str, banks: int) -> None:
    held = settings_of(name).get("residual_rank", 0)
    start, update = trained_only(drawn(0), held), trained_only(drawn(1), held)
    if name == "flora":  # rank 2 does not fit into the one held: only what it holds is compared
        start, update = trained_only(start, 2), trained_only(update, 2)
    state = step_of(name, start, [update] * banks, **settings_of(name))
    for found, expected in zip(products(state.adapter), products(start + update), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_a_resumed_rule_gives_the_same_bytes(name: str) -> None:
    """Nothing but the state passes from round to round."""
    rounds = [[trained_only(drawn(10 * number + bank, 0.1), 1) for bank in range(4)] for number in range(4)]
    rule, again = (rule_of(StrategyConfig(name=name, **settings_of(name)), 4) for _ in range(2))
    states = list(
        itertools.accumulate(
            rounds, lambda state, u: take_step(rule, state, replies(u)), initial=ServerState(0, drawn(0))
        )
    )
    middle = states[2]
    resumed = ServerState(2, middle.adapter.copy(), {key: value.copy() for key, value in middle.arrays.items()})
    for updates in rounds[2:]:
        resumed = take_step(again, resumed, replies(updates))
    assert resumed.adapter.tobytes() == states[-1].adapter.tobytes()
    assert all(resumed.arrays[key].tobytes() == value.tobytes() for key, value in states[-1].arrays.items())


@pytest.mark.parametrize("name", ["krum", "geometric_median", "residual", "flexlora", "flora"])
def test_too_many_banks_for_a_quadratic_rule_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"at most {MOST_BANKS} banks a round; 129 replied"):
        step_of(name, drawn(0), [drawn(1)] * 129, **settings_of(name))


@pytest.mark.parametrize("name", ["norm_clip", "hetlora", "fedrot"])
def test_a_thousand_banks_of_a_linear_rule(name: str) -> None:
    state = step_of(name, drawn(0), [drawn(number, 0.1) for number in range(1000)])
    assert np.isfinite(state.adapter).all()


def test_all_banks_zero_leaves_the_adapter() -> None:
    nothing = [np.zeros(LAYOUT.size, np.float32)] * 3
    for name in ROBUST:
        np.testing.assert_array_equal(step_of(name, drawn(0), nothing).adapter, drawn(0))
