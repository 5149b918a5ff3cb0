"""The rules against their papers' loops by hand, and what each does where an algorithm's edge is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_config
from numpy.typing import NDArray

from client_app.control import Control, control_after, correction_of
from fedfinlora.compose import compose
from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.config.train import TrainConfig
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.adapter import Layout
from fedfinlora.wire.messages import Figures, Reply
from server_app.central_privacy import CentralMechanism
from server_app.replies import Replies, replies_of
from server_app.strategies import RULES, rule_of
from server_app.strategies.private_mean import PrivateMean
from server_app.strategies.strategy import ServerState, take_step

LAYOUT = Layout(
    ("q_proj.lora_A.weight", "q_proj.lora_B.weight", "q_proj.lora_magnitude_vector"), ((2, 3), (4, 2), (4,))
)
MECHANISM = CentralMechanism(1.0, 1.0, 1.0, 4, 1e-5, 1.0, reproducible_seed=0)
MINE = ("fedavg", "fedavgm", "fedadam", "fedadamw", "fedyogi", "fedadagrad", "fedexp", "rolora", "scaffold",
        "fedadamw_local")  # fmt: skip


def drawn(seed: int, size: int = LAYOUT.size, scale: float = 1.0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, scale, size).astype(np.float32)


def replies(*updates: NDArray[Any], layout: Layout | None = LAYOUT) -> Replies:
    figures = Figures(4, 1, 10, 5, 1.0, 0, 0.0, 0.0, 0.0, 4, 0)
    made = [
        Reply(f"bank-{number}", np.asarray(update, np.float32), figures, 1.0) for number, update in enumerate(updates)
    ]
    return replies_of(made, [1.0] * len(made), layout)


def dense(adapter: NDArray[Any]) -> NDArray[np.float64]:
    (layer,) = LAYOUT.layers
    a, b = layer.of(np.asarray(adapter, np.float64))
    return np.asarray(b @ a)


# --- adaptive rules: v starts at tau^2, m at 0 ----------------------------------------------------


@pytest.mark.parametrize("name", ["fedyogi", "fedadagrad"])
def test_an_adaptive_rule_equals_the_papers_loop(name: str) -> None:
    config = StrategyConfig(name=name, beta1=0.9, beta2=0.99, tau=1e-3, server_learning_rate=3e-3)
    rule, state = rule_of(config, 5), ServerState(0, np.zeros(3, np.float32))
    for place in range(3):
        m, v, state, x = 0.0, 1e-3**2, ServerState(0, np.zeros(3, np.float32)), 0.0
        for number in range(5):
            update = drawn(number, 3, 1e-2)
            square = float(update[place]) ** 2
            m = 0.9 * m + 0.1 * float(update[place])
            v = v + square if name == "fedadagrad" else v - 0.01 * square * math.copysign(1.0, v - square)
            x += 3e-3 * m / (math.sqrt(v) + 1e-3)
            state = take_step(rule, state, replies(update, layout=None))
        assert state.adapter[place] == pytest.approx(x, rel=1e-5)


# --- DiLoCo: SGD with Nesterov momentum 0.9 on minus the mean update ------------------------------


def test_diloco_equals_torchs_nesterov_sgd_on_the_outer_gradient() -> None:
    import torch

    config = compose(["strategy=diloco"]).strategy
    assert (config.name, config.momentum, config.server_learning_rate) == ("fedavgm", 0.9, 0.7)
    rule, state = rule_of(config, 6), ServerState(0, drawn(0, 5))
    weight = torch.tensor(state.adapter.astype(np.float64), requires_grad=True)
    outer = torch.optim.SGD([weight], lr=0.7, momentum=0.9, nesterov=True)
    for number in range(6):
        updates = [drawn(10 * number + bank, 5) for bank in (1, 2, 3)]
        weight.grad = -torch.tensor(np.mean(np.asarray(updates, np.float64), axis=0))
        outer.step()
        state = take_step(rule, state, replies(*updates, layout=None))
    np.testing.assert_allclose(state.adapter, weight.detach().numpy(), rtol=1e-5)


# --- FedExP ---------------------------------------------------------------------------------------


def test_fedexp_equals_the_papers_eta_on_dense_products() -> None:
    """eta = sum |W_k|^2 / (2 N |W|^2), the magnitudes of DoRA counted as they are."""
    rule = rule_of(StrategyConfig(name="fedexp", server_learning_rate=1.0), 9)
    start, common = drawn(0), drawn(9, scale=0.1)
    updates = [common + drawn(number, scale=0.2) for number in range(1, 7)]
    mean = np.mean(np.asarray(updates, np.float64), axis=0)

    def square(update: NDArray[Any]) -> float:
        changed = dense(start + np.asarray(update, np.float64)) - dense(start)
        return float(np.sum(changed**2) + np.sum(np.asarray(update, np.float64)[-4:] ** 2))

    eta = sum(map(square, updates)) / (2 * len(updates) * square(mean))
    assert 1 < eta < 3, "between the bounds"
    state = take_step(rule, ServerState(0, start), replies(*updates))
    np.testing.assert_allclose(state.adapter, start + eta * mean, rtol=1e-5, atol=1e-6)
    assert state.arrays["eta"][0] == pytest.approx(eta, rel=1e-6)


def test_fedexp_averages_the_last_two_iterates() -> None:
    config = StrategyConfig(name="fedexp")
    start, updates = ServerState(4, drawn(0)), (drawn(1), drawn(2))
    last = take_step(rule_of(config, 5), start, replies(*updates)).adapter
    going_on = take_step(rule_of(config, 6), start, replies(*updates)).adapter
    np.testing.assert_allclose(last, (start.adapter + going_on) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fedexp_with_equal_banks_is_fedavg(count: int) -> None:
    start, update = ServerState(0, drawn(0)), drawn(1)
    states = [take_step(rule_of(StrategyConfig(name=name), 9), start, replies(*[update] * count)) for name in
              ("fedexp", "fedavg")]  # fmt: skip
    np.testing.assert_array_equal(states[0].adapter, states[1].adapter)


def test_a_reversing_bank_moves_eta_no_further_than_half_the_banks() -> None:
    rule, update = rule_of(StrategyConfig(name="fedexp"), 9), drawn(1)
    start = ServerState(0, np.zeros(LAYOUT.size, np.float32))
    hostile = take_step(rule, start, replies(update, update, update, np.float32(-2.999) * update))
    assert hostile.arrays["eta"][0] == 2.0
    still = take_step(rule, start, replies(*[np.zeros(LAYOUT.size)] * 4))
    assert not still.adapter.any()


def test_fedexp_where_one_factor_is_trained_uses_the_parameters_norms() -> None:
    one_factor = Layout(("q_proj.lora_B.weight",), ((4, 2),))
    updates = [np.eye(8)[place] for place in range(4)]
    state = take_step(
        rule_of(StrategyConfig(name="fedexp"), 9),
        ServerState(0, np.zeros(8, np.float32)),
        replies(*updates, layout=one_factor),
    )
    assert state.arrays["eta"][0] == 2.0
    np.testing.assert_allclose(state.adapter[:4], 0.5)


# --- SCAFFOLD -------------------------------------------------------------------------------------


def test_scaffold_equals_the_papers_loop_with_its_control_variates() -> None:
    """Algorithm 1 with option II, on |y - target|^2 / 2 at two banks; c is an explicit vector there, and here no vector
    but adapters crosses.
    """
    targets, curvature = (np.array([1.0, -2.0, 0.5]), np.array([-3.0, 0.0, 4.0])), np.array([1.0, 0.3, 2.0])
    rate, steps, rounds, server_rate = 0.1, 4, 6, 0.5
    config = tiny_config(
        train=TrainConfig(optimizer="sgd", sgd_learning_rate=rate, steps_per_round=steps),
        strategy=StrategyConfig(name="scaffold", weighting="equal", server_learning_rate=server_rate),
        num_server_rounds=rounds,
    )
    rule, state = rule_of(config.strategy, rounds), ServerState(0, np.zeros(3, np.float32))
    kept: list[Control | None] = [None, None]
    x, c, own = np.zeros(3), np.zeros(3), [np.zeros(3), np.zeros(3)]
    for number in range(1, rounds + 1):
        moves, changes, updates = [], [], []
        for bank, target in enumerate(targets):
            y = x.copy()
            for _ in range(steps):
                y -= rate * (curvature * (y - target) - own[bank] + c)
            after = own[bank] - c + (x - y) / (steps * rate)
            changes.append(after - own[bank])
            own[bank] = after
            moves.append(y - x)

            correction = correction_of(kept[bank], state.adapter, number, config)
            z = state.adapter.astype(np.float64)
            for _ in range(steps):
                z -= rate * (curvature * (z - target) + correction)
            update = (z - state.adapter).astype(np.float32)
            kept[bank] = control_after(correction, state.adapter, update, steps, number, config)
            updates.append(update)
        x = x + server_rate * np.mean(moves, axis=0)
        c = c + np.mean(changes, axis=0)
        state = take_step(rule, state, replies(*updates, layout=None))
        np.testing.assert_allclose(state.adapter, x, atol=2e-6)


@pytest.mark.parametrize(
    ("train", "named"),
    [({}, "train.optimizer=sgd"), ({"optimizer": "sgd", "epochs": 1.0, "batch_rows": 4}, "equal steps")],
)
def test_scaffold_without_what_it_rests_on_is_refused(train: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        tiny_config(train=TrainConfig(**train), strategy=StrategyConfig(name="scaffold"))


# --- what all of them must bear -------------------------------------------------------------------


@pytest.mark.parametrize("name", MINE)
def test_a_rule_bears_one_bank_and_equal_banks(name: str) -> None:
    rule = rule_of(StrategyConfig(name=name), 3)
    start, update = ServerState(0, drawn(0)), drawn(1, scale=1e-2)
    one = take_step(rule, start, replies(update))
    same = take_step(rule, start, replies(*[update] * 3))
    np.testing.assert_allclose(one.adapter, same.adapter, rtol=1e-5, atol=1e-7)
    assert one.step_norm > 0


@pytest.mark.parametrize("name", MINE)
def test_a_state_saved_in_the_middle_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    from fedfinlora.run.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

    rule, state = rule_of(StrategyConfig(name=name), 4), ServerState(0, drawn(0))
    for number in range(4):
        if number == 2:
            save_checkpoint(tmp_path, Checkpoint(2, "one", {"adapter": state.adapter, **state.arrays}, {}))
        state = take_step(rule, state, replies(drawn(10 + number), drawn(20 + number)))
    arrays = dict(load_checkpoint(tmp_path).arrays)
    again = ServerState(2, arrays.pop("adapter"), arrays)
    for number in (2, 3):
        again = take_step(rule, again, replies(drawn(10 + number), drawn(20 + number)))
    np.testing.assert_array_equal(again.adapter, state.adapter)
    assert {name: array.tolist() for name, array in again.arrays.items()} == {
        name: array.tolist() for name, array in state.arrays.items()
    }


OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "fltrust": {"root_bank": "bank-0"},
    "residual": {"residual_rank": 2},
    "flora": {"residual_rank": 2},
    "rosa": {"residual_rank": 2},
}


def test_a_rule_of_single_replies_is_refused_by_name_around_a_sum() -> None:
    named = [rule_of(StrategyConfig(name=name, **OWN_SETTINGS.get(name, {})), 1) for name in RULES]
    single = [rule for rule in named if rule.needs != "sum"]
    assert "fedexp" in {rule.config.name for rule in single}
    for rule in single:
        with pytest.raises(UserError, match=f"strategy={rule.config.name} needs each bank's reply on its own"):
            PrivateMean.around(rule, MECHANISM)
