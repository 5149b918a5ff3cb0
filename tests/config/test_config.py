"""The schema: strict, frozen, complete, and the same after a trip through JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfinlora.config import dataset, model, peft, strategy
from fedfinlora.config.checks import is_folder_name
from fedfinlora.config.dataset import DatasetConfig
from fedfinlora.config.schema import Config
from fedfinlora.config.train import TrainConfig
from fedfinlora.config.values import build, describe, to_json, to_plain
from fedfinlora.errors import ConfigError, UserError

ROOT = Path(__file__).resolve().parents[2]


def field_names(cls: type[Any], prefix: str = "") -> list[str]:
    """Every leaf of the schema, found apart from `describe`."""
    names = []
    for item in dataclasses.fields(cls):
        group = getattr(sys.modules[cls.__module__], str(item.type), None)
        names += (
            field_names(group, f"{prefix}{item.name}.") if dataclasses.is_dataclass(group) else [f"{prefix}{item.name}"]
        )
    return names


def nested(key: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} for "a.b"."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def test_describe_covers_every_field_with_its_default() -> None:
    described = dict(describe())
    assert list(described) == field_names(Config)
    assert len(described) > 70
    plain = to_plain(Config())
    for key, shown in described.items():
        value: Any = plain
        for part in key.split("."):
            value = value[part]
        assert json.loads(shown) == value, key


def test_json_gives_the_same_configuration_back() -> None:
    config = build(
        {"peft": {"method": "dora", "target_modules": ["o_proj"]}, "train": {"epochs": 2}, "run_name": "märz"}
    )
    assert build(json.loads(to_json(config))) == config
    assert build(to_plain(config)) == config
    assert "\n" not in to_json(config)
    assert to_json(build(json.loads(to_json(config)))) == to_json(config)


@given(
    rounds=st.integers(1, 10**5),
    seed=st.integers(0, 2**63 - 1),
    rate=st.floats(1e-9, 1e3),
    tasks=st.lists(st.text(min_size=1, max_size=8), max_size=4),
    name=st.text(max_size=20).filter(lambda name: not name or is_folder_name(name)),
)
def test_json_round_trip_holds_for_any_values(rounds: int, seed: int, rate: float, tasks: list[str], name: str) -> None:
    config = Config(
        num_server_rounds=rounds,
        seed=seed,
        run_name=name,
        dataset=DatasetConfig(tasks=tuple(tasks)),
        train=TrainConfig(learning_rate=rate),
    )
    assert build(json.loads(to_json(config))) == config


def test_configurations_are_frozen() -> None:
    config = Config()
    for holder, name in ((config, "seed"), (config.train, "batch_rows"), (config.peft, "rank")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(holder, name, 3)
    assert isinstance(hash(config), int)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"sed": 1}, ["sed", "Did you mean seed", "num_server_rounds"]),
        ({"train": {"learnig_rate": 1.0}}, ["train.learnig_rate", "Did you mean train.learning_rate", "batch_rows"]),
        ({"peft": {"nothing_like_it": 1}}, ["peft.nothing_like_it", "rank", "target_modules"]),
    ],
)
def test_unknown_key_lists_the_valid_ones(values: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        build(values)
    assert all(part in str(error.value) for part in parts)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "choices"),
    [
        ("model.quantization", "nf5", model.QUANTIZATIONS),
        ("model.dtype", "float16", ("auto", "float32", "bfloat16")),
        ("peft.method", "adalora", peft.PEFT_METHODS),
        ("dataset.source", "csv", dataset.SOURCES),
        ("dataset.on_bad_row", "ignore", ("skip", "stop")),
        ("partition.name", "dirchlet", dataset.PARTITIONERS),
        ("train.optimizer", "adam", ("adamw", "sgd")),
        ("train.schedule", "linear", ("cosine", "constant")),
        ("strategy.schedule", "linear", ("cosine", "constant")),
        ("train.optimizer_state", "drop", ("keep", "reset")),
        ("strategy.name", "fedprox", strategy.STRATEGIES),
        ("strategy.weighting", "tokens", ("rows", "equal")),
        ("privacy.mode", "central", ("none",)),
    ],
)
def test_unknown_choice_lists_the_valid_ones(key: str, value: str, choices: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        build(nested(key, value))
    assert repr(value) in str(error.value)
    assert all(choice in str(error.value) for choice in choices)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "one"),
        ("seed", True),
        ("seed", 1.5),
        ("banks", None),
        ("train.learning_rate", "fast"),
        ("train.learning_rate", False),
        ("train.share_prefix", "yes"),
        ("train.share_prefix", 1),
        ("train", 3),
        ("train", [1]),
        ("peft.target_modules", 3),
        ("peft.target_modules", ["q_proj", 3]),
        ("run_name", None),
        ("run_name", ["a"]),
    ],
)
def test_value_of_the_wrong_type_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        build(nested(key, value))
    assert key in str(error.value)
    assert repr(value) in str(error.value)


def test_integers_and_name_lists_are_read_in_their_usual_spellings() -> None:
    config = build({"train": {"epochs": 2}, "run_name": 2024, "peft": {"target_modules": "q_proj,v_proj"}})
    assert config.train.epochs == 2.0
    assert isinstance(config.train.epochs, float)
    assert config.run_name == "2024"
    assert config.peft.target_modules == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_server_rounds", 0),
        ("banks", 0),
        ("seed", -1),
        ("model.context_tokens", 0),
        ("model.threads", -1),
        ("model.device", "gpu"),
        ("peft.rank", 0),
        ("peft.alpha", 0),
        ("peft.dropout", 1.0),
        ("peft.dropout", -0.1),
        ("peft.target_modules", []),
        ("dataset.max_rows_per_task", -1),
        ("partition.alpha", 0.0),
        ("train.learning_rate", 0.0),
        ("train.learning_rate", float("nan")),
        ("train.batch_rows", 0),
        ("train.batch_rows", -1),
        ("train.sgd_learning_rate", 0.0),
        ("train.batch_tokens", 0),
        ("train.holdout_every", 0),
        ("train.warmup_steps", -1),
        ("train.clip_norm", -1.0),
        ("train.proximal_mu", -0.1),
        ("train.beta2", 1.0),
        ("train.holdout_fraction", 1.0),
        ("train.steps_per_round", 0),
        ("strategy.server_learning_rate", 0.0),
        ("strategy.fraction_train", 0.0),
        ("strategy.fraction_train", 1.1),
        ("strategy.momentum", 1.0),
        ("strategy.tau", 0.0),
        ("strategy.quorum", 0),
        ("strategy.quorum", 3),
        ("strategy.max_update_norm", -1.0),
        ("evaluation.limit", -1),
        ("evaluation.every", -1),
        ("evaluation.batch_tokens", 0),
        ("evaluation.benchmarks", []),
    ],
)
def test_value_out_of_range_is_refused_in_one_line(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        build(nested(key, value))
    assert key.split(".")[-1] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_qlora_needs_a_4_bit_base(quantization: str) -> None:
    with pytest.raises(ConfigError, match="nf4"):
        build({"peft": {"method": "qlora"}, "model": {"quantization": quantization}})
    assert build({"peft": {"method": "qlora"}, "model": {"quantization": "nf4"}}).peft.method == "qlora"


@pytest.mark.parametrize("source", ["finlora", "jsonl"])
def test_a_folder_source_needs_a_root(source: str) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.root"):
        build({"dataset": {"source": source}})


def test_a_configuration_error_is_a_user_error() -> None:
    assert issubclass(ConfigError, UserError)


def test_import_is_cheap_and_without_torch() -> None:
    program = (
        "import sys, fedfinlora, fedfinlora.config.schema, fedfinlora.cli, fedfinlora.wire.messages, "
        "fedfinlora.train.loop, fedfinlora.model.loading\n"
    )
    program += "print([name for name in ('torch', 'transformers', 'peft', 'flwr', 'hydra') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

    def seconds(statement: str) -> float:
        times = []
        for _ in range(3):
            started = time.monotonic()
            subprocess.run(
                [sys.executable, "-c", statement], cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": ""}
            )
            times.append(time.monotonic() - started)
        return min(times)

    assert seconds("import fedfinlora") - seconds("pass") < 0.2
