"""Llama architectures with random weights, made in memory, to check and measure GPUs without the hub.

A model is made layer by layer on its device and quantized as it goes, so the host never holds more than one matrix and
the device never more than the quantized model and one matrix (`build`). Its folder holds config.json and a byte-level
tokenizer (`write_folder`), no weights. Weights are normal with standard deviation 1.28 / sqrt(hidden size), which is
Llama's 0.02 at 4,096; norms are one. They are drawn on the device, so a CPU and a GPU hold different weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fedfinlora.seeds import derive_seed

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHT_STD_AT_ONE = 1.28
"""Standard deviation of a drawn weight times the square root of the hidden size."""
ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "memory:llama-3.1-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "memory:llama-4-layers": {
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 8192,
    },
}
"""Path -> what its `transformers.LlamaConfig` is made of: Llama 3.1 8B (Grattafiori et al. 2024, table 3), and four
layers of its width for a reference on the CPU.
"""


def write_folder(path: str, folder: Path) -> None:
    """config.json and the tokenizer of `path`, one of ARCHITECTURES, into `folder`."""
    from transformers import LlamaConfig

    tokenizer = byte_tokenizer()
    special: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "tie_word_embeddings": False}
    LlamaConfig(**ARCHITECTURES[path], **special, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def byte_tokenizer() -> Any:
    """A `PreTrainedTokenizerFast` of 258 tokens: <pad>, <eos>, and one for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def build(folder: Path, device: torch.device, dtype: torch.dtype, quantization: Any = None) -> nn.Module:
    """The causal language model of a folder's config.json, with weights drawn on `device`.

    `quantization` is a `BitsAndBytesConfig` or None; the decoder's linear layers are quantized one after the other, and
    the embeddings, norms and head stay in `dtype`, as with `from_pretrained`.
    """
    import torch
    from transformers import AutoConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = AutoConfig.from_pretrained(folder)
    config.dtype = dtype
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    std = WEIGHT_STD_AT_ONE / config.hidden_size**0.5
    rng = torch.Generator(device).manual_seed(derive_seed(0, "memory model", str(folder.name)))

    def drawn(shape: torch.Size) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(0.0, std, generator=rng)

    for name, module in list(model.named_modules()):
        in_decoder = ".layers." in name
        if isinstance(module, torch.nn.Linear) and quantization is not None and in_decoder:
            model.set_submodule(name, _quantized(module, drawn(module.weight.shape), quantization))
        elif isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            module.weight = torch.nn.Parameter(drawn(module.weight.shape), requires_grad=False)
        elif isinstance(getattr(module, "weight", None), torch.nn.Parameter):
            ones = torch.ones(cast(Any, module).weight.shape, dtype=dtype, device=device)
            cast(Any, module).weight = torch.nn.Parameter(ones, requires_grad=False)
    if quantization is not None:
        _mark(model, quantization)
    return model


def _quantized(module: nn.Linear, weight: torch.Tensor, quantization: Any) -> nn.Module:
    """bitsandbytes' layer in the place of `module`, its weight (out, in) quantized on the weight's device."""
    import torch
    from bitsandbytes.nn.modules import Int8Params, Linear4bit, Linear8bitLt, Params4bit

    with torch.device("meta"):
        layer: Any
        if quantization.load_in_8bit:
            layer = Linear8bitLt(
                module.in_features,
                module.out_features,
                bias=False,
                has_fp16_weights=False,
                threshold=quantization.llm_int8_threshold,
            )
        else:
            layer = Linear4bit(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=quantization.bnb_4bit_compute_dtype,
                compress_statistics=quantization.bnb_4bit_use_double_quant,
                quant_type=quantization.bnb_4bit_quant_type,
            )
    if quantization.load_in_8bit:
        packed: Any = Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        own = {name: getattr(layer.weight, name) for name in ("compress_statistics", "quant_type", "blocksize")}
        packed = Params4bit(weight, requires_grad=False, module=layer, **own)
    layer.weight = packed.to(weight.device)  # quantizes
    return cast("nn.Module", layer)


def _mark(model: Any, quantization: Any) -> None:
    """What transformers sets on a model that it quantizes: PEFT and Trainer go by it."""
    from transformers.quantizers.auto import AutoHfQuantizer

    model.hf_quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
    model.config.quantization_config = quantization
    model.is_quantized, model.quantization_method = True, quantization.quant_method
    model.is_loaded_in_8bit, model.is_loaded_in_4bit = quantization.load_in_8bit, quantization.load_in_4bit
