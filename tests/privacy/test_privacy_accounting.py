"""Epsilons against published ones, against a second library, and against each other."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfinlora.errors import UserError
from fedfinlora.privacy.accounting import Steps, default_delta, epsilon, noise_multiplier_for, rdp_epsilon

SETTINGS = [
    (1 / 200, 0.6, 200, 1e-4),
    (128 / 12_000, 0.55, 375, 1e-5),
    (0.01, 1.0, 1000, 1e-5),
    (0.1, 2.0, 100, 1e-3),
    (1.0, 5.0, 10, 1e-5),
    (0.0312, 0.461, 8, 1e-5),
    (0.25, 1.5, 40, 1e-5),
    (0.125, 3.0, 200, 1e-6),
    (0.02, 0.8, 2000, 1e-6),
    (0.5, 8.0, 100, 1e-5),
]
"""(sampling rate, noise multiplier, steps, delta)."""


def pld_epsilon(sampling_rate: float, noise: float, steps: int, delta: float) -> float:
    """Google's accountant (privacy loss distributions): another library, another method."""
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    event = dp_event.PoissonSampledDpEvent(sampling_rate, dp_event.GaussianDpEvent(noise))
    accountant.compose(dp_event.SelfComposedDpEvent(event, steps))
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize(("rate", "noise", "steps", "delta"), SETTINGS)
def test_prv_agrees_with_googles_pld_and_rdp_lies_above(rate: float, noise: float, steps: int, delta: float) -> None:
    ours = epsilon([Steps(rate, noise, steps)], delta)
    theirs = pld_epsilon(rate, noise, steps, delta)
    assert ours == pytest.approx(theirs, rel=0.01, abs=0.03)
    assert ours >= theirs - 1e-3, "an upper bound, up to the discretisation of the other"
    assert rdp_epsilon([Steps(rate, noise, steps)], delta) >= ours - 1e-9


def test_a_different_mechanism_in_another_run_adds_up_as_pld_says() -> None:
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    spent = [Steps(0.01, 1.0, 300), Steps(0.05, 2.0, 100)]
    for steps in spent:
        event = dp_event.PoissonSampledDpEvent(steps.sampling_rate, dp_event.GaussianDpEvent(steps.noise_multiplier))
        accountant.compose(dp_event.SelfComposedDpEvent(event, steps.count))
    assert epsilon(spent, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=0.01, abs=0.03)


def test_the_plain_gaussian_mechanism_has_the_epsilon_of_its_own_theorem() -> None:
    """Balle and Wang 2018, theorem 8: delta = Phi(1/(2s) - eps s) - e^eps Phi(-1/(2s) - eps s), with s the noise
    multiplier.
    """
    from statistics import NormalDist

    noise, delta = 1.5, 1e-5
    found = epsilon([Steps(1.0, noise, 1)], delta)
    phi = NormalDist().cdf

    def delta_at(eps: float) -> float:
        return phi(1 / (2 * noise) - eps * noise) - math.exp(eps) * phi(-1 / (2 * noise) - eps * noise)

    assert delta_at(found) <= delta * 1.001
    assert delta_at(found - 0.05) > delta


def test_the_published_noise_multipliers_of_epsilon_8() -> None:
    """12,000 rows, batch 128, 4 epochs, delta 1e-5: .533 by PRV."""
    assert noise_multiplier_for(8.0, 1e-5, 128 / 12_000, 375) == pytest.approx(0.533, abs=0.01)


@settings(max_examples=15, deadline=None)
@given(
    target=st.sampled_from([0.5, 1.0, 3.0, 8.0]),
    rate=st.sampled_from([0.002, 0.02, 0.2, 1.0]),
    steps=st.integers(1, 400),
)
def test_calibrated_noise_meets_the_target_epsilon_without_much_excess(target: float, rate: float, steps: int) -> None:
    noise = noise_multiplier_for(target, 1e-5, rate, steps)
    assert epsilon([Steps(rate, noise, steps)], 1e-5) <= target
    assert epsilon([Steps(rate, 0.97 * noise, steps)], 1e-5) > target or noise < 0.02


def test_equal_steps_count_the_same_in_one_piece_or_several() -> None:
    assert epsilon([Steps(0.01, 1.0, 10)] * 5, 1e-5) == epsilon([Steps(0.01, 1.0, 50)], 1e-5)


def test_more_steps_cost_more() -> None:
    spent = [epsilon([Steps(0.01, 1.0, count)], 1e-5) for count in (10, 100, 1000)]
    assert spent == sorted(spent)
    assert spent[0] < spent[-1]


def test_no_steps_cost_nothing_and_no_noise_promises_nothing() -> None:
    assert epsilon([], 1e-5) == rdp_epsilon([], 1e-5) == 0.0
    assert epsilon([Steps(0.01, 1.0, 10), Steps(0.01, 0.0, 1)], 1e-5) == math.inf
    assert rdp_epsilon([Steps(0.01, 0.0, 1)], 1e-5) == math.inf


@pytest.mark.parametrize("noise", [0.4, 0.2, 0.05, 0.01])
def test_little_noise_gives_a_large_epsilon_and_does_not_take_all_memory(noise: float) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert 20 < epsilon([Steps(0.5, noise, 1000)], 1e-5) < math.inf
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, "KiB"


@pytest.mark.parametrize("broken", [(0.0, 1.0, 1), (1.1, 1.0, 1), (0.1, -1.0, 1), (0.1, 1.0, -1), (math.nan, 1.0, 1)])
def test_steps_that_cannot_be_are_refused(broken: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="are no steps"):
        Steps(*broken)


def test_an_epsilon_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(UserError, match=r"Raise privacy\.epsilon"):
        noise_multiplier_for(1e-4, 1e-5, 1.0, 100_000)


@pytest.mark.parametrize("units", [1, 9, 1000, 14_000, 15_000, 1_000_000])
def test_default_delta_is_at_most_1e_5_and_far_below_one_over_the_units(units: int) -> None:
    assert default_delta(units) == pytest.approx(min(1e-5, units**-1.2))
    assert default_delta(units) <= 0.2 / units
