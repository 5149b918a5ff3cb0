"""SHiRA (Bhardwaj, Pandey, Priyadarshi et al. 2024, arXiv 2406.13175), SHiRA-Rand: a few weights of W are trained.

y = W x + D x with D (d_out, d_in) zero but for rank · (d_in + d_out) values, as many as LoRA trains, at random places.
The places are drawn from the run's seed: banks send the values only, whose mean is exactly the mean of their updates.
Values start at zero; no scaling. Each pass writes D out as a whole matrix.

D has no low rank, so a saved folder is PEFT's own SHIRA adapter; export to plain LoRA and serving are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedfinlora.config.model import ModelConfig
from fedfinlora.config.peft import PeftConfig
from fedfinlora.errors import UserError
from fedfinlora.model.peft_methods.lora import ADAPTER_NAME, Lora, Tensors, adapted_layers
from fedfinlora.seeds import derive_seed

if TYPE_CHECKING:
    from torch import nn

TRAINED = ".lora_B.values"
"""End of the saved name of a layer's values, (count,); PEFT's is LAYER.shira_weight."""
PLACES = ".lora_B.places"
"""End of the saved name of their rows and columns, (2, count); PEFT's is LAYER.shira_indices, int32."""
SAVED, SAVED_PLACES = ".shira_weight", ".shira_indices"


class Shira(Lora):
    """The values are trained."""

    trained = (TRAINED,)
    drawn = (TRAINED, PLACES)
    whole = False
    peft_type = "SHIRA"
    saved_ends = (SAVED, SAVED_PLACES)

    def is_fixed_by_seed(self, peft: PeftConfig) -> bool:
        return True

    def build(self, model: nn.Module, peft: PeftConfig) -> None:
        from fedfinlora.model.peft_methods.modules import Same, Sparse

        for path, layer in adapted_layers(model):
            size_in, size_out = layer.in_features, layer.out_features
            count = peft.rank * (size_in + size_out)
            if count > size_in * size_out:
                raise UserError(f"peft=shira: {path} has fewer than {count} weights. Set a smaller peft.rank.")
            device = layer.lora_A[ADAPTER_NAME].weight.device
            layer.scaling[ADAPTER_NAME] = 1.0
            layer.lora_A[ADAPTER_NAME] = Same()
            layer.lora_B[ADAPTER_NAME] = Sparse(count, size_in, size_out, device)

    def start(self, model: nn.Module, seed: int) -> None:
        """Places in the order of rows, as PEFT's mask gives them, by NumPy's generator on every device."""
        import torch

        with torch.no_grad():
            for path, layer in adapted_layers(model):
                sparse = layer.lora_B[ADAPTER_NAME]
                size_out, size_in = sparse.shape
                rng = np.random.default_rng(derive_seed(seed, "adapter", path))
                drawn = np.sort(rng.choice(size_out * size_in, len(sparse.values), replace=False, shuffle=False))
                sparse.places.copy_(torch.from_numpy(np.stack(np.divmod(drawn, size_in))))
                sparse.values.zero_()

    def folder_config(self, peft: PeftConfig, model: ModelConfig) -> dict[str, Any]:
        return {
            "r": peft.rank,
            "target_modules": sorted(peft.target_modules),
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": model.path,
        }

    def adds_nothing(self, trained: Tensors) -> bool:
        return not any(tensor.any() for tensor in trained.values())

    def exported(self, trained: Tensors, frozen: Tensors) -> Tensors:
        values = {name.removesuffix(TRAINED) + SAVED: tensor for name, tensor in trained.items()}
        places: dict[str, Any] = {
            name.removesuffix(PLACES) + SAVED_PLACES: tensor.astype(np.int32) for name, tensor in frozen.items()
        }
        return {**values, **places}

    def recovered(self, tensors: Tensors, peft: PeftConfig) -> Tensors | None:
        return {name.removesuffix(SAVED) + TRAINED: each for name, each in tensors.items() if name.endswith(SAVED)}

    def imported(self, tensors: Tensors, frozen: Tensors, file: Path) -> Tensors:
        found = {}
        for name, places in frozen.items():
            layer = name.removesuffix(PLACES)
            if not np.array_equal(tensors[layer + SAVED_PLACES], places):
                raise UserError(
                    f"{file}: {layer}{SAVED_PLACES} are not the places that peft=shira and this seed give. Set seed= "
                    "as in its run."
                )
            found[layer + TRAINED] = tensors[layer + SAVED]
        return found

    def most_rank(self, peft: PeftConfig, size_in: int, size_out: int) -> int:
        """All weights of the layer."""
        return size_in * size_out // (size_in + size_out)

    def parameters(self, peft: PeftConfig, shapes: Sequence[tuple[int, int]]) -> int:
        return sum(peft.rank * (size_in + size_out) for size_in, size_out in shapes)
