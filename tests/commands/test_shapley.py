"""Shapley values against their definition, and sampled ones against what is known of the game."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from fedfinlora.commands.shapley import EXACT_UP_TO, combination


def shapley_by_permutations(players: list[str], value: Callable[[frozenset[str]], float]) -> list[float]:
    """The definition: the mean over all orders of what a player adds to those before it."""
    orders = list(itertools.permutations(players))
    return [
        sum(
            value(frozenset(order[: order.index(player) + 1])) - value(frozenset(order[: order.index(player)]))
            for order in orders
        )
        / len(orders)
        for player in players
    ]


def test_shapley_values_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    worth: dict[frozenset[str], float] = {}

    def value(coalition: frozenset[str]) -> float:
        return worth.setdefault(coalition, float(rng.random()))

    players = ["a", "b", "c", "d"]
    made = combination(players, 0, 0)
    assert len(made.coalitions) == 2**4
    found = made.coefficients @ [value(one) for one in made.coalitions]
    np.testing.assert_allclose(found, shapley_by_permutations(players, value))
    assert found.sum() == pytest.approx(value(frozenset(players)) - value(frozenset())), "they share out the whole gain"


def test_sampled_shapley_values_come_with_their_error() -> None:
    players = [f"bank-{number}" for number in range(EXACT_UP_TO + 1)]
    made = combination(players, 200, 0)

    def value(coalition: frozenset[str]) -> float:
        return math.sqrt(len(coalition)) + ("bank-3" in coalition)

    scores = [value(one) for one in made.coalitions]
    found, errors = made.coefficients @ scores, made.errors(scores)
    assert errors is not None
    exact = math.sqrt(len(players)) / len(players)
    for player, one, error in zip(players, found, errors, strict=True):
        assert abs(one - exact - (player == "bank-3")) < 4 * error + 1e-9
        assert 0 < error < 0.1
    assert found.sum() == pytest.approx(scores[1] - scores[0])
    same = combination(players, 200, 0)
    assert same.coalitions == made.coalitions
