"""MiSS (Kang, Yin 2024, arXiv 2409.15371): y = W x + D P x, with D (d_out, rank) trained and P (rank, d_in) fixed.

P adds up every rank-th input: P[i, j] = 1 where j mod rank = i. So MiSS is LoRA with this A, without scaling, and D
as B; D starts at zero. The update is linear in D: the mean of the banks' D is exactly the mean of their updates. P
follows from the shapes, so all banks have the same. Saved folders are ordinary LoRA with alpha = rank.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedfinlora.config.peft import PeftConfig
from fedfinlora.errors import UserError
from fedfinlora.model.peft_methods.lora import ADAPTER_NAME, A, B, Lora, Tensors, adapted_layers

if TYPE_CHECKING:
    from torch import nn

TRAINED = ".lora_B.D.weight"
"""End of the saved name of a layer's D, (d_out, rank)."""


class Miss(Lora):
    """D is trained."""

    trained = (TRAINED,)
    drawn = (TRAINED, A)
    whole = False

    def is_fixed_by_seed(self, peft: PeftConfig) -> bool:
        return False

    def build(self, model: nn.Module, peft: PeftConfig) -> None:
        from torch import nn

        for path, layer in adapted_layers(model):
            if peft.rank > layer.in_features:
                raise UserError(f"peft=miss: {path} has {layer.in_features} inputs. Set a smaller peft.rank.")
            layer.scaling[ADAPTER_NAME] = 1.0
            layer.lora_A[ADAPTER_NAME].weight.requires_grad_(False)
            layer.lora_B[ADAPTER_NAME] = nn.Sequential(OrderedDict(D=layer.lora_B[ADAPTER_NAME]))

    def start(self, model: nn.Module, seed: int) -> None:
        """P, and D zero."""
        import torch

        with torch.no_grad():
            for _, layer in adapted_layers(model):
                sums = layer.lora_A[ADAPTER_NAME].weight
                rank, size_in = sums.shape
                sums.copy_(torch.arange(rank).unsqueeze(1) == torch.arange(size_in) % rank)
                layer.lora_B[ADAPTER_NAME].D.weight.zero_()

    def saved(self, peft: PeftConfig) -> PeftConfig:
        return replace(peft, method="lora", alpha=peft.rank)

    def exported(self, trained: Tensors, frozen: Tensors) -> Tensors:
        return {**frozen, **{name.removesuffix(TRAINED) + B: tensor for name, tensor in trained.items()}}

    def recovered(self, tensors: Tensors, peft: PeftConfig) -> Tensors | None:
        return {name.removesuffix(B) + TRAINED: b for name, b in tensors.items() if name.endswith(B)}

    def imported(self, tensors: Tensors, frozen: Tensors, file: Path) -> Tensors:
        if not all(np.array_equal(tensors[name], sums) for name, sums in frozen.items()):
            raise UserError(f"{file}: its A does not add up inputs as MiSS does. Set peft=lora, or another file.")
        return {name.removesuffix(A) + TRAINED: tensors[name.removesuffix(A) + B] for name in frozen}

    def parameters(self, peft: PeftConfig, shapes: Sequence[tuple[int, int]]) -> int:
        return sum(peft.rank * size_out for _, size_out in shapes)
