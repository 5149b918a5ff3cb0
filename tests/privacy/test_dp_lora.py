"""DP-LoRA as published: what it does to a gradient, and the epsilon that is stated for it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import set_random_adapter, tiny_config
from fake_grid import FakeGrid, simulated_banks
from scipy.stats import norm
from tiny_runs import overrides, rounds_of, write_rows

from fedfinlora.compose import compose
from fedfinlora.errors import ConfigError
from fedfinlora.files import read_json
from fedfinlora.model.adapter import trainable
from fedfinlora.model.loading import Session, get_session
from fedfinlora.privacy.accounting import Steps, epsilon, gaussian_epsilon, noise_multiplier_for
from fedfinlora.privacy.dp_lora import KINDS, SENSITIVITY, PublishedMechanism, clip_and_noise
from server_app.federated import run_federated


def with_gradients(size: float) -> tuple[Session, dict[str, Any]]:
    """The tiny model with known gradients, A's `size` and B's half of it in norm, and copies of them."""
    import torch

    session = get_session(tiny_config())
    set_random_adapter(session)
    draw = np.random.default_rng(0)
    parameters = trainable(session.model)
    for kind, length in zip(KINDS, (size, size / 2), strict=True):
        chosen = {name: parameter for name, parameter in parameters.items() if kind in name}
        raw = {name: draw.standard_normal(tuple(parameter.shape)) for name, parameter in chosen.items()}
        total = math.sqrt(sum(float((value**2).sum()) for value in raw.values()))
        for name, parameter in chosen.items():
            parameter.grad = torch.from_numpy(raw[name] * length / total).to(parameter.dtype)
    return session, {name: parameter.grad.numpy().copy() for name, parameter in parameters.items()}


def lengths(gradients: dict[str, Any]) -> list[float]:
    """Norms of A's and B's gradients."""
    return [
        math.sqrt(
            sum(float((value.astype(np.float64) ** 2).sum()) for name, value in gradients.items() if kind in name)
        )
        for kind in KINDS
    ]


def after(session: Session, mechanism: PublishedMechanism) -> dict[str, Any]:
    clip_and_noise(session.model, mechanism, 0)
    found = {name: parameter.grad.numpy().copy() for name, parameter in trainable(session.model).items()}
    session.model.zero_grad(set_to_none=True)
    return found


def mechanism(clip: float, noise: float) -> PublishedMechanism:
    return PublishedMechanism(clip, noise, seed=0, bank="b", reproducible=True)


def test_a_and_b_are_clipped_apart_and_keep_their_directions() -> None:
    session, before = with_gradients(8.0)
    found = after(session, mechanism(5.0, 0.0))
    assert lengths(found) == pytest.approx([5.0, 4.0], rel=1e-3)
    assert lengths(found)[0] <= 5.0, "on the grid of the noise, rounded to the inside"
    for name, value in before.items():
        factor = 5 / 8 if KINDS[0] in name else 1.0
        np.testing.assert_allclose(found[name], factor * value, rtol=1e-3, atol=5 / 1000 / math.sqrt(value.size))


def test_noise_is_added_to_both_with_the_stated_standard_deviation() -> None:
    session, before = with_gradients(1.0)
    found = after(session, mechanism(2.0, 3.0))
    noise = np.concatenate([(found[name] - before[name]).ravel() for name in before])
    assert noise.std() == pytest.approx(6.0, rel=0.05)
    assert abs(noise.mean()) < 6 * 4 / math.sqrt(noise.size)


def test_a_gradient_that_is_not_finite_becomes_noise_alone() -> None:
    session, _ = with_gradients(1.0)
    name = next(name for name in trainable(session.model) if KINDS[0] in name)
    trainable(session.model)[name].grad[0, 0] = math.inf
    found = after(session, mechanism(2.0, 1.0))
    assert all(np.isfinite(value).all() for value in found.values())


def test_a_gradient_of_zeros_stays_zero_but_for_the_noise() -> None:
    session, _ = with_gradients(1.0)
    for parameter in trainable(session.model).values():
        parameter.grad.zero_()
    assert lengths(after(session, mechanism(2.0, 0.0))) == [0.0, 0.0]


@pytest.mark.parametrize("steps", [1, 50])
def test_epsilon_is_that_of_a_row_that_turns_both_gradients_round(steps: int) -> None:
    """Against the Gaussian's privacy profile, integrated again: delta is what e^eps times one density falls short of
    the other.
    """
    sigma, delta = 2.0, 1e-5
    found = epsilon([mechanism(1.0, sigma).spends(steps)], delta)
    mu = math.sqrt(steps) * SENSITIVITY / sigma
    points = np.linspace(-40, 40 + mu, 2_000_001)
    here, there = norm.pdf(points, loc=mu), norm.pdf(points)
    assert np.trapezoid(np.clip(here - math.exp(found) * there, 0, None), points) == pytest.approx(delta, rel=1e-3)


def test_the_papers_settings_give_the_epsilons_of_the_literature() -> None:
    """Fifty rounds at sigma 2 and delta 1e-5: about 21 with the paper's assumption, about 92 without it."""
    assert epsilon([Steps(1.0, 2.0, 50)], 1e-5) == pytest.approx(20.7, abs=0.1)
    assert epsilon([mechanism(1.0, 2.0).spends(50)], 1e-5) == pytest.approx(91.8, abs=0.1)


@pytest.mark.parametrize("mu", [0.0, 1e-4, 0.01, 1.0, 30.0])
def test_the_gaussians_epsilon_is_monotonic_and_never_negative(mu: float) -> None:
    assert 0 <= gaussian_epsilon(mu, 1e-5) <= gaussian_epsilon(mu * 1.1 + 1e-9, 1e-5)
    assert gaussian_epsilon(mu, 1e-3) <= gaussian_epsilon(mu, 1e-6)


def test_calibration_by_the_closed_form() -> None:
    sigma = noise_multiplier_for(8.0, 1e-5, 1.0, 30)
    assert 7.8 < epsilon([Steps(1.0, sigma, 30)], 1e-5) <= 8.0


def test_a_run_reports_the_epsilon_that_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFINLORA_LEDGER", str(tmp_path / "ledger"))
    rows = write_rows(tmp_path / "rows", train=40)
    words = overrides(
        rows, tmp_path / "runs", "privacy=dp_lora", "train.steps_per_round=1", "privacy.delta=1e-5", rounds=3
    )
    run = run_federated(FakeGrid(simulated_banks(2, tmp_path / "states")), compose(words))
    spent = [bank["privacy"]["epsilon_spent"] for line in rounds_of(run) for bank in line["banks"]]
    assert spent[-1] == pytest.approx(epsilon([mechanism(1.0, 2.0).spends(3)], 1e-5))
    card = read_json(run / "privacy.json")
    assert card["mode"] == "dp_lora"
    assert card["epsilon"] == pytest.approx(spent[-1])
    assert "The paper assumes C" in card["composition"]
    reported = (run / "progress.jsonl").read_text("utf-8")
    assert f"DP-LoRA as published: epsilon {spent[-1]:.3g} at delta 1e-05" in reported
    assert "the paper assumes C" in reported
    assert all(bank["rows"] == 0 and bank["train_loss"] is None for line in rounds_of(run) for bank in line["banks"])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["peft=dora"], "peft=dora"),
        (["train.holdout_max_rows=4"], "train.holdout_max_rows"),
        (["strategy.weighting=rows"], "strategy.weighting"),
        (["privacy.epsilon=3"], "privacy.epsilon"),
        (["privacy.unit=bank"], "privacy.unit"),
        (["privacy.accept_noise=true"], "privacy.accept_noise"),
    ],
)
def test_settings_that_contradict_it_are_refused_by_name(words: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        compose(["privacy=dp_lora", *words])
