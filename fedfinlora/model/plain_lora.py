"""Any adapter of ours as plain LoRA for other programs: W + B A, with nothing left to multiply by.

Programs differ in how they scale: PEFT multiplies B A by alpha / rank, and rsLoRA (Kalajdzievski 2023) by
alpha / sqrt(rank), which SGLang does not read. Here the factor is inside B and alpha equals the rank, so that every
program computes the same. DoRA (Liu et al. 2024) depends on the base weights; it becomes LoRA by an SVD of the change
of each weight, which keeps as much of it as the chosen rank holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.files import write_bytes
from fedfinlora.model.adapter_folder import CONFIG_FILE, WEIGHTS_FILE, base_name, peft_settings, read_tensors
from fedfinlora.model.peft_methods import METHODS
from fedfinlora.model.peft_methods.lora import A, B
from fedfinlora.model.quantized import import_bitsandbytes

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class PlainLora:
    """An adapter that adds B A to the weight of each of its layers."""

    base: str
    """The base model that it was trained on."""
    layers: Mapping[str, tuple[Matrix, Matrix]]
    """Module path, as `model.layers.0.self_attn.q_proj` -> A, (rank, d_in), and B, (d_out, rank), float32."""

    @property
    def rank(self) -> int:
        """The highest rank of a layer."""
        return max(len(a) for a, _ in self.layers.values())

    def save(self, folder: Path) -> None:
        """Write a PEFT folder: adapter_config.json and adapter_model.safetensors. All layers get the highest rank;
        what a layer lacks is zero. safetensors writes an array as it lies in memory, so each is brought to C order.
        """
        from safetensors.numpy import save

        import_bitsandbytes()
        from peft import LoraConfig

        rank = self.rank
        tensors = {}
        for path, (a, b) in self.layers.items():
            missing = rank - len(a)
            tensors[f"base_model.model.{path}{A}"] = np.ascontiguousarray(np.pad(a, ((0, missing), (0, 0))))
            tensors[f"base_model.model.{path}{B}"] = np.ascontiguousarray(np.pad(b, ((0, 0), (0, missing))))
        config = LoraConfig(
            r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=sorted(module_names(self.layers)), bias="none",
            task_type="CAUSAL_LM", base_model_name_or_path=self.base, inference_mode=True,
        ).to_dict()  # fmt: skip
        write_bytes(folder / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
        text = json.dumps(config, indent=2, sort_keys=True, default=sorted, allow_nan=False) + "\n"
        write_bytes(folder / CONFIG_FILE, text.encode())


def module_names(layers: Mapping[str, Any]) -> set[str]:
    """Last parts of the paths where all layers of the model have them, else the paths themselves.

    >>> sorted(module_names({"model.layers.0.self_attn.q_proj": 0, "model.layers.1.self_attn.q_proj": 0}))
    ['q_proj']
    """
    numbers: dict[str, set[int]] = {}
    for path in layers:
        if found := re.search(r"\.layers\.(\d+)\.", path):
            numbers.setdefault(path.rpartition(".")[2], set()).add(int(found[1]))
    count = len(set().union(*numbers.values())) if numbers else 0
    return {name if len(numbers.get(name := path.rpartition(".")[2], ())) == count else path for path in layers}


def plain_lora(folder: Path, model: Any = None, rank: int = 64) -> PlainLora:
    """A PEFT folder as plain LoRA. UserError for what is none and cannot be made one.

    `model` is the base model with the folder's adapter, which DoRA alone needs; `rank` is what DoRA is brought to.
    """
    settings = peft_settings(folder, Config())
    kind = METHODS[settings.method].peft_type
    if kind != "LORA":
        raise UserError(
            f"{folder} is a {kind} adapter, and no plain LoRA computes the same: its change has no low rank. Export it "
            "with --for merged or --for peft."
        )
    flags = METHODS[settings.method].flags
    if flags.get("use_dora"):
        return _from_dora(folder, model, rank)
    scale = settings.alpha / (settings.rank**0.5 if flags.get("use_rslora") else settings.rank)
    tensors = {name: tensor.numpy() for name, tensor in read_tensors(folder).items()}
    return PlainLora(base_name(folder), _layers(tensors, scale))


def _from_dora(folder: Path, model: Any, rank: int) -> PlainLora:
    """The best B A of the rank for the change of each weight (Eckart and Young 1936). Merges the adapter into `model`.

    PEFT's own `convert_to_lora` ignores DoRA's magnitudes, and with them most of the change.
    """
    import torch

    if model is None:
        raise UserError(f"{folder} is a DoRA adapter, which becomes LoRA only next to its base model.")
    layers = {}
    for name, module in model.named_modules():
        if not hasattr(module, "lora_magnitude_vector") or not hasattr(module, "merge"):
            continue
        weight = module.get_base_layer().weight
        before = weight.detach().float().clone()
        module.merge()
        left, values, right = torch.linalg.svd(weight.detach().float() - before, full_matrices=False)
        a, b = values[:rank, None] * right[:rank], left[:, :rank]
        layers[name.removeprefix("base_model.model.")] = (a.cpu().numpy(), b.cpu().numpy())
    return PlainLora(base_name(folder), layers)


def _layers(tensors: Mapping[str, Matrix], scale: float) -> dict[str, tuple[Matrix, Matrix]]:
    layers = {}
    for name, a in sorted(tensors.items()):
        if name.endswith(A):
            b = tensors[name.removesuffix(A) + B]
            layers[name.removesuffix(A).removeprefix("base_model.model.")] = (a, np.float32(scale) * b)
    if not layers:
        raise UserError("The adapter has no layer with A and B.")
    return layers
