"""The server rules against hand-computed numbers and against Flower's own strategies."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import STRATEGIES, StrategyConfig
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.privacy.shares import capped
from fedfinlora.run.checkpoint import Checkpoint, save_checkpoint
from fedfinlora.run.folder import write_config
from server_app.replies import weighted_mean
from server_app.strategies import RULES, rule_of
from server_app.strategies.strategy import Arrays, MeanStrategy, Vector64

ONE = np.float32([1.0, 2.0, 3.0])
OTHER = np.float32([5.0, -2.0, 0.0])
FINITE = st.floats(-1e3, 1e3, width=32)


def step_of(config: StrategyConfig, mean: Vector64, own: Arrays) -> tuple[Vector64, dict[str, Vector64]]:
    """One step of a rule's arithmetic."""
    rule = rule_of(config, 1)
    assert isinstance(rule, MeanStrategy)
    return rule.step(mean, own, config.server_learning_rate)


def steps_of(config: StrategyConfig, deltas: list[NDArray[Any]]) -> list[NDArray[np.float64]]:
    """The steps of a rule over several rounds, its state carried along."""
    state: dict[str, NDArray[np.float64]] = {}
    steps = []
    for delta in deltas:
        step, state = step_of(config, np.asarray(delta, np.float64), state)
        assert all(value.dtype == np.float64 for value in state.values())
        steps.append(step)
    return steps


def test_every_strategy_of_the_schema_has_its_rule() -> None:
    assert set(RULES) == set(STRATEGIES)


# --- weighted mean --------------------------------------------------------------------------------


def test_weighted_mean_of_two_banks_by_hand() -> None:
    np.testing.assert_allclose(weighted_mean([ONE, OTHER], [3, 1]), [2.0, 1.0, 2.25], rtol=0, atol=0)
    assert weighted_mean([ONE, OTHER], [3, 1]).dtype == np.float64


def test_equal_weights_give_the_plain_mean() -> None:
    for weight in (1.0, 0.5, 1000.0):
        np.testing.assert_allclose(weighted_mean([ONE, OTHER], [weight, weight]), [3.0, 0.0, 1.5])


def test_one_bank_gives_its_own_delta() -> None:
    np.testing.assert_array_equal(weighted_mean([ONE], [160.0]), ONE.astype(np.float64))


@pytest.mark.parametrize("weights", [[0, 1], [1, -1], [math.nan, 1], [math.inf, 1], [0, 0]])
def test_weights_that_are_not_positive_and_finite_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        weighted_mean([ONE, OTHER], weights)


@pytest.mark.parametrize(("deltas", "weights"), [([], []), ([ONE], [1, 2]), ([ONE, OTHER[:2]], [1, 1])])
def test_deltas_that_do_not_go_together_are_refused(deltas: list[Any], weights: list[float]) -> None:
    with pytest.raises(ValueError):
        weighted_mean(deltas, weights)


BANKS = st.integers(1, 6).flatmap(
    lambda count: st.lists(
        st.tuples(st.lists(FINITE, min_size=4, max_size=4), st.integers(1, 10**6)), min_size=count, max_size=count
    )
)


@given(BANKS, st.randoms(use_true_random=False))
def test_permuting_the_banks_changes_nothing_once_they_are_sorted(
    banks: list[tuple[list[float], int]], random: Any
) -> None:
    named = [(f"bank-{index}", np.float32(delta), weight) for index, (delta, weight) in enumerate(banks)]
    arrived = random.sample(named, len(named))

    def mean(replies: list[tuple[str, NDArray[np.float32], int]]) -> bytes:
        ordered = sorted(replies, key=lambda reply: reply[0])
        return weighted_mean([delta for _, delta, _ in ordered], [weight for *_, weight in ordered]).tobytes()

    assert mean(arrived) == mean(named)


@given(BANKS, st.integers(1, 1000))
def test_the_weighted_mean_lies_between_updates_and_ignores_weight_scale(
    banks: list[tuple[list[float], int]], scale: int
) -> None:
    deltas = [np.float32(delta) for delta, _ in banks]
    weights = [float(weight) for _, weight in banks]
    mean = weighted_mean(deltas, weights)
    assert (mean <= np.max(deltas, axis=0) + 1e-9).all()
    assert (mean >= np.min(deltas, axis=0) - 1e-9).all()
    np.testing.assert_allclose(
        weighted_mean(deltas, [weight * scale for weight in weights]), mean, rtol=1e-12, atol=1e-9
    )
    np.testing.assert_allclose(mean, np.average(np.float64(deltas), axis=0, weights=weights), rtol=1e-12, atol=1e-9)


def test_the_mean_is_taken_in_double_precision() -> None:
    big, small = np.float32([1e8]), np.float32([1.0])
    assert weighted_mean([big, small, -big], [1, 1, 1])[0] == pytest.approx(1 / 3, rel=1e-6)


# --- fedavg and fedavgm ---------------------------------------------------------------------------


def test_fedavg_is_the_mean_times_the_server_learning_rate() -> None:
    step, state = step_of(StrategyConfig(server_learning_rate=0.5), np.float64([2.0, -4.0]), {})
    np.testing.assert_array_equal(step, [1.0, -2.0])
    assert state == {}


@given(st.lists(st.lists(FINITE, min_size=3, max_size=3), min_size=1, max_size=4), st.booleans())
def test_fedavgm_without_momentum_is_fedavg(deltas: list[list[float]], nesterov: bool) -> None:
    arrays = [np.float64(delta) for delta in deltas]
    config = StrategyConfig(name="fedavgm", momentum=0.0, nesterov=nesterov, server_learning_rate=0.7)
    for ours, theirs in zip(
        steps_of(config, arrays), steps_of(StrategyConfig(server_learning_rate=0.7), arrays), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_fedavgm_by_hand_over_two_rounds() -> None:
    deltas = [np.float64([1.0, 2.0]), np.float64([3.0, -1.0])]
    plain = steps_of(StrategyConfig(name="fedavgm", momentum=0.5, nesterov=False, server_learning_rate=2.0), deltas)
    np.testing.assert_allclose(plain, [[2.0, 4.0], [7.0, 0.0]])  # v = [1, 2], then 0.5 v + [3, -1] = [3.5, 0]
    ahead = steps_of(StrategyConfig(name="fedavgm", momentum=0.5, nesterov=True, server_learning_rate=2.0), deltas)
    np.testing.assert_allclose(ahead, [[3.0, 6.0], [9.5, -2.0]])  # delta + 0.5 v: [1.5, 3], then [4.75, -1]


@pytest.mark.parametrize("nesterov", [True, False])
def test_fedavgm_equals_torch_sgd_with_momentum_on_the_negative_delta(nesterov: bool) -> None:
    import torch

    draw = np.random.default_rng(0)
    deltas = [draw.normal(size=5) for _ in range(6)]
    ours = steps_of(StrategyConfig(name="fedavgm", momentum=0.9, nesterov=nesterov, server_learning_rate=0.3), deltas)
    weight = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    sgd = torch.optim.SGD([weight], lr=0.3, momentum=0.9, nesterov=nesterov)
    for delta, step in zip(deltas, ours, strict=True):
        before = weight.detach().clone()
        weight.grad = torch.from_numpy(-delta)
        sgd.step()
        np.testing.assert_allclose(step, (weight.detach() - before).numpy(), rtol=1e-12, atol=1e-15)


def flower_reply(array: NDArray[np.float64], rows: int) -> Any:
    """A reply as Flower's strategies expect it: the bank's new weights and how many rows it has."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

    request = Message(RecordDict({"config": ConfigRecord({})}), dst_node_id=1, message_type="train")
    content = RecordDict(
        {"arrays": ArrayRecord({"vector": Array(array)}), "metrics": MetricRecord({"num-examples": rows, "loss": 0.0})}
    )
    return Message(content, reply_to=request)


def flower_adapters(strategy: Any, start: NDArray[np.float64], rounds: list[list[tuple[NDArray[Any], int]]]) -> Any:
    """The global weights after each round of one of Flower's strategies fed with weights = global + delta."""
    from flwr.app import Array, ArrayRecord

    weights, after = start, []
    strategy.current_arrays = ArrayRecord({"vector": Array(start)})
    for number, banks in enumerate(rounds, 1):
        replies = [flower_reply(weights + delta, rows) for delta, rows in banks]
        arrays, _ = strategy.aggregate_train(number, replies)
        weights = arrays["vector"].numpy()
        after.append(weights)
    return after


@pytest.mark.parametrize(("momentum", "rate"), [(0.0, 1.0), (0.9, 1.0), (0.6, 0.5)])
def test_fedavg_and_fedavgm_equal_flowers_own(momentum: float, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.serverapp.strategy import FedAvgM
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)

    draw = np.random.default_rng(1)
    rounds = [[(draw.normal(size=4).astype(np.float32), int(rows)) for rows in (30, 10, 5)] for _ in range(4)]
    start = draw.normal(size=4)
    theirs = flower_adapters(FedAvgM(server_learning_rate=rate, server_momentum=momentum), start, rounds)
    name = "fedavgm" if momentum else "fedavg"
    config = StrategyConfig(name=name, momentum=momentum, nesterov=False, server_learning_rate=rate)
    means = [weighted_mean([delta for delta, _ in banks], [rows for _, rows in banks]) for banks in rounds]
    ours = start + np.cumsum(steps_of(config, means), axis=0)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


# --- fedadam --------------------------------------------------------------------------------------


def test_fedadam_by_hand_over_two_rounds() -> None:
    config = StrategyConfig(name="fedadam", beta1=0.5, beta2=0.5, tau=0.1, server_learning_rate=2.0)
    first, second = steps_of(config, [np.float64([1.0]), np.float64([3.0])])
    # m = 0.5, v = 0.5 * 0.01 + 0.5 = 0.505; then m = 1.75, v = 0.2525 + 4.5 = 4.7525
    assert first[0] == pytest.approx(2 * 0.5 / (math.sqrt(0.505) + 0.1))
    assert second[0] == pytest.approx(2 * 1.75 / (math.sqrt(4.7525) + 0.1))


def test_fedadam_equals_the_papers_loop() -> None:
    draw = np.random.default_rng(2)
    deltas = [draw.normal(size=3) * 1e-2 for _ in range(5)]
    config = StrategyConfig(name="fedadam", beta1=0.9, beta2=0.99, tau=1e-3, server_learning_rate=3e-3)
    for place, steps in enumerate(np.transpose(steps_of(config, deltas))):
        m, v = 0.0, 1e-3**2
        for delta, step in zip(deltas, steps, strict=True):
            m = 0.9 * m + 0.1 * float(delta[place])
            v = 0.99 * v + 0.01 * float(delta[place]) ** 2
            assert step == pytest.approx(3e-3 * m / (math.sqrt(v) + 1e-3), rel=1e-12)


def test_fedadam_with_bias_correction_equals_torch_adam() -> None:
    import torch

    draw = np.random.default_rng(3)
    deltas = [draw.normal(size=5) for _ in range(6)]
    config = StrategyConfig(
        name="fedadam", beta1=0.8, beta2=0.95, tau=1e-8, server_learning_rate=0.1, bias_correction=True
    )  # fmt: skip
    weight = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([weight], lr=0.1, betas=(0.8, 0.95), eps=1e-8)
    for delta, step in zip(deltas, steps_of(config, deltas), strict=True):
        before = weight.detach().clone()
        weight.grad = torch.from_numpy(-delta)
        adam.step()
        np.testing.assert_allclose(step, (weight.detach() - before).numpy(), rtol=1e-9, atol=1e-15)


def test_fedadam_of_no_movement_is_no_movement() -> None:
    for correction in (False, True):
        config = StrategyConfig(name="fedadam", bias_correction=correction)
        assert not np.any(steps_of(config, [np.zeros(3)] * 3))


def test_public_second_moments_stay_and_scale_the_step_by_hand() -> None:
    config = StrategyConfig(
        name="fedadam", beta1=0.5, tau=0.5, server_learning_rate=2.0, bias_correction=True, second_moments="run"
    )
    state: dict[str, Any] = {"second_moment": np.float64([0.25, 6.25])}
    first, state = step_of(config, np.float64([1.0, 3.0]), state)
    np.testing.assert_allclose(first, [2 * 1 / (0.5 + 0.5), 2 * 3 / (2.5 + 0.5)])  # m / (1 - b1) is the delta itself
    second, state = step_of(config, np.float64([3.0, -3.0]), state)
    # m = 0.25 * [1, 3] + 0.5 * [3, -3] = [1.75, -0.75], over 1 - 0.25
    np.testing.assert_allclose(second, [2 * (1.75 / 0.75) / 1.0, 2 * (-1.0) / 3.0])
    np.testing.assert_array_equal(state["second_moment"], [0.25, 6.25])


def public_run(folder: Path, layout_id: str = "one", **arrays: Any) -> Path:
    """A finished baseline's folder as far as its moments are read."""
    write_config(folder, Config())
    save_checkpoint(folder, Checkpoint(1, layout_id, {"adapter": np.zeros(2, np.float32), **arrays}, {}))
    return folder


def test_public_second_moments_are_a_runs_with_adams_bias_taken_out(tmp_path: Path) -> None:
    run = public_run(tmp_path, second_moment=np.float32([0.002, 0.004]), steps=np.array([2]))
    config = StrategyConfig(name="fedadam", second_moments=str(run))
    bias = 1 - Config().train.beta2 ** 2
    np.testing.assert_allclose(
        rule_of(config, 1).first_arrays("one")["second_moment"], np.float64([0.002, 0.004]) / bias, rtol=1e-6
    )
    assert rule_of(StrategyConfig(name="fedadam"), 1).first_arrays("one") == {}


def test_public_second_moments_of_another_layout_or_optimizer_are_refused(tmp_path: Path) -> None:
    config = StrategyConfig(name="fedadam", second_moments=str(public_run(tmp_path)))
    with pytest.raises(UserError, match="another adapter"):
        rule_of(config, 1).first_arrays("other")
    with pytest.raises(UserError, match="no moments of AdamW"):
        rule_of(config, 1).first_arrays("one")
    with pytest.raises(UserError, match="no checkpoint"):
        rule_of(StrategyConfig(name="fedadam", second_moments=str(tmp_path / "nowhere")), 1).first_arrays("one")
    with pytest.raises(ConfigError, match=r"strategy\.second_moments belongs to strategy=fedadam"):
        StrategyConfig(name="fedavg", second_moments="run")


def test_the_path_of_public_second_moments_is_made_absolute(tmp_path: Path) -> None:
    words = ["strategy=fedadam", "strategy.second_moments=public"]
    config = compose(words, tmp_path)
    assert config.strategy.second_moments == str(tmp_path / "public")


def test_fedadam_state_survives_as_plain_arrays() -> None:
    config = StrategyConfig(name="fedadam", bias_correction=True)
    deltas = [np.float64([0.1, -0.2]), np.float64([0.3, 0.0]), np.float64([-0.1, 0.5])]
    expected = steps_of(config, deltas)[-1]
    _, state = step_of(config, deltas[0], {})
    _, state = step_of(config, deltas[1], {name: np.array(value.tolist()) for name, value in state.items()})
    step, _ = step_of(config, deltas[2], state)
    np.testing.assert_array_equal(step, expected)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if getattr(RULES[name], "needs", "") == "sum"])
def test_steps_change_neither_their_input_nor_the_earlier_state(name: str) -> None:
    config = StrategyConfig(name=name)
    delta = np.float64([1.0, -2.0])
    _, state = step_of(config, delta, {})
    kept = {key: value.copy() for key, value in state.items()}
    step_of(config, delta, state)
    np.testing.assert_array_equal(delta, [1.0, -2.0])
    assert all(np.array_equal(state[key], kept[key]) for key in kept)


def test_fedavgm_keeps_its_velocity() -> None:
    _, state = step_of(StrategyConfig(name="fedavgm", momentum=0.9), np.float64([1.0]), {})
    assert list(state) == ["velocity"]
    np.testing.assert_array_equal(state["velocity"], [1.0])


class TestShares:
    """A cap on what one bank may weigh."""

    @given(
        weights=st.lists(st.integers(1, 2**40 - 1).map(float), min_size=1, max_size=12),
        most=st.floats(1e-3, 1.0, exclude_min=True),
    )
    def test_no_share_is_above_the_cap_and_the_others_keep_their_proportions(
        self, weights: list[float], most: float
    ) -> None:
        found = capped(weights, most)
        cap, shares = max(most, 1 / len(weights)), [weight / sum(found) for weight in found]
        assert max(shares) <= cap * (1 + 1e-9)
        free = [place for place, share in enumerate(shares) if share < cap * (1 - 1e-9)]
        for one, other in pairwise(free):
            assert shares[one] * weights[other] == pytest.approx(shares[other] * weights[one], rel=1e-6)
        assert sorted(range(len(weights)), key=lambda place: (weights[place], place)) == sorted(
            range(len(weights)), key=lambda place: (round(shares[place], 12), weights[place], place)
        )

    @given(weights=st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=8))
    def test_weights_that_need_no_cap_are_the_same_bits(self, weights: list[float]) -> None:
        assert capped(weights, 1.0) == weights
        largest = max(weights) / sum(weights)
        assert capped(weights, min(1.0, largest * 1.001)) == weights

    def test_a_claim_of_all_rows_gets_the_cap_and_no_more(self) -> None:
        assert capped([2.0**40 - 1, 30.0, 10.0], 0.5) == [0.5, 0.375, 0.125]
        assert capped([2.0**40 - 1, 10.0], 0.5) == [0.5, 0.5], "with two banks the cap makes them equal"

    def test_one_bank_of_n_may_always_weigh_an_nth(self) -> None:
        assert capped([7.0], 0.1) == [7.0]
        assert capped([7.0, 3.0, 1.0], 0.1) == pytest.approx([1 / 3] * 3)
