"""Paths and ranks are refused before a model is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.config.values import build
from fedfinlora.errors import UserError
from fedfinlora.run.checkpoint import Checkpoint, save_checkpoint
from server_app.door import check_settings_on_disk


def config(tmp_path: Path, **values: object) -> Config:
    base = tmp_path / "base"
    base.mkdir(exist_ok=True)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    (base / "config.json").write_text(json.dumps(sizes))
    model = {"name": "own", "path": str(base), "quantization": "none"}
    return build({"output_dir": str(tmp_path / "runs"), "model": model, **values})


def test_what_is_there_passes(tmp_path: Path) -> None:
    check_settings_on_disk(config(tmp_path))


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"peft": {"method": "eva", "rows": "/nope"}}, "peft.rows=/nope has no rows"),
        ({"peft": {"rank": 33}}, "Set peft.rank=32 or smaller"),
        ({"start_adapter": "/nope"}, "/nope is no PEFT adapter"),
        ({"evaluation": {"answers_dir": "/dev/null/a"}}, "evaluation.answers_dir=.*is a file, not a folder"),
        ({"output_dir": "/dev/null"}, "output_dir=/dev/null: .*is a file, not a folder"),
        ({"evaluation": {"bertscore_model": "/nope"}}, "evaluation.bertscore_model=/nope is no encoder's folder"),
        ({"model": {"name": "own", "path": "/nope"}}, "'/nope' is no folder here"),
        ({"model": {"name": "own", "path": ""}}, "'' is no folder here"),
        ({"model": {"name": "own", "path": "y" * 5000}}, "is no folder here"),
        ({"model": {"name": "own", "path": "/dev"}}, "/dev holds no model: config.json is missing"),
    ],
)
def test_a_wrong_path_is_refused_by_its_key(tmp_path: Path, values: dict[str, object], why: str) -> None:
    with pytest.raises(UserError, match=why):
        check_settings_on_disk(config(tmp_path, **values))


def test_public_moments_must_be_a_runs(tmp_path: Path) -> None:
    strategy = StrategyConfig(name="fedadam", second_moments=str(tmp_path))
    with pytest.raises(UserError, match=r"strategy\.second_moments=.* has no checkpoint"):
        check_settings_on_disk(replace(config(tmp_path), strategy=strategy))


@pytest.mark.parametrize("moment", [-1.0, np.nan, np.inf])
def test_public_moments_that_cannot_be_are_refused(tmp_path: Path, moment: float) -> None:
    strategy = StrategyConfig(name="fedadam", second_moments=str(tmp_path / "public"))
    given = replace(config(tmp_path), strategy=strategy)
    for second in ([0.0, 1.0], [1.0, moment]):
        arrays = {"adapter": np.zeros(2, np.float32), "second_moment": np.array(second), "steps": np.ones(1)}
        save_checkpoint(tmp_path / "public", Checkpoint(1, "layout", arrays, {}))
        if second[1] == 1.0:
            check_settings_on_disk(given)
    with pytest.raises(UserError, match=r"strategy\.second_moments=.* not finite or below 0"):
        check_settings_on_disk(given)


def test_a_later_stage_is_not_asked_for_the_adapter_that_is_still_to_come(tmp_path: Path) -> None:
    later = {"rank": 16, "frozen_rank": 8, "method": "lora"}
    check_settings_on_disk(config(tmp_path, peft=later, start_adapter=str(tmp_path / "to" / "come")))
