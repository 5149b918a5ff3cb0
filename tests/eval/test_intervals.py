"""Intervals: Wilson's against SciPy and its coverage, the bootstrap against SciPy's, and the intervals of means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eval.metrics.intervals import (
    RESAMPLES,
    bootstrap_interval,
    estimate_of,
    mean_interval,
    sample_and_resamples,
    wilson_interval,
)


def test_wilson_interval_by_hand() -> None:
    # p = 0.5, n = 4, z² = 3.8415: centre 0.5, half = z / (1 + z²/4) · sqrt(1/16 + z²/64) = 0.3500
    assert wilson_interval(2, 4) == pytest.approx((0.1500, 0.8500), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson_interval(0, 0) is None
    with pytest.raises(ValueError):
        wilson_interval(3, 2)


@given(st.integers(1, 10**7).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_lies_in_0_1_and_contains_the_share(case) -> None:
    hits, n = case
    low, high = wilson_interval(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    mirrored = wilson_interval(n - hits, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)


@given(st.integers(1, 500), st.integers(2, 20))
def test_wilson_interval_narrows_with_more_rows(n, times) -> None:
    def width(interval):
        return interval[1] - interval[0]

    assert width(wilson_interval(n // 2 * times, n * times)) < width(wilson_interval(n // 2, n))


@pytest.mark.parametrize("n", [1, 7, 50, 1200])
def test_wilson_interval_is_scipys(n) -> None:
    for hits in {0, n // 3, n}:
        expected = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
        assert wilson_interval(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("n", [10, 50, 400])
def test_wilson_interval_covers_the_true_share_95_times_in_100(n) -> None:
    shares = np.linspace(0.05, 0.95, 181)
    intervals = np.array([wilson_interval(hits, n) for hits in range(n + 1)])
    covers = (intervals[:, :1] <= shares) & (shares <= intervals[:, 1:])  # (hits, shares)
    coverage = (stats.binom.pmf(np.arange(n + 1)[:, None], n, shares) * covers).sum(axis=0)  # exact, not simulated
    assert 0.945 < coverage.mean() < 0.965
    assert coverage.min() > 0.83


# --- bootstrap ------------------------------------------------------------------------------------


def test_the_first_line_is_the_sample_and_every_resample_has_as_many_rows() -> None:
    times = sample_and_resamples([3, 5, 0, 2])
    assert times.shape == (1 + RESAMPLES, 4)
    assert times[0].tolist() == [3, 5, 0, 2]
    assert set(times.sum(axis=1)) == {10}
    assert times[:, 2].any() == np.False_
    # The mean of a multinomial count is its share of the rows, with standard error sqrt(n p (1-p) / RESAMPLES) = 0.05.
    assert times[1:].mean(axis=0) == pytest.approx([3, 5, 0, 2], abs=0.2)


def test_resamples_are_the_same_in_every_run() -> None:
    assert (sample_and_resamples([3, 5]) == sample_and_resamples([3, 5])).all()


def test_no_rows_give_no_resamples() -> None:
    assert sample_and_resamples([]).shape == (1, 0)


def test_bootstrap_interval_of_a_mean_is_scipys() -> None:
    numbers = np.random.default_rng(5).exponential(size=60)
    times = sample_and_resamples([1] * 60)
    ours = bootstrap_interval(times @ numbers / 60, highest=np.inf)
    theirs = stats.bootstrap((numbers,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.08 * width)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_bootstrap_interval_contains_the_estimate(numbers) -> None:
    times = sample_and_resamples([1] * len(numbers))
    values = times @ np.array(numbers) / len(numbers)
    low, high = bootstrap_interval(values)
    assert 0 <= low <= estimate_of(values) <= high <= 1


def test_undefined_resamples_are_dropped_and_may_leave_no_interval() -> None:
    assert bootstrap_interval(np.array([0.5, np.nan, 0.4, 0.6])) == pytest.approx([0.405, 0.595])
    assert bootstrap_interval(np.array([np.nan, 0.4])) is None
    assert bootstrap_interval(np.array([0.5, np.nan])) == (0.5, 0.5)
    assert estimate_of(np.array([np.nan])) is None


def test_a_bias_of_the_resamples_moves_the_interval_back() -> None:
    values = np.array([0.5, *np.linspace(0.6, 0.8, 101)])  # resampled 0.7 on average
    assert bootstrap_interval(values) == pytest.approx([0.405, 0.595])
    assert (
        bootstrap_interval(np.array([0.05, *np.linspace(0.2, 0.8, 101)]))[0] == 0.0
    )  # never below what a figure can be


# --- means ----------------------------------------------------------------------------------------


def test_interval_of_a_mean_by_hand() -> None:
    # Below: sqrt(0.1² + 0.2²) / 2 = 0.1118; above: sqrt(0.3² + 0²) / 2 = 0.15.
    assert mean_interval([(0.5, [0.4, 0.8]), (0.7, [0.5, 0.7])]) == pytest.approx([0.6 - 0.1118, 0.75], abs=1e-4)
    assert mean_interval([(0.5, [0.4, 0.8])]) == pytest.approx([0.4, 0.8])


def test_interval_of_a_mean_needs_all_of_them() -> None:
    assert mean_interval([]) is None
    assert mean_interval([(0.5, [0.4, 0.6]), (0.7, None)]) is None


def test_interval_of_a_mean_is_that_of_a_stratified_bootstrap() -> None:
    shares, rows = np.array([0.2, 0.5, 0.9]), np.array([100, 400, 250])
    hits = (shares * rows).astype(int)
    ours = mean_interval([(h / n, wilson_interval(h, n)) for h, n in zip(hits.tolist(), rows.tolist(), strict=True)])
    drawn = (np.random.default_rng(0).binomial(rows, shares, size=(20_000, 3)) / rows).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert ours == pytest.approx([low, high], abs=0.08 * (high - low))
