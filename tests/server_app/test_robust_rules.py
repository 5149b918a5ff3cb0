"""Factors that a dishonest bank chooses under the robust rules: the product is honest, or none, and A and B are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.model.adapter import Layout
from fedfinlora.wire.messages import Figures, Reply
from server_app.replies import Replies, replies_of
from server_app.strategies import RULES, rule_of
from server_app.strategies.norm_clip import NormClip
from server_app.strategies.product import MOST_BANKS, Product, gram
from server_app.strategies.robust import RobustStrategy, near
from server_app.strategies.strategy import ServerState, take_step

RANK, D_IN, D_OUT = 3, 24, 16
LAYOUT = Layout(("q.lora_A.weight", "q.lora_B.weight"), ((RANK, D_IN), (D_OUT, RANK)))
LAYER = LAYOUT.layers[0]
ROBUST = [
    name for name, rule in RULES.items() if isinstance(rule, type) and issubclass(rule, RobustStrategy | NormClip)
]
Vector = NDArray[np.float32]


def drawn(seed: int, scale: float = 1.0) -> Vector:
    return (scale * np.random.default_rng(seed).normal(size=LAYOUT.size)).astype(np.float32)


def start_of(round_number: int) -> Vector:
    """A global adapter: before the first round B is zero, as LoRA begins."""
    start = drawn(0, 0.2)
    if round_number == 1:
        LAYER.of(start)[1][:] = 0.0
    return start


def honest(count: int = 5) -> list[Vector]:
    """Updates of banks that nearly agree; the last one is the root bank's."""
    return [drawn(1, 0.05) + drawn(2 + bank, 0.01) for bank in range(count)]


def product(vector: NDArray[Any]) -> NDArray[np.float64]:
    a, b = LAYER.of(vector.astype(np.float64))
    return np.asarray(b @ a)


def replies(updates: Sequence[Vector]) -> Replies:
    made = [Reply(f"bank-{n:03}", each, Figures.withheld(1, 0.0, 1.0, 1.0, 0.1), 1.0) for n, each in enumerate(updates)]
    return replies_of(made, [1.0] * len(made), LAYOUT)


def step_of(name: str, start: Vector, updates: Sequence[Vector]) -> Vector:
    settings = {"root_bank": f"bank-{len(updates) - 1:03}"} if name == "fltrust" else {}
    rule = rule_of(StrategyConfig(name=name, **settings), 5)  # type: ignore[arg-type]
    return take_step(rule, ServerState(0, start), replies(updates)).adapter


def from_local(start: Vector, change: Callable[[NDArray[np.float64], NDArray[np.float64]], None]) -> Vector:
    """The update of a bank whose own A and B are those of `honest()[0]`, changed in place."""
    local = start.astype(np.float64) + honest()[0]
    change(*LAYER.of(local))
    return (local - start).astype(np.float32)


def other_gauge(start: Vector) -> Vector:
    """The honest product as (-10 B)(A / -10)."""

    def change(a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
        a /= -10
        b *= -10

    return from_local(start, change)


def skewed_gauge(start: Vector) -> Vector:
    """The honest product as (B Q)(Q^-1 A), Q with a condition number of about 10,000."""
    q = np.linalg.qr(np.random.default_rng(7).normal(size=(RANK, RANK))).Q @ np.diag([100.0, 1.0, 0.01])

    def change(a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
        a[:], b[:] = np.linalg.solve(q, a), b @ q

    return from_local(start, change)


def tiny_b(start: Vector) -> Vector:
    """The honest change of A, and of B one part in a million: a short product, as FLTrust scales up."""
    update = honest()[0]
    LAYER.of(update)[1][:] *= 1e-6
    return update


def no_product(start: Vector) -> Vector:
    """Long changes of A that B = dB = 0 hides; where B is not zero, of the directions in which B is not."""

    def change(a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
        old_a, old_b = LAYER.of(start.astype(np.float64))
        a[:], b[:] = (50 * drawn(8)[: a.size].reshape(a.shape), 0.0) if not old_b.any() else (old_a / 50, old_b * 50)

    return from_local(start, change)


ATTACKS = (other_gauge, skewed_gauge, tiny_b, no_product)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("round_number", [1, 2])
@pytest.mark.parametrize("name", ROBUST)
def test_factors_that_a_liar_chooses_do_not_spoil_the_step(
    name: str, round_number: int, attack: Callable[[Vector], Vector]
) -> None:
    """One of five: the step's product is as far from the honest banks' mean as one honest bank missing can put it (a
    product of zero in a mean of five takes a fifth), and A and B are no longer than with five honest banks, nearly.
    """
    start, banks = start_of(round_number), honest()
    mean = np.mean([product(start + update) for update in banks], axis=0) - product(start)
    attacked = step_of(name, start, [attack(start), *banks[1:]])
    assert np.linalg.norm(product(attacked) - product(start) - mean) < 0.4 * np.linalg.norm(mean)
    for found, old in zip(LAYER.of(attacked), LAYER.of(step_of(name, start, banks)), strict=True):
        assert np.linalg.norm(found) < 1.1 * np.linalg.norm(old)


@pytest.mark.parametrize("attack", [other_gauge, skewed_gauge])
@pytest.mark.parametrize("name", ROBUST)
def test_the_step_does_not_depend_on_how_a_product_is_written(name: str, attack: Callable[[Vector], Vector]) -> None:
    start, banks = start_of(2), honest()
    one, other = step_of(name, start, banks), step_of(name, start, [attack(start), *banks[1:]])
    np.testing.assert_allclose(other, one, atol=2e-4)


@pytest.mark.parametrize("name", ROBUST)
def test_honest_banks_move_a_robust_rule_as_their_mean_does(name: str) -> None:
    """Banks that send the same: the product is theirs, and the factors stay near those of the plain mean."""
    start, update = start_of(2), drawn(1, 0.01)
    found = step_of(name, start, [update] * 5)
    np.testing.assert_allclose(product(found), product(start + update), atol=1e-6)
    for own, averaged, old in zip(LAYER.of(found), LAYER.of(start + update), LAYER.of(start), strict=True):
        assert np.linalg.norm(own - averaged) < 0.05 * np.linalg.norm(old)


def test_no_share_of_fltrust_makes_the_step_longer_than_the_root() -> None:
    start, root = start_of(2), honest()[-1]
    longest = np.linalg.norm(product(start + root) - product(start))
    for factor in (1e-4, 1e-2, 1.0, 100.0):
        found = step_of("fltrust", start, [np.float32(factor) * drawn(number, 0.05) for number in (1, 3)] + [root])
        assert np.linalg.norm(product(found) - product(start)) < 1.2 * longest  # what the cut to the rank can add


def test_an_updates_length_is_exact_where_its_parts_cancel() -> None:
    """(B Q)(Q^-1 A) in numbers that float32 holds exactly: parts thousands of times as long as B A, of sum zero. Their
    inner products, summed, would leave a length of about 1e-4 of B A, or a negative square.
    """
    start = (np.round(start_of(2) * 256) / 256).astype(np.float32)
    a, b = LAYER.of(start)
    q = np.eye(RANK)
    q[0, 1], q[2, 1] = 4095.0, 1365.0
    update = np.zeros_like(start)
    LAYER.of(update)[0][:], LAYER.of(update)[1][:] = np.linalg.inv(q) @ a - a, b @ q - b
    np.testing.assert_array_equal(product(start + update), product(start))
    assert abs(gram(start, replies([update]))[0, 0]) < (1e-10 * np.linalg.norm(product(start))) ** 2


def test_a_product_keeps_the_gram_of_a_and_loses_nothing() -> None:
    random = np.random.default_rng(0)
    a, rows = random.normal(size=(RANK, D_IN)), np.linalg.qr(random.normal(size=(D_IN, RANK))).Q.T
    for size in range(RANK + 1):
        made = Product(random.normal(size=(D_OUT, size)), rows[:size])
        found = near(made, a)
        np.testing.assert_allclose(found.left @ found.right, made.left @ made.right, atol=1e-12)
        np.testing.assert_allclose(found.right @ found.right.T, a @ a.T, atol=1e-12)
    np.testing.assert_allclose(near(Product(np.zeros((D_OUT, 0)), rows[:0]), a).right, a, atol=1e-12)


def test_near_is_finite_where_a_has_no_length_in_a_direction() -> None:
    rows = np.linalg.qr(np.random.default_rng(0).normal(size=(D_IN, RANK))).Q.T
    made = Product(np.ones((D_OUT, RANK)), rows)
    for a in (np.zeros((RANK, D_IN)), np.diag([1.0, 1.0, 0.0]) @ rows):
        found = near(made, a)
        np.testing.assert_allclose(found.left @ found.right, made.left @ made.right, atol=1e-9)


def test_more_banks_than_are_summed_at_once_give_the_same_step() -> None:
    """norm_clip has no limit of banks: the sum is cut to many ranks on the way, here to more than there are."""
    start, banks = start_of(2), [drawn(1, 0.05) + drawn(2 + bank, 0.01) for bank in range(2 * MOST_BANKS + 5)]
    found = step_of("norm_clip", start, banks)
    lengths = [np.linalg.norm(product(start + update) - product(start)) for update in banks]
    factors = np.minimum(1, np.median(lengths) / lengths)
    exact = product(start) + np.mean(
        [f * (product(start + update) - product(start)) for f, update in zip(factors, banks, strict=True)], axis=0
    )
    left, values, right = np.linalg.svd(exact)
    np.testing.assert_allclose(product(found), (left[:, :RANK] * values[:RANK]) @ right[:RANK], atol=1e-6)
