"""A base model is what was asked for and computes packed rows as it computes them alone, or it is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from fedfinlora.cli import main
from fedfinlora.config.model import ModelConfig
from fedfinlora.config.peft import PeftConfig
from fedfinlora.errors import UserError
from fedfinlora.model.base_checks import context_tokens
from fedfinlora.model.embedded import embedded_folder
from fedfinlora.model.files import model_sha256
from fedfinlora.model.loading import add_adapter, load_base

TINY = {
    "vocab_size": 258, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 16,
}  # fmt: skip


def saved(folder: Path, kind: type, values: Any) -> ModelConfig:
    """A tiny random model with tiny-random's tokenizer."""
    torch.manual_seed(0)
    kind(values).save_pretrained(folder)
    for file in embedded_folder("memory:tiny-random").glob("*token*"):
        shutil.copy(file, folder)
    return ModelConfig(name="odd", path=str(folder), quantization="none")


def refused(model: ModelConfig, *words: str) -> None:
    with pytest.raises(UserError) as error:
        load_base(model)
    for word in words:
        assert word in str(error.value)


def test_a_window_shorter_than_the_rows_is_refused(tmp_path: Path) -> None:
    model = saved(tmp_path, MistralForCausalLM, MistralConfig(**TINY, sliding_window=16))
    refused(model, "looks back 16 tokens only", "model.context_tokens=16")
    load_base(ModelConfig(name="odd", path=str(tmp_path), quantization="none", context_tokens=16))
    load_base(saved(tmp_path, MistralForCausalLM, MistralConfig(**TINY, sliding_window=None)))
    load_base(saved(tmp_path, Qwen2ForCausalLM, Qwen2Config(**TINY, use_sliding_window=False, sliding_window=16)))


def test_attention_that_packed_rows_do_not_have_is_refused(tmp_path: Path) -> None:
    refused(
        saved(tmp_path / "gemma", Gemma2ForCausalLM, Gemma2Config(**TINY, sliding_window=512)), "attn_logit_softcapping"
    )
    bloom = BloomConfig(
        vocab_size=258, hidden_size=32, n_layer=2, n_head=2
    )  # biases by distance, not known by name here
    refused(saved(tmp_path / "bloom", BloomForCausalLM, bloom), "packed rows")


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "model.quantization=int8"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            "model.quantization=nf4",
        ),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "(fp4)"),
    ],
)
def test_files_that_are_quantized_otherwise_than_asked_are_refused(
    tmp_path: Path, stored: dict[str, Any], found: str
) -> None:
    model = saved(tmp_path, LlamaForCausalLM, LlamaConfig(**TINY))
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"quantization_config": stored}))
    refused(model, "quantized already", found)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    refused(
        saved(tmp_path, LlamaForCausalLM, LlamaConfig(**TINY | {"vocab_size": 200})), "258 tokens", "200 embeddings"
    )


def test_a_models_own_positions_limit_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path / "model", LlamaForCausalLM, LlamaConfig(**TINY | {"max_position_embeddings": 128}))
    assert context_tokens(model) == 128
    rows = tmp_path / "rows"
    rows.mkdir()
    lines = [json.dumps({"context": f"{'long ' * 60}{number}", "target": "positive"}) for number in range(3)]
    (rows / "fpb_train.jsonl").write_text("\n".join(lines) + "\n")
    main(["data", "check", str(rows), f"model.path={tmp_path / 'model'}"])
    assert "3 rows longer than the model's context window" in capsys.readouterr().out
    assert context_tokens(ModelConfig(name="served", path=str(tmp_path / "nothing"), context_tokens=77)) == 77


@pytest.mark.parametrize("name", ["nonexistent", "embed_tokens"])
def test_a_target_that_no_linear_layer_has_is_refused_among_others(tmp_path: Path, name: str) -> None:
    model = saved(tmp_path, LlamaForCausalLM, LlamaConfig(**TINY))
    base, _ = load_base(model)
    with pytest.raises(UserError, match=rf"no linear layer {name}\. It has .*q_proj"):
        add_adapter(base, model, PeftConfig(target_modules=("q_proj", name)), 0)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling_own.py", "model.gguf"])
def test_every_file_that_can_be_loaded_counts_in_a_models_hash(tmp_path: Path, name: str) -> None:
    model = saved(tmp_path, LlamaForCausalLM, LlamaConfig(**TINY))
    (tmp_path / name).write_bytes(b"one")
    before = model_sha256(model)
    (tmp_path / name).write_bytes(b"another")
    assert model_sha256(model) != before
