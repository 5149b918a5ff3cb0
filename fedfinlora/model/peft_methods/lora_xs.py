"""LoRA-XS (Bałazy, Banaei, Aberer, Tabor 2024, arXiv 2405.17604): h = W x + s B R A x, and R alone is trained.

A = V_r^T and B = U_r Sigma_r are the r largest singular triplets of the frozen weight W (out, in), as quantized; R is r
x r. Each bank computes A and B from its own copy of the base, so R is all that is sent: r² numbers a layer. The mean of
the banks' R is exactly the mean of their updates, and noise on R stays linear in the update (Fed-SB: Singhal et al.
2025, arXiv 2502.15436). Difference: R starts at zero instead of N(0, 1e-5 squared), since its gradient there, s B^T g
(A x)^T, is not zero.

R means the same at two banks only if their weights are the same. Where some compute in 16 bits and others in 32
(model.dtype=auto with and without GPUs), the checkpoint must be one of 16 bits, or model.dtype be set.

Saved folders are ordinary LoRA of rank r, with `lora_A` = A and `lora_B` = B R.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from fedfinlora.config.peft import PeftConfig
from fedfinlora.errors import UserError
from fedfinlora.model.peft_methods.lora import ADAPTER_NAME, Lora, Tensors

if TYPE_CHECKING:
    from torch import nn

TRAINED = ".lora_B.R.weight"
"""End of the saved name of a layer's R, (r, r)."""
FROZEN_A, FROZEN_B = ".lora_A.weight", ".lora_B.B.weight"
"""Ends of the saved names of a layer's A, (r, in), and B, (out, r)."""
FOLDED_B = ".lora_B.weight"
"""End of the name of B R, (out, r), in a folder; A's name there is FROZEN_A."""
LEAST_SINGULAR_VALUE = 1e-5
"""Of the largest one: below it a weight counts as having no more directions."""
OUTSIDE = 1e-3
"""Largest share of a saved tensor's norm that may lie outside the space of this base's A or B. Rounding to float32
leaves 1e-7."""


class LoraXs(Lora):
    """R of each layer, (r, r), is trained; A and B come from the base."""

    trained = (TRAINED,)
    drawn = ()
    whole = False

    @property
    def needs_base(self) -> bool:
        return True

    def is_fixed_by_seed(self, peft: PeftConfig) -> bool:
        return False

    def build(self, model: nn.Module, peft: PeftConfig) -> None:
        insert(model, peft.rank, ADAPTER_NAME)

    def start(self, model: nn.Module, seed: int) -> None:
        """R stays zero, as it was built."""

    def exported(self, trained: Tensors, frozen: Tensors) -> Tensors:
        return folded(trained, frozen)

    def imported(self, tensors: Tensors, frozen: Tensors, file: Path) -> Tensors:
        return unfolded(tensors, frozen, file)

    def parameters(self, peft: PeftConfig, shapes: Sequence[tuple[int, int]]) -> int:
        return peft.rank**2 * len(shapes)


def insert(model: nn.Module, rank: int, adapter_name: str) -> None:
    """Make LoRA-XS of a PEFT model's fresh LoRA adapter of this rank: A and B frozen, R = 0 before B.

    UserError if a weight has fewer directions than the rank. R is a linear layer that sees (tokens, r), so
    privacy=example clips it like A and B of plain LoRA.
    """
    import torch
    from torch import nn

    for path, layer in model.named_modules():
        if adapter_name not in getattr(layer, "lora_B", {}):
            continue
        adapted = cast(Any, layer)
        base = adapted.get_base_layer()
        try:
            a, b = factors(base_weight(base), rank)
        except UserError as error:
            raise UserError(f"peft=lora_xs: {path}: {error}") from error
        device = base.weight.device
        core = nn.Linear(rank, rank, bias=False, device=device, dtype=torch.float32)
        nn.init.zeros_(core.weight)
        adapted.lora_A[adapter_name].weight = nn.Parameter(torch.from_numpy(a).to(device), requires_grad=False)
        back = adapted.lora_B[adapter_name]
        back.weight = nn.Parameter(torch.from_numpy(b).to(device), requires_grad=False)
        adapted.lora_B[adapter_name] = nn.Sequential(OrderedDict(R=core, B=back))


def base_weight(layer: nn.Module) -> NDArray[np.float64]:
    """The values that a frozen linear layer computes with, (out, in) float64 on the CPU.

    Quantized weights are dequantized to float32 for every compute dtype, so that banks with and without a GPU
    get the same.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    weight = cast(Any, layer).weight
    if isinstance(layer, Linear4bit):
        state = copy.copy(weight.quant_state)
        state.dtype = torch.float32
        values = dequantize_4bit(weight.data, state)
    elif isinstance(layer, Linear8bitLt):
        # (out,): the largest absolute weight of each output. A forward pass moves it from the weight to the state.
        scales = layer.state.SCB if layer.state.SCB is not None else weight.SCB
        values = weight.data.float() * (scales.float() / 127.0).unsqueeze(1)
    else:
        values = weight.data
    return np.asarray(values.detach().cpu().double())


def factors(weight: NDArray[np.float64], rank: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(A, B) = (V_r^T (rank, in), U_r Sigma_r (out, rank)), float32, of a weight (out, in) float64.

    From the eigenvectors of the smaller Gram matrix, in float64: a relative error of some 1e-16 times the squared ratio
    of the largest to the smallest of the r singular values (15 at rank 64 in the embedded model). The largest absolute
    entry of each left vector is positive, so that signs do not depend on LAPACK. One thread takes 20 ms for 576 x 576
    and 6 s for 4,096 x 4,096. UserError if the weight has fewer directions.
    """
    from scipy.linalg import eigh

    size = min(weight.shape)
    if rank <= size:
        tall = weight.shape[0] >= weight.shape[1]
        gram = weight.T @ weight if tall else weight @ weight.T
        squares, vectors = eigh(gram, subset_by_index=(size - rank, size - 1), overwrite_a=True)
        values, vectors = np.sqrt(squares[::-1].clip(min=0.0)), vectors[:, ::-1]  # descending
        if values[-1] > LEAST_SINGULAR_VALUE * values[0]:
            left, right = (weight @ vectors / values, vectors) if tall else (vectors, weight.T @ vectors / values)
            signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(rank)])
            a, b = (right * signs).T, left * (signs * values)
            return np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)
    raise UserError(f"its weight of shape {weight.shape} has fewer than {rank} directions. Set a smaller peft.rank.")


def folded(trained: Tensors, frozen: Tensors) -> dict[str, NDArray[np.float32]]:
    """The tensors of the ordinary LoRA that computes the same: each layer's A, and B R, multiplied in float64."""
    tensors = {}
    for name, r in trained.items():
        layer = name.removesuffix(TRAINED)
        tensors[layer + FROZEN_A] = frozen[layer + FROZEN_A]
        tensors[layer + FOLDED_B] = (frozen[layer + FROZEN_B].astype(np.float64) @ r).astype(np.float32)
    return tensors


def unfolded(tensors: Tensors, frozen: Tensors, file: Path) -> dict[str, NDArray[np.float32]]:
    """Saved name -> R of an ordinary LoRA's tensors, of the shapes that `folded` gives: the R with B R A = lora_B
    lora_A.

    B has orthogonal columns and A orthonormal rows, so R = B^+ lora_B lora_A A^T, to a relative error of some 1e-7
    times the ratio of the largest to the smallest singular value. UserError where `lora_A` or `lora_B` lies outside the
    space of A or B, such as another base's.
    """
    found = {}
    for name in (name for name in frozen if name.endswith(FROZEN_B)):
        layer = name.removesuffix(FROZEN_B)
        a, b = (frozen[layer + end].astype(np.float64) for end in (FROZEN_A, FROZEN_B))
        saved_a, saved_b = (tensors[layer + end].astype(np.float64) for end in (FROZEN_A, FOLDED_B))
        rows, columns = saved_a @ a.T, np.linalg.pinv(b) @ saved_b
        for end, saved, inside in ((FROZEN_A, saved_a, rows @ a), (FOLDED_B, saved_b, b @ columns)):
            if np.linalg.norm(saved - inside) > OUTSIDE * np.linalg.norm(saved):
                raise UserError(
                    f"{file}: {layer}{end} is not of the form B R A with the A and B that peft=lora_xs takes from this "
                    "base model. Set model= and "
                    "model.quantization= as in its run, or peft=lora."
                )
        found[layer + TRAINED] = (columns @ rows).astype(np.float32)
    return found
