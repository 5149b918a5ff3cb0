"""What pairs of measurements say, and when they say nothing."""

from __future__ import annotations

import pytest

from benchmarks.benches.paired import MEASURED, NO_VERDICT, alternately, judged


def test_the_ratio_is_the_median_of_the_pairs() -> None:
    found = judged([1.0, 2.0, 1.0, 1.0], [2.0, 4.2, 1.9, 2.0])
    assert found["ratio"] == pytest.approx(2.0)
    assert found["ratio_range"] == pytest.approx([1.9, 2.1])
    assert found["verdict"] == MEASURED


def test_a_machine_that_slows_both_sides_of_a_pair_changes_nothing() -> None:
    slow = [1.0, 5.0, 2.0, 7.0, 1.0]
    assert judged(slow, [3 * one for one in slow])["spread"] == pytest.approx(0.0)


def test_pairs_that_disagree_give_no_verdict() -> None:
    assert judged([1.0] * 6, [1.2, 5.6, 1.3, 4.0, 2.0, 3.0])["verdict"] == NO_VERDICT


def test_one_pair_in_eight_may_go_wrong() -> None:
    assert judged([1.0] * 8, [2.0] * 7 + [9.0])["verdict"] == MEASURED


def test_few_pairs_have_no_spread() -> None:
    found = judged([1.0, 1.0], [2.0, 9.0])
    assert (found["spread"], found["verdict"]) == (None, MEASURED)


def test_each_side_comes_first_in_every_second_turn() -> None:
    order: list[str] = []

    def side(name: str, seconds: float) -> float:
        order.append(name)
        return seconds

    for turn in range(2):
        assert alternately(turn, lambda: side("ours", 1.0), lambda: side("reference", 2.0)) == (1.0, 2.0)
    assert order == ["ours", "reference", "reference", "ours"]
