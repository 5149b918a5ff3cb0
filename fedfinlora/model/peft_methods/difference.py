"""LoRA that starts from parts of the base: W x + s (B A - B0 A0) x, with B0 A0 taken from W and A, B starting there.

PiSSA and OLoRA put W - s B0 A0 in the place of the base's weight, which would have to be quantized again and could not
be shared. Here the base stays, and the difference is computed next to it: exactly the same function.

Saved folders are ordinary LoRA of twice the rank: A over A0, and B next to -B0. alpha is doubled too, so s is the same.
A and B are averaged each by itself, as LoRA's are; B0 A0, the same at all banks, drops out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedfinlora.config.peft import PeftConfig
from fedfinlora.errors import UserError
from fedfinlora.model.peft_methods.lora import ADAPTER_NAME, A, B, Lora, Tensors, adapted_layers
from fedfinlora.model.peft_methods.lora_xs import OUTSIDE, base_weight

if TYPE_CHECKING:
    from torch import nn

TRAINED_A, TRAINED_B = ".lora_A.trained.weight", ".lora_B.trained.weight"
START_A, START_B = ".lora_A.start.weight", ".lora_B.start.weight"
"""Ends of the saved names of A and A0, (rank, d_in), and of B and B0, (d_out, rank)."""


class Difference(Lora):
    """A and B are trained; A0 and B0 come from the base and stay."""

    trained = (TRAINED_A, TRAINED_B)
    drawn = ()
    whole = False

    @abstractmethod
    def start_factors(
        self, weight: NDArray[np.float64], rank: int, scaling: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(A0 (rank, d_in), B0 (d_out, rank)) of a weight (d_out, d_in). UserError if it has no such rank."""

    @property
    def needs_base(self) -> bool:
        return True

    def is_fixed_by_seed(self, peft: PeftConfig) -> bool:
        return False

    def build(self, model: nn.Module, peft: PeftConfig) -> None:
        import torch
        from torch import nn

        from fedfinlora.model.peft_methods.modules import Apart, Both

        def linear(weight: NDArray[np.float32], device: torch.device, is_trained: bool) -> nn.Linear:
            made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            made.weight = nn.Parameter(torch.from_numpy(weight.copy()).to(device), requires_grad=is_trained)
            return made

        for path, layer in adapted_layers(model):
            base = layer.get_base_layer()
            try:
                a, b = self.start_factors(base_weight(base), peft.rank, layer.scaling[ADAPTER_NAME])
            except UserError as error:
                raise UserError(f"peft={peft.method}: {path}: {error}") from error
            device = base.weight.device
            layer.lora_A[ADAPTER_NAME] = Both(linear(a, device, True), linear(a, device, False))
            layer.lora_B[ADAPTER_NAME] = Apart(linear(b, device, True), linear(b, device, False))

    def start(self, model: nn.Module, seed: int) -> None:
        """A = A0 and B = B0, as they were built; after training the caller puts them back."""

    def adds_nothing(self, trained: Tensors) -> bool:
        """Not to be seen without A0 and B0."""
        return False

    def saved(self, peft: PeftConfig) -> PeftConfig:
        return replace(peft, method="lora", rank=2 * peft.rank, alpha=2 * peft.alpha)

    def exported(self, trained: Tensors, frozen: Tensors) -> Tensors:
        tensors = {}
        for name in (name for name in trained if name.endswith(TRAINED_A)):
            layer = name.removesuffix(TRAINED_A)
            tensors[layer + A] = np.concatenate([trained[name], frozen[layer + START_A]])
            b, start = trained[layer + TRAINED_B], frozen[layer + START_B]
            tensors[layer + B] = np.ascontiguousarray(np.concatenate([b, -start], axis=1))
        return tensors

    def recovered(self, tensors: Tensors, peft: PeftConfig) -> Tensors | None:
        rank = peft.rank
        first = {name.removesuffix(A) + TRAINED_A: a[:rank] for name, a in tensors.items() if name.endswith(A)}
        second = {name.removesuffix(B) + TRAINED_B: b[:, :rank] for name, b in tensors.items() if name.endswith(B)}
        return {**first, **second}

    def imported(self, tensors: Tensors, frozen: Tensors, file: Path) -> Tensors:
        found = {}
        for name in (name for name in frozen if name.endswith(START_A)):
            layer = name.removesuffix(START_A)
            rank = len(frozen[name])
            a, b = tensors[layer + A], tensors[layer + B]
            for end, saved, start in ((A, a[rank:], frozen[name]), (B, -b[:, rank:], frozen[layer + START_B])):
                if np.linalg.norm(saved - start) > OUTSIDE * np.linalg.norm(start):
                    raise UserError(
                        f"{file}: {layer}{end} does not begin where this method begins with this base model. Set "
                        "model= and model.quantization= as in its run, or evaluate it as peft=lora."
                    )
            found[layer + TRAINED_A], found[layer + TRAINED_B] = a[:rank], np.ascontiguousarray(b[:, :rank])
        return found

    def parameters(self, peft: PeftConfig, shapes: Sequence[tuple[int, int]]) -> int:
        return sum(peft.rank * (size_in + size_out) for size_in, size_out in shapes)
