"""IR-QLoRA (Qin, Ma, Zheng et al. 2024, arXiv 2402.05445): elastic connections around A and B.

Information elastic connection (section 3.3): y = W x + s U2(U1(x)) with

    U1(x) = A x + beta1 mean(x)        mean: of each of the rank runs of d_in / rank neighbouring inputs
    U2(h) = B h + beta2 repeat(h)      repeat: each of the rank numbers d_out / rank times

beta1 and beta2, one number each a layer, are trained and start at zero, as in the authors' code. Mean and repeat are
fixed matrices P1 (rank, d_in) and P2 (d_out, rank), so this is LoRA with A + beta1 P1 and B + beta2 P2, and that is
what a saved folder has. The banks' A, B and betas are averaged each by itself: the means of A + beta1 P1 and of B +
beta2 P2 are exact, that of their product is not, as with LoRA. Difference: peft.dropout acts on mean(x) too.

The paper's entropy calibration (section 3.2) is not applied: bitsandbytes has no nf4 with a shift for each block, and
every bank would have to quantize its base again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedfinlora.config.peft import PeftConfig
from fedfinlora.errors import UserError
from fedfinlora.model.peft_methods.lora import ADAPTER_NAME, A, B, Lora, Tensors, adapted_layers, kaiming_uniform

if TYPE_CHECKING:
    from torch import nn

TRAINED_A, TRAINED_B = ".lora_A.elastic.weight", ".lora_B.elastic.weight"
BETA_1, BETA_2 = ".lora_A.beta1", ".lora_B.beta2"


class IrQlora(Lora):
    """A, B, beta1 and beta2 are trained."""

    trained = (TRAINED_A, BETA_1, TRAINED_B, BETA_2)
    drawn = trained
    whole = False

    def build(self, model: nn.Module, peft: PeftConfig) -> None:
        from fedfinlora.model.peft_methods.modules import ElasticFirst, ElasticSecond

        for path, layer in adapted_layers(model):
            if layer.in_features % peft.rank or layer.out_features % peft.rank:
                raise UserError(
                    f"peft=ir_qlora: {path} has {layer.in_features} inputs and {layer.out_features} outputs, and "
                    f"peft.rank={peft.rank} does not divide both. Set one that does."
                )
            layer.lora_A[ADAPTER_NAME] = ElasticFirst(layer.lora_A[ADAPTER_NAME])
            layer.lora_B[ADAPTER_NAME] = ElasticSecond(layer.lora_B[ADAPTER_NAME])

    def start(self, model: nn.Module, seed: int) -> None:
        """A Kaiming-uniform from the run's seed; B and the betas zero."""
        import torch

        drawn = kaiming_uniform(seed)
        with torch.no_grad():
            for _, layer in adapted_layers(model):
                first, second = layer.lora_A[ADAPTER_NAME], layer.lora_B[ADAPTER_NAME]
                first.weight.copy_(drawn(first.weight.shape))
                for zero in (second.elastic.weight, first.beta1, second.beta2):
                    zero.zero_()

    def saved(self, peft: PeftConfig) -> PeftConfig:
        return replace(peft, method="lora")

    def exported(self, trained: Tensors, frozen: Tensors) -> Tensors:
        tensors = {}
        for name in (name for name in trained if name.endswith(TRAINED_A)):
            layer = name.removesuffix(TRAINED_A)
            a, b = trained[name], trained[layer + TRAINED_B]
            mean, repeat = connections(len(a), a.shape[1], len(b))
            tensors[layer + A] = a + trained[layer + BETA_1] * mean
            tensors[layer + B] = b + trained[layer + BETA_2] * repeat
        return tensors

    def imported(self, tensors: Tensors, frozen: Tensors, file: Path) -> Tensors:
        """The same function with both betas zero: how A + beta1 P1 was made up cannot be read off it."""
        found: dict[str, NDArray[np.float32]] = {}
        for name in (name for name in tensors if name.endswith(A)):
            layer = name.removesuffix(A)
            found |= {layer + TRAINED_A: tensors[name], layer + TRAINED_B: tensors[layer + B]}
            found |= {layer + beta: np.zeros(1, np.float32) for beta in (BETA_1, BETA_2)}
        return found

    def parameters(self, peft: PeftConfig, shapes: Sequence[tuple[int, int]]) -> int:
        return sum(peft.rank * (size_in + size_out) + 2 for size_in, size_out in shapes)


def connections(rank: int, size_in: int, size_out: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(P1 (rank, size_in), P2 (size_out, rank)) float32.

    >>> [matrix.tolist() for matrix in connections(2, 4, 4)]
    [[[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]]
    """
    own = np.eye(rank, dtype=np.float32)
    means = np.repeat(own, size_in // rank, axis=1) * np.float32(rank / size_in)
    return means, np.repeat(own, size_out // rank, axis=0)
