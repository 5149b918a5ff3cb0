"""The integer grid: what a contribution can be on it, and that the accounting covers what the machine draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfinlora.errors import UserError
from fedfinlora.privacy.grid import Grid
from fedfinlora.privacy.per_example import add_to_grid
from fedfinlora.privacy.randomness import Stream, poisson_sample, reproducible_keys, secret_keys, unit_seed


def contribution(vector: np.ndarray, grid: Grid) -> np.ndarray:
    """(d,) what one unit of this gradient adds to the sum, in steps."""
    import torch

    gradient = torch.tensor(np.asarray(vector, np.float32)).view(1, 1, -1)
    sums = {"w": torch.zeros(1, gradient.shape[2], dtype=torch.float64)}
    add_to_grid({"w": gradient.clone()}, grid, sums)
    found: np.ndarray = sums["w"].numpy().ravel()
    return found


finite = st.floats(-(2.0**60), 2.0**60, width=32)


@given(
    vector=st.lists(finite, min_size=1, max_size=40),
    clip_norm=st.floats(1e-6, 1e6),
    noise=st.one_of(st.just(0.0), st.floats(0.05, 300.0)),
)
def test_a_contribution_is_whole_numbers_of_norm_at_most_the_clip_norm(
    vector: list[float], clip_norm: float, noise: float
) -> None:
    grid = Grid(clip_norm, noise, len(vector))
    steps = contribution(np.array(vector), grid)
    assert (steps == np.rint(steps)).all()
    assert sum(int(value) ** 2 for value in steps) <= grid.bound_steps**2
    assert math.sqrt(sum(int(value) ** 2 for value in steps)) * grid.step <= clip_norm * (1 + 1e-12)


@given(vector=st.lists(st.floats(-1.0, 1.0, width=32), min_size=1, max_size=40))
def test_rounding_moves_a_contribution_by_under_0_001_clip_norms(vector: list[float]) -> None:
    grid = Grid(1.0, 1.0, len(vector))
    norm = float(np.linalg.norm(vector))
    clipped = np.array(vector) * min(1.0, 1.0 / norm if norm else 1.0)
    assert np.linalg.norm(contribution(np.array(vector), grid) * grid.step - clipped) <= 1e-3


def test_the_edge_cases_of_the_table() -> None:
    grid = Grid(1.0, 1.0, 4)
    assert not contribution(np.zeros(4), grid).any()
    for wrong in (np.nan, np.inf, -np.inf):
        assert not contribution(np.array([1.0, wrong, 0.0, 0.0]), grid).any()
    for clip_norm in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="no grid"):
            Grid(clip_norm, 1.0, 4)
    with pytest.raises(UserError, match=r"Raise privacy\.epsilon"):
        Grid(1.0, 1e6, 100_000)
    with pytest.raises(UserError, match="hides nothing"):
        Grid(1.0, 1e-4, 4)
    assert not Grid(1.0, 0.0, 4).noise(10, Stream(secret_keys().noise)).any()


@pytest.mark.parametrize("noise", [0.3, 1.0, 2.0, 40.0])
@pytest.mark.parametrize("size", [1, 480, 322_560])
def test_noise_has_the_stated_multiplier_exactly(noise: float, size: int) -> None:
    grid = Grid(0.5, noise, size)
    assert 2.0**grid.log2_scale * grid.step == pytest.approx(noise * 0.5, rel=1e-14)
    drawn = grid.noise(20_000, Stream(secret_keys().noise)) * grid.step
    assert drawn.std() == pytest.approx(noise * 0.5, rel=0.03)


def test_epsilon_of_the_discrete_noise_is_that_of_the_continuous_one() -> None:
    """Google's accountant for the discrete Gaussian itself, at the smallest scale and the worst direction, one
    coordinate.
    """
    from dp_accounting.pld import privacy_loss_distribution as pld

    from fedfinlora.privacy.accounting import gaussian_epsilon

    grid = Grid(1.0, 1.0, 1)
    scale, bound = 2.0**grid.log2_scale, math.floor(grid.bound_steps)
    for steps in (1, 8):
        discrete = pld.from_discrete_gaussian_mechanism(
            scale, sensitivity=bound, value_discretization_interval=1e-3
        ).self_compose(steps)
        assert discrete.get_epsilon_for_delta(1e-5) == pytest.approx(gaussian_epsilon(math.sqrt(steps), 1e-5), rel=2e-3)


def test_moments_of_the_shifted_discrete_gaussian_equal_the_continuous() -> None:
    """For integer shifts and orders sum q (p / q)^k = exp(k (k - 1) shift^2 / (2 S^2)): what RDP of the subsampled
    mechanism is made of.
    """
    scale, reach = 16.0, 4000
    places = np.arange(-reach, reach + 1.0)
    for shift in (1, 5, 16):
        for order in (2, 3, 8):
            logs = -((places - order * shift) ** 2) / (2 * scale**2)
            moment = np.exp(logs).sum() / np.exp(-(places**2) / (2 * scale**2)).sum()
            assert moment == pytest.approx(1.0, rel=1e-12), "the exact factor is all that is left"


class TestRandomness:
    def test_keys_of_draws_noise_and_masks_are_separate_and_fresh(self) -> None:
        one, other = secret_keys(), secret_keys()
        found = {one.draws, one.noise, one.masks, other.draws, other.noise, other.masks}
        assert len(found) == 6
        assert all(len(key) == 32 for key in found)

    def test_no_seed_of_any_library_repeats_a_secret_draw(self) -> None:
        import random

        import torch

        found = []
        for _ in range(2):
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            torch.manual_seed(0)
            found.append(Stream(secret_keys().noise).words(100))
        assert not np.array_equal(found[0], found[1])

    def test_reproducible_keys_repeat_and_differ_by_step_bank_and_seed(self) -> None:
        assert reproducible_keys(0, "north", 1) == reproducible_keys(0, "north", 1)
        keys = [
            reproducible_keys(*parts) for parts in ((0, "north", 1), (0, "north", 2), (0, "south", 1), (1, "north", 1))
        ]
        assert len({key.noise for key in keys}) == 4

    def test_the_stream_is_chacha20(self) -> None:
        """The first block for the all-zero key and nonce (RFC 8439, appendix A.1, test vector 1)."""
        words = Stream(bytes(32)).words(2)
        assert words.tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28"

    def test_one_unit_more_leaves_the_coins_of_those_before_it(self) -> None:
        key = secret_keys().draws
        short, long = (poisson_sample(units, 0.3, Stream(key)) for units in (50, 51))
        assert [unit for unit in long if unit < 50] == short

    def test_every_unit_is_drawn_with_the_sampling_rate_on_its_own(self) -> None:
        stream = Stream(secret_keys().draws)
        drawn = np.zeros((4000, 20))
        for trial in drawn:
            trial[poisson_sample(20, 0.3, stream)] = 1
        assert np.abs(drawn.mean(axis=0) - 0.3).max() < 0.045
        assert np.abs(np.corrcoef(drawn.T) - np.eye(20)).max() < 0.09
        assert drawn.sum(axis=1).std() == pytest.approx(math.sqrt(20 * 0.3 * 0.7), rel=0.08)

    def test_masks_of_units_have_seeds_of_their_own(self) -> None:
        masks = secret_keys().masks
        seeds = {unit_seed(masks, unit) for unit in range(300)}
        assert len(seeds) == 300
        assert unit_seed(secret_keys().masks, 0) not in seeds
