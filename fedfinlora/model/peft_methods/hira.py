"""HiRA (Huang, Zhang, Yang et al. 2025, ICLR): y = W x + (W * (B A)) x, elementwise, so the change has the rank of W.

A (rank, d_in) starts Kaiming-uniform from the run's seed, B (d_out, rank) at zero; no scaling. W is the frozen weight
as the bank computes with it, so banks that quantize alike compute the same. The banks' A and B are averaged each by
itself, as LoRA's are.

The change has no low rank, so a saved folder is PEFT's own HIRA adapter; export to plain LoRA and serving are
refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedfinlora.config.model import ModelConfig
from fedfinlora.config.peft import PeftConfig
from fedfinlora.model.peft_methods.lora import ADAPTER_NAME, Lora, Tensors, adapted_layers, kaiming_uniform

if TYPE_CHECKING:
    import torch
    from torch import nn

TRAINED_A, TRAINED_B = ".lora_B.hira_A", ".lora_B.hira_B"
"""Ends of the saved names of A and B; in PEFT's folder they are LAYER.hira_A and LAYER.hira_B."""
HERE = ".lora_B."


class Hira(Lora):
    """A and B are trained."""

    trained = (TRAINED_A, TRAINED_B)
    drawn = (TRAINED_A, TRAINED_B)
    whole = False
    peft_type = "HIRA"
    saved_ends = (".hira_A", ".hira_B")

    def build(self, model: nn.Module, peft: PeftConfig) -> None:
        from fedfinlora.model.peft_methods.modules import Hadamard, Same

        for _, layer in adapted_layers(model):
            layer.scaling[ADAPTER_NAME] = 1.0
            a, b = layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight
            layer.lora_A[ADAPTER_NAME] = Same()
            layer.lora_B[ADAPTER_NAME] = Hadamard(a, b, _weight_of(layer))

    def start(self, model: nn.Module, seed: int) -> None:
        import torch

        drawn = kaiming_uniform(seed)
        with torch.no_grad():
            for _, layer in adapted_layers(model):
                second = layer.lora_B[ADAPTER_NAME]
                second.hira_A.copy_(drawn(second.hira_A.shape))
                second.hira_B.zero_()

    def adds_nothing(self, trained: Tensors) -> bool:
        return not any(tensor.any() for name, tensor in trained.items() if name.endswith(TRAINED_B))

    def folder_config(self, peft: PeftConfig, model: ModelConfig) -> dict[str, Any]:
        return {
            "r": peft.rank,
            "hira_dropout": peft.dropout,
            "target_modules": sorted(peft.target_modules),
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": model.path,
        }

    def exported(self, trained: Tensors, frozen: Tensors) -> Tensors:
        return {name.replace(HERE, "."): tensor for name, tensor in trained.items()}

    def recovered(self, tensors: Tensors, peft: PeftConfig) -> Tensors | None:
        return self.imported(tensors, {}, Path())

    def imported(self, tensors: Tensors, frozen: Tensors, file: Path) -> Tensors:
        return {
            name.replace(end.replace(HERE, "."), end): tensor
            for end in self.trained
            for name, tensor in tensors.items()
            if name.endswith(end.replace(HERE, "."))
        }


def _weight_of(layer: Any) -> Callable[[], torch.Tensor]:
    """Gives the frozen weight that a layer computes with, (d_out, d_in), dequantized where it is packed."""
    from peft.utils.integrations import dequantize_module_weight

    def weight() -> torch.Tensor:
        base = layer.get_base_layer()
        if base.weight.is_floating_point():
            own: torch.Tensor = base.weight
            return own
        return dequantize_module_weight(base)

    return weight
