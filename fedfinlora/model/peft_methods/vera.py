"""VeRA (Kopiczko, Blankevoort, Asano 2024, arXiv 2310.11454, eq. 2): y = W x + b * B (d * A x), b and d are trained.

A (rank, largest d_in) and B (largest d_out, rank) are random and shared by all layers, each of which takes its first
columns or rows. They are drawn from the run's seed (Kaiming uniform, as in PEFT), so the wire carries rank + d_out
numbers a layer. d starts at 0.1, b at zero; there is no scaling.

The update is a product of b and d, so their means are not the mean of the updates. Saved folders are ordinary LoRA of
the same rank, with A = d * A, B = b * B and alpha = rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedfinlora.config.peft import PeftConfig
from fedfinlora.errors import UserError
from fedfinlora.model.peft_methods.lora import ADAPTER_NAME, A, B, Lora, Tensors, adapted_layers
from fedfinlora.model.peft_methods.lora_xs import FROZEN_B, OUTSIDE
from fedfinlora.seeds import derive_seed

if TYPE_CHECKING:
    from torch import nn

TRAINED_B, TRAINED_D = ".lora_B.b", ".lora_B.d"
"""Ends of the saved names of a layer's b, (d_out,), and d, (rank,)."""
D_START = 0.1
"""PEFT's d_initial, and the paper's."""


class Vera(Lora):
    """b and d of each layer are trained."""

    trained = (TRAINED_B, TRAINED_D)
    drawn = (TRAINED_B, TRAINED_D, A, FROZEN_B)
    whole = False

    def is_fixed_by_seed(self, peft: PeftConfig) -> bool:
        return True

    def build(self, model: nn.Module, peft: PeftConfig) -> None:
        from fedfinlora.model.peft_methods.modules import VectorScaled

        for _, layer in adapted_layers(model):
            layer.scaling[ADAPTER_NAME] = 1.0
            for factors in (layer.lora_A, layer.lora_B):
                factors[ADAPTER_NAME].weight.requires_grad_(False)
            layer.lora_B[ADAPTER_NAME] = VectorScaled(layer.lora_B[ADAPTER_NAME])

    def start(self, model: nn.Module, seed: int) -> None:
        """A and B from the seed, on the CPU: the same bytes on every device; d 0.1, b zero."""
        import torch

        layers = [layer for _, layer in adapted_layers(model)]
        rank = len(layers[0].lora_B[ADAPTER_NAME].d)
        generator = torch.Generator().manual_seed(derive_seed(seed, "adapter"))
        a, b = (
            torch.nn.init.kaiming_uniform_(torch.empty(shape), generator=generator)
            for shape in (
                (rank, max(layer.in_features for layer in layers)),
                (max(layer.out_features for layer in layers), rank),
            )
        )
        with torch.no_grad():
            for layer in layers:
                second = layer.lora_B[ADAPTER_NAME]
                layer.lora_A[ADAPTER_NAME].weight.copy_(a[:, : layer.in_features])
                second.B.weight.copy_(b[: layer.out_features])
                second.d.fill_(D_START)
                second.b.zero_()

    def adds_nothing(self, trained: Tensors) -> bool:
        return not any(tensor.any() for name, tensor in trained.items() if name.endswith(TRAINED_B))

    def saved(self, peft: PeftConfig) -> PeftConfig:
        return replace(peft, method="lora", alpha=peft.rank)

    def exported(self, trained: Tensors, frozen: Tensors) -> Tensors:
        tensors = {}
        for name in (name for name in trained if name.endswith(TRAINED_B)):
            layer = name.removesuffix(TRAINED_B)
            tensors[layer + A] = trained[layer + TRAINED_D][:, None] * frozen[layer + A]
            tensors[layer + B] = trained[name][:, None] * frozen[layer + FROZEN_B]
        return tensors

    def imported(self, tensors: Tensors, frozen: Tensors, file: Path) -> Tensors:
        """d and b by least squares, to some 1e-7. UserError where the file's A or B is of another seed."""
        found = {}
        for name, shared in frozen.items():
            end, saved_end, trained_end = (A, A, TRAINED_D) if name.endswith(A) else (FROZEN_B, B, TRAINED_B)
            layer = name.removesuffix(end)
            saved, own = tensors[layer + saved_end].astype(np.float64), shared.astype(np.float64)
            scales = (saved * own).sum(axis=1) / (own * own).sum(axis=1)
            if np.linalg.norm(saved - scales[:, None] * own) > OUTSIDE * np.linalg.norm(saved):
                raise UserError(
                    f"{file}: {layer}{saved_end} is not the random matrix that peft=vera and this seed give, scaled. "
                    "Set seed= and peft.target_modules= as in its run, or peft=lora."
                )
            found[layer + trained_end] = scales.astype(np.float32)
        return found

    def most_rank(self, peft: PeftConfig, size_in: int, size_out: int) -> int:
        """Its numbers are rank + d_out, so more random directions than the smaller side are of use."""
        return max(size_in, size_out)

    def parameters(self, peft: PeftConfig, shapes: Sequence[tuple[int, int]]) -> int:
        return sum(peft.rank + size_out for _, size_out in shapes)
