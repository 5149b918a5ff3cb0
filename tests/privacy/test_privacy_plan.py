"""The forecast of a private run: figures by hand, against real adapters, without a row being read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_config

from fedfinlora.cli import main
from fedfinlora.config.model import ModelConfig
from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.privacy import PrivacyConfig
from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.config.train import TrainConfig
from fedfinlora.errors import ConfigError
from fedfinlora.model.loading import get_session
from fedfinlora.privacy.accounting import Steps, default_delta, epsilon, noise_multiplier_for
from fedfinlora.privacy.forecast import (
    Alternative,
    Forecast,
    adapter_parameters,
    advice,
    alternatives,
    forecast,
    layer_shapes,
)
from fedfinlora.wire.messages import Figures, Reply
from server_app.strategies import rule_of

TINY = ModelConfig(name="tiny-random", path="memory:tiny-random", quantization="none", device="cpu", context_tokens=512)
WORDS = [
    "model=tiny-random",
    "peft=lora",
    "privacy=example",
    "num_server_rounds=30",
    "train.steps_per_round=1",
    "train.batch_rows=50",
]


def private_config(**changes: Any) -> Config:
    """Thirty steps of fifty rows by two banks at epsilon 8."""
    values: dict[str, Any] = {
        "model": TINY, "num_server_rounds": 30, "privacy": PrivacyConfig(mode="example", epsilon=8.0),
        "strategy": StrategyConfig(weighting="equal"),
        "train": TrainConfig(steps_per_round=1, batch_rows=50, share_prefix=False, holdout_max_rows=0),
    }  # fmt: skip
    return Config(**{**values, **changes})


@pytest.fixture
def no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a row ends the test."""

    def load_rows(*_: Any, **__: Any) -> None:
        raise AssertionError("a row was read")

    monkeypatch.setattr("data.sources.load_rows", load_rows)
    monkeypatch.setattr("client_app.own_rows.load_rows", load_rows)


# --- the figures ----------------------------------------------------------------------------------


def test_sigma_epsilon_and_noise_are_those_of_the_formulas() -> None:
    config, sizes = private_config(), {"north": 1000.0, "south": 500.0}
    found = forecast(config, sizes, parameters=400)
    north, south = found.banks
    assert (found.steps, north.sampling_rate, south.sampling_rate) == (30, 0.05, 0.1)
    assert north.delta == default_delta(1000)
    assert north.noise_multiplier == noise_multiplier_for(8.0, north.delta, 0.05, 30)
    assert north.epsilon == epsilon([Steps(0.05, north.noise_multiplier, 30)], north.delta) <= 8
    assert north.epsilon_rdp >= north.epsilon
    noise_std = math.hypot(0.5 * north.noise_multiplier / 50, 0.5 * south.noise_multiplier / 50)
    assert found.noise_to_signal == pytest.approx(noise_std * 20)
    assert found.signal_to_noise == pytest.approx(math.sqrt(30) / noise_std)
    assert found.noise_of_run == pytest.approx(found.noise_to_signal / math.sqrt(30))
    assert found.rows_processed == 30 * 100


def test_for_one_bank_signal_to_noise_is_root_t_times_q_n_over_sigma() -> None:
    found = forecast(private_config(banks=1), {"north": 1000.0}, 400)
    assert found.signal_to_noise == pytest.approx(math.sqrt(30) * 50 / found.banks[0].noise_multiplier)


def test_declared_weights_count_a_bank_by_its_rows() -> None:
    strategy = StrategyConfig(weighting="declared", sizes=("north:1000", "south:500"))
    config = private_config(strategy=strategy)
    north, south = (bank.noise_multiplier / 50 for bank in forecast(config, {"north": 1000.0, "south": 500.0}, 1).banks)
    found = forecast(config, strategy.declared_sizes(), 1)
    assert found.noise_to_signal == pytest.approx(math.hypot(2 / 3 * north, 1 / 3 * south))


@pytest.mark.parametrize("most", [1.0, 0.9, 0.5, 0.4, 0.1])
@pytest.mark.parametrize("weighting", ["declared", "equal"])
def test_the_plan_weighs_banks_as_the_server_does(weighting: str, most: float) -> None:
    sizes = {"a": 900.0, "b": 300.0, "c": 200.0}
    declared = tuple(f"{bank}:{rows:.0f}" for bank, rows in sizes.items()) if weighting == "declared" else ()
    config = private_config(strategy=StrategyConfig(weighting=weighting, sizes=declared, max_share=most))
    found = forecast(config, sizes, 1)
    replies = [Reply(bank, np.zeros(1, np.float32), Figures.withheld(1, 0.0, 8.0, 1.0, 1e-5), 0.0) for bank in sizes]
    weights = rule_of(config.strategy, 1).weights(replies)
    noise = [
        weight / sum(weights) * bank.noise_multiplier / 50 for weight, bank in zip(weights, found.banks, strict=True)
    ]
    assert found.noise_to_signal == pytest.approx(math.hypot(*noise))


def test_a_larger_delta_in_the_settings_is_not_used() -> None:
    loose = private_config(privacy=PrivacyConfig(mode="example", epsilon=8.0, delta=0.01))
    strict = private_config(privacy=PrivacyConfig(mode="example", epsilon=8.0, delta=1e-9))
    assert forecast(loose, {"north": 1000.0}, 1).banks[0].delta == default_delta(1000)
    assert forecast(strict, {"north": 1000.0}, 1).banks[0].delta == 1e-9


def test_a_given_noise_multiplier_is_used_and_its_epsilon_reported() -> None:
    config = private_config(privacy=PrivacyConfig(mode="example", noise_multiplier=2.0))
    (bank,) = forecast(config, {"north": 1000.0}, 1).banks
    assert bank.noise_multiplier == 2.0
    assert bank.epsilon == epsilon([Steps(0.05, 2.0, 30)], bank.delta)


def test_the_sampling_rate_of_spread_epochs_is_the_same_for_every_bank() -> None:
    train = TrainConfig(steps_per_round=1, batch_rows=0, epochs=1.5, share_prefix=False, holdout_max_rows=0)
    found = forecast(private_config(train=train), {"north": 1000.0, "south": 300.0}, 1)
    assert [bank.sampling_rate for bank in found.banks] == pytest.approx([0.05, 0.05])
    assert found.rows_processed == pytest.approx(1.5 * 1300)


@pytest.mark.parametrize(
    "peft",
    [
        PeftConfig(rank=2, target_modules=("q_proj", "v_proj")),
        PeftConfig(rank=4, target_modules=("v_proj", "down_proj"), freeze_a=True),
        PeftConfig("dora", rank=2, target_modules=("o_proj",)),
        PeftConfig("rslora", rank=3, target_modules=("gate_proj",)),
        PeftConfig("lora_xs", rank=4, target_modules=("q_proj", "k_proj")),
    ],
    ids=lambda peft: peft.method + ("-frozen" if peft.freeze_a else ""),
)
def test_parameters_are_counted_without_the_model_as_with_it(peft: PeftConfig) -> None:
    assert adapter_parameters(peft, layer_shapes(TINY)) == get_session(replace(tiny_config(), peft=peft)).layout.size


def test_target_modules_that_the_model_lacks_are_refused_with_those_it_has() -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"\['x_proj'\] are no layers of this model\. It has: down_proj, gate_proj, "
            r"k_proj,"
        ),
    ):
        adapter_parameters(PeftConfig(target_modules=("x_proj",)), layer_shapes(TINY))


# --- alternatives ---------------------------------------------------------------------------------


def test_alternatives_keep_epsilon_and_rows_and_say_what_to_type() -> None:
    config = private_config(num_server_rounds=40, peft=PeftConfig(rank=2, target_modules=("v_proj",)))
    found = alternatives(config, {"north": 1000.0, "south": 500.0}, layer_shapes(TINY))
    by_words = {one.words: one.forecast for one in found}
    assert set(by_words) >= {
        "num_server_rounds=20 train.batch_rows=100", "num_server_rounds=80 train.batch_rows=25", "peft.rank=1",
        "peft.rank=4",
        "peft=lora peft.rank=2 peft.freeze_a=true", "peft=lora_xs peft.rank=16",
    }  # fmt: skip
    assert all(one.rows_processed == pytest.approx(4000, rel=0.03) for one in by_words.values())
    assert all(bank.epsilon <= 8 for one in by_words.values() for bank in one.banks)
    half, twice = (
        by_words["num_server_rounds=20 train.batch_rows=100"],
        by_words["num_server_rounds=80 train.batch_rows=25"],
    )
    assert half.signal_to_noise > twice.signal_to_noise, "fewer, larger steps bear less noise"


def test_impossible_alternatives_are_not_offered() -> None:
    found = alternatives(private_config(), {"north": 60.0}, layer_shapes(TINY))
    assert not any(one.words.startswith("num_server_rounds=15") for one in found), "100 of 60 rows"


def run_with(noise_of_run: float, steps: int = 30) -> Forecast:
    return Forecast(1, steps, 1.0, 1.0, 1 / noise_of_run, ())


def test_advice_names_the_setting_with_least_noise_unless_there_is_little() -> None:
    now, better, few = (
        run_with(0.5),
        Alternative("peft.rank=1", run_with(0.2)),
        Alternative("fewer", run_with(0.1, steps=4)),
    )
    assert "peft.rank=1 makes it 0.2" in advice(now, [better, few]), "too few steps are no advice"
    assert "let each step take more rows" in advice(now, [Alternative("same", run_with(0.49))])
    assert "Leave it" in advice(run_with(0.05), [better])


# --- the command ----------------------------------------------------------------------------------


def test_the_plan_is_made_and_timed_without_reading_a_row(
    no_rows: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    assert (
        main(["privacy", "plan", *WORDS, "--rows", "1000", "--banks", "3", "--tokens", "20", "--json", str(file)]) == 0
    )
    page, figures = capsys.readouterr().out, json.loads(file.read_text())
    assert page.count("bank-") == 3
    assert "30 steps each; a unit is one example." in page
    assert figures["minutes"] > 0
    assert figures["tokens_processed"] == 30 * 150 * 20
    assert page.rstrip().endswith(figures["advice"])
    assert [bank["sampling_rate"] for bank in figures["banks"]] == [0.05] * 3


def test_the_plan_takes_declared_sizes_and_needs_no_place_of_rows(
    no_rows: None, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["strategy.weighting=declared", "strategy.sizes=[north:1700,south:800]"]
    assert main(["privacy", "plan", *WORDS, "dataset=finlora", *sizes, "--no-timing"]) == 0
    page = capsys.readouterr().out
    assert "north  1,700" in page
    assert "minutes" not in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rows", "0"], "--rows must be above 0"),
        ([], "How many rows do the banks have?"),
        (["--rows", "10", "strategy.weighting=declared", "strategy.sizes=[a:10]"], "both give the banks' sizes"),
        (["--rows", "40"], "declares 40. Lower train.batch_rows"),
        (["--rows", "1000", "privacy=none"], "Add privacy=example"),
        (["--rows", "1000", "privacy=bank"], "Add privacy=example"),
        (["--rows", "1000", "--tokens", "3"], "--tokens must be above 3"),
        (["--rows", "1000", "peft.target_modules=[nothing]"], "are no layers of this model"),
        (["--rows", "1000", "peft.rnak=3"], "Unknown configuration key"),
    ],
)
def test_bad_input_ends_with_status_2_and_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["privacy", "plan", *WORDS, "--no-timing", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert printed.err.count("\n") == 1


def test_ledger_hands_its_options_to_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr("fedfinlora.commands.privacy_ledger.ledger_command", lambda *given: asked.append(given) or 0)
    monkeypatch.setenv("FEDFINLORA_LEDGER", str(tmp_path))
    assert main(["privacy", "ledger"]) == 0
    assert main(["privacy", "ledger", "else", "--reconcile", "history.jsonl", "--delta", "1e-6"]) == 0
    assert main(["privacy", "ledger", "else", "--book-as-spent"]) == 0
    assert asked == [
        (tmp_path, None, False, None), (Path("else"), Path("history.jsonl"), False, 1e-6),
        (Path("else"), None, True, None),
    ]  # fmt: skip
