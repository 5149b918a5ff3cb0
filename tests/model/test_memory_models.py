"""Models with random weights: Llama 3.1 8B's size, quantized as they are made, without a file of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedfinlora.config.model import ModelConfig
from fedfinlora.model.embedded import embedded_folder
from fedfinlora.model.memory_models import ARCHITECTURES, build, write_folder
from fedfinlora.model.quantized import quantization_config

SMALL, LARGE = "memory:llama-4-layers", "memory:llama-3.1-8b"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("memory") / "small"
    write_folder(SMALL, made)
    return made


def built(folder: Path, quantization: str = "none") -> Any:
    config = ModelConfig(path=SMALL, quantization=quantization)
    return build(folder, torch.device("cpu"), torch.float32, quantization_config(config, torch.float32))


def test_the_large_one_has_the_parameters_of_llama_3_1_8b() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(embedded_folder(LARGE))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_030_261_248
    assert config.rope_parameters["factor"] == 8.0


def test_a_folder_holds_no_weights(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.iterdir()) < 100_000
    assert (folder / "config.json").is_file()


@pytest.mark.parametrize(
    ("quantization", "layer"), [("none", "Linear"), ("nf4", "Linear4bit"), ("int8", "Linear8bitLt")]
)
def test_layers_of_the_decoder_are_quantized_and_the_rest_is_not(folder: Path, quantization: str, layer: str) -> None:
    model = built(folder, quantization)
    kinds = {type(module).__name__ for name, module in model.named_modules() if name.endswith("_proj")}
    assert kinds == {layer}
    assert type(model.lm_head).__name__ == "Linear"
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    logits = model(input_ids=torch.arange(8).view(1, -1)).logits
    assert torch.isfinite(logits).all()
    assert float(logits.detach().std()) > 0.3


def test_the_same_folder_gives_the_same_weights(folder: Path) -> None:
    one, other = built(folder).state_dict(), built(folder).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_transformers_and_peft_know_that_it_is_quantized(folder: Path) -> None:
    model = built(folder, "nf4")
    assert model.is_loaded_in_4bit
    assert not model.is_loaded_in_8bit
    assert model.is_quantized
    assert set(ARCHITECTURES) == {SMALL, LARGE}
