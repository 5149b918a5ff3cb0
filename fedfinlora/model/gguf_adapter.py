"""An adapter as llama.cpp reads it: one GGUF file, for `llama-server --lora FILE`.

llama.cpp orders the rows of a Llama's W_q and W_k so that the two halves of each head's rotation alternate; here B is
ordered likewise (as by its convert_lora_to_gguf.py). It multiplies B A by alpha / rank, which is 1 here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedfinlora.errors import UserError
from fedfinlora.model.plain_lora import Matrix, PlainLora


def write_gguf(file: Path, adapter: PlainLora, config: Any) -> None:
    """Write the adapter of a base model with this transformers configuration. UserError where that is no Llama."""
    from gguf import MODEL_ARCH, GGUFType, GGUFWriter, get_tensor_name_map

    if config.model_type != "llama":
        raise UserError(f"The base is a {config.model_type} model; only Llamas become GGUF. Take --for merged.")
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = GGUFWriter(file, "llama")
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(adapter.rank))
    for path, (a, b) in adapter.layers.items():
        name = names.get_name(f"{path}.weight", try_suffixes=(".weight",))
        if name is None:
            raise UserError(f"llama.cpp has no name for the layer {path}. Take --for merged.")
        missing = adapter.rank - len(a)
        writer.add_tensor(f"{name}.lora_a", np.pad(a, ((0, missing), (0, 0))))
        writer.add_tensor(f"{name}.lora_b", np.pad(in_gguf_order(path, b, config), ((0, 0), (0, missing))))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def in_gguf_order(path: str, b: Matrix, config: Any) -> Matrix:
    """B, (d_out, rank), with its rows as llama.cpp orders those of the weight."""
    module = path.rpartition(".")[2]
    if module not in ("q_proj", "k_proj"):
        return b
    heads = config.num_attention_heads if module == "q_proj" else config.num_key_value_heads
    halves = b.reshape(heads, 2, len(b) // heads // 2, b.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(b.shape))
