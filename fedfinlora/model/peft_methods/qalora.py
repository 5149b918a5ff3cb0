"""QA-LoRA (Xu, Xie, Gu et al. 2024, arXiv 2309.14717, algorithm 1): inputs are added up in groups before A.

y = W x + s B A' pool(x), where pool(x) is the sum of each group of peft.group_size neighbouring inputs and A' is (rank,
d_in / group_size): one column a group, as a quantized weight has one zero point a group. It is LoRA whose A repeats
each column of A', so saved folders are ordinary LoRA of the same rank and alpha. PEFT's own QALoRA, for GPTQ layers
alone, scales pool(x) by the number of groups; here it is the paper's.

A' and B are averaged each by itself, as LoRA's are. The adapter is not merged into the base's zero points.
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
from fedfinlora.model.peft_methods.lora import ADAPTER_NAME, A, B, Lora, Tensors, adapted_layers, kaiming_uniform

if TYPE_CHECKING:
    from torch import nn

TRAINED_A, TRAINED_B = ".lora_A.pooled.weight", ".lora_B.pooled.weight"
"""Ends of the saved names of a layer's A', (rank, d_in / group_size), and B, (d_out, rank)."""
GROUPS = ".lora_A.groups"
"""End of the name of the group of each input, (d_in,)."""


class QaLora(Lora):
    """A' and B are trained."""

    trained = (TRAINED_A, TRAINED_B)
    drawn = (TRAINED_A, TRAINED_B)
    whole = False

    def build(self, model: nn.Module, peft: PeftConfig) -> None:
        from torch import nn

        from fedfinlora.model.peft_methods.modules import Pooled

        for path, layer in adapted_layers(model):
            groups, left = divmod(layer.in_features, peft.group_size)
            if left:
                raise UserError(
                    f"peft=qalora: {path} has {layer.in_features} inputs, which peft.group_size={peft.group_size} does "
                    "not divide. Set one that does."
                )
            device = layer.lora_A[ADAPTER_NAME].weight.device
            pooled = nn.Linear(groups, peft.rank, bias=False, device=device)
            layer.lora_A[ADAPTER_NAME] = Pooled(pooled, peft.group_size)
            layer.lora_B[ADAPTER_NAME] = nn.Sequential(OrderedDict(pooled=layer.lora_B[ADAPTER_NAME]))

    def start(self, model: nn.Module, seed: int) -> None:
        """A' Kaiming-uniform from the run's seed, B zero."""
        import torch

        drawn = kaiming_uniform(seed)
        with torch.no_grad():
            for _, layer in adapted_layers(model):
                first = layer.lora_A[ADAPTER_NAME]
                a, groups = first.weight, first.groups
                groups.copy_(torch.arange(len(groups)) // first.size)
                a.copy_(drawn(a.shape))
                layer.lora_B[ADAPTER_NAME].pooled.weight.zero_()

    def saved(self, peft: PeftConfig) -> PeftConfig:
        return replace(peft, method="lora")

    def exported(self, trained: Tensors, frozen: Tensors) -> Tensors:
        tensors = {}
        for name in (name for name in trained if name.endswith(TRAINED_A)):
            layer = name.removesuffix(TRAINED_A)
            tensors[layer + A] = trained[name][:, frozen[layer + GROUPS].astype(np.int64)]
            tensors[layer + B] = trained[layer + TRAINED_B]
        return tensors

    def recovered(self, tensors: Tensors, peft: PeftConfig) -> Tensors | None:
        size = peft.group_size
        first = {name.removesuffix(A) + TRAINED_A: a[:, ::size] for name, a in tensors.items() if name.endswith(A)}
        second = {name.removesuffix(B) + TRAINED_B: b for name, b in tensors.items() if name.endswith(B)}
        return {**first, **second}

    def imported(self, tensors: Tensors, frozen: Tensors, file: Path) -> Tensors:
        found = {}
        for name, groups in frozen.items():
            layer = name.removesuffix(GROUPS)
            members = groups.astype(np.int64)
            saved = tensors[layer + A]
            found[layer + TRAINED_A] = np.ascontiguousarray(saved[:, np.unique(members, return_index=True)[1]])
            found[layer + TRAINED_B] = tensors[layer + B]
            if not np.array_equal(found[layer + TRAINED_A][:, members], saved):
                raise UserError(
                    f"{file}: {layer}{A} is not the same for the inputs of a group. Set peft.group_size= as in its "
                    "run, or peft=lora."
                )
        return found

    def most_rank(self, peft: PeftConfig, size_in: int, size_out: int) -> int:
        return min(size_in // peft.group_size, size_out)

    def parameters(self, peft: PeftConfig, shapes: Sequence[tuple[int, int]]) -> int:
        return sum(peft.rank * (size_in // peft.group_size + size_out) for size_in, size_out in shapes)
