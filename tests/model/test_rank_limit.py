"""The largest rank that makes sense, by the base's configuration alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedfinlora.config.model import ModelConfig
from fedfinlora.config.peft import PeftConfig
from fedfinlora.errors import ConfigError
from fedfinlora.model.rank_limit import check_rank, check_rank_here, layer_sizes

TINY = ModelConfig(name="tiny-random", path="memory:tiny-random", quantization="none")
"""q_proj is 64 x 64, k_proj and v_proj are 64 x 32."""


def written(folder: Path, **more: object) -> ModelConfig:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    (folder / "config.json").write_text(json.dumps(sizes | more))
    return ModelConfig(name="own", path=str(folder), quantization="none")


@pytest.mark.parametrize(
    ("peft", "most"),
    [
        (PeftConfig(rank=33), 32),
        (PeftConfig(rank=65, target_modules=("q_proj",)), 64),
        (PeftConfig("vera", 65), 64),
        (PeftConfig("shira", 22), 21),
        (PeftConfig("qalora", 3), 2),
    ],
)
def test_a_rank_above_what_a_layer_holds_is_refused_with_the_largest(
    tmp_path: Path, peft: PeftConfig, most: int
) -> None:
    with pytest.raises(ConfigError, match=f"Set peft.rank={most} or smaller"):
        check_rank_here(written(tmp_path), peft)


def test_the_smallest_side_itself_and_unknown_layers_are_accepted(tmp_path: Path) -> None:
    check_rank_here(written(tmp_path), PeftConfig(rank=32))
    check_rank_here(written(tmp_path), PeftConfig(rank=10_000, target_modules=("c_attn",)))


def test_ranks_of_an_earlier_stage_are_not_counted(tmp_path: Path) -> None:
    check_rank_here(written(tmp_path), PeftConfig(rank=40, frozen_rank=8))


def test_the_text_part_of_a_larger_model_counts(tmp_path: Path) -> None:
    inner = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "head_dim": 2}
    assert layer_sizes({"text_config": inner})["o_proj"] == (4, 8)
    with pytest.raises(ConfigError, match=r"peft\.rank=4 or smaller"):
        check_rank_here(written(tmp_path, text_config=inner), PeftConfig(rank=8))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"hidden_size": "many"}'])
def test_a_configuration_that_says_no_sizes_is_left_to_the_loading(tmp_path: Path, text: str) -> None:
    model = written(tmp_path)
    (tmp_path / "config.json").write_text(text)
    check_rank_here(model, PeftConfig(rank=10_000))


def test_at_load_the_rank_is_checked_for_a_model_that_was_not_here() -> None:
    with pytest.raises(ConfigError, match=r"peft\.rank=10000 is more than peft=lora can use on tiny-random: k_proj"):
        check_rank(TINY, PeftConfig(rank=10_000))
