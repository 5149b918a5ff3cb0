"""A run that starts from an adapter which is there already: last quarter's, or one trained on public rows before a
private run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_grid import FakeGrid, simulated_banks
from tiny_runs import adapter_bytes, overrides, write_rows

from fedfinlora.cli import main
from fedfinlora.commands.simulate import prepare
from fedfinlora.compose import compose
from fedfinlora.errors import UserError
from fedfinlora.files import read_json, sha256_of
from fedfinlora.model.adapter import load_adapter
from fedfinlora.model.loading import first_adapter, get_session, initial_adapter
from server_app.federated import run_federated


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"), train=24)


@pytest.fixture(scope="module")
def public(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter folder of a finished run."""
    output = tmp_path_factory.mktemp("public")
    assert main(["centralized", *overrides(rows, output, name="public", banks=1)]) == 0
    return output / "public" / "adapters" / "final"


def federated(words: Sequence[str], states: Path) -> Path:
    config = compose(words)
    return run_federated(FakeGrid(simulated_banks(config.banks, states)), config)


def test_the_first_adapter_is_the_given_one(public: Path, rows: Path, tmp_path: Path) -> None:
    config = compose(overrides(rows, tmp_path, f"start_adapter={public}"))
    session = get_session(config)
    start = first_adapter(session, config)
    assert np.array_equal(start, load_adapter(public, session.layout))
    assert not np.array_equal(start, initial_adapter(session, config))


def test_a_federation_starts_from_it_and_names_its_file(public: Path, rows: Path, tmp_path: Path) -> None:
    still = ["train.optimizer=sgd", "train.sgd_learning_rate=1e-30"]  # steps too small to change any number
    run = federated(overrides(rows, tmp_path / "out", f"start_adapter={public}", *still), tmp_path / "states")
    assert adapter_bytes(run) == (public / "adapter_model.safetensors").read_bytes()
    manifest = read_json(run / "manifest.json")
    expected = sha256_of((public / "adapter_model.safetensors").read_bytes())
    assert manifest["data_sha256"]["start_adapter/adapter_model.safetensors"] == expected


@pytest.mark.parametrize(
    ("word", "reported"),
    [("peft.rank=2", "Set peft.rank=4 (here 2)."), ("peft=dora", "Set peft.method=lora (here dora), ")],
)
def test_an_adapter_of_another_kind_is_refused_before_loading(
    word: str, reported: str, public: Path, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is of another kind") as refusal:
        prepare(overrides(rows, tmp_path / "out", f"start_adapter={public}", word))
    assert reported in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_an_adapter_is_refused(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adapter_config\.json is missing"):
        prepare(overrides(rows, tmp_path / "out", f"start_adapter={tmp_path}"))


def test_frozen_a_must_be_that_of_the_run(public: Path, rows: Path, tmp_path: Path) -> None:
    config = compose(overrides(rows, tmp_path, f"start_adapter={public}", "peft.freeze_a=true"))
    with pytest.raises(UserError, match=r"is not what peft\.freeze_a=true and this seed give"):
        first_adapter(get_session(config), config)


def test_the_server_is_given_an_absolute_path(
    public: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(public.parent)
    assert prepare(overrides(rows, tmp_path / "out", "start_adapter=final")).start_adapter == str(public)


def test_the_privacy_card_says_that_the_start_is_not_protected(public: Path, rows: Path, tmp_path: Path) -> None:
    private = [
        "privacy=example",
        "privacy.epsilon=0",
        "privacy.noise_multiplier=1",
        "peft.dropout=0",
        "train.batch_rows=4",
    ]
    words = overrides(rows, tmp_path / "out", f"start_adapter={public}", *private, rounds=1)
    run = federated(words, tmp_path / "states")
    limits = json.loads((run / "privacy.json").read_text("utf-8"))["limits"]
    assert any("start_adapter" in limit for limit in limits)
