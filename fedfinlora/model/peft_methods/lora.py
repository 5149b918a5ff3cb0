"""LoRA (Hu et al. 2021), and what a PEFT method is: how an adapter is built, named, frozen, started, saved and loaded.

QLoRA (Dettmers et al. 2023) is LoRA on an nf4 base; DoRA (Liu et al. 2024) and rsLoRA (Kalajdzievski 2023) are flags of
PEFT's LoRA. FFA-LoRA (Sun et al. 2024), peft.freeze_a=true, trains B alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from fedfinlora.config.model import ModelConfig
from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.seeds import derive_seed

if TYPE_CHECKING:
    import torch
    from torch import nn

ADAPTER_NAME = "default"
Tensors = Mapping[str, NDArray[np.float32]]
"""Saved name -> tensor, float32."""
A, B = ".lora_A.weight", ".lora_B.weight"
"""Ends of the saved names of a layer's A, (rank, d_in), and B, (d_out, rank)."""
MAGNITUDE = ".lora_magnitude_vector"
"""End of the saved name of DoRA's magnitudes, (d_out,)."""


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(path, layer) of each of PEFT's LoRA layers in a model; what hangs below them may be replaced meanwhile."""
    for path, module in list(model.named_modules()):
        if ADAPTER_NAME in getattr(module, "lora_B", {}):
            yield path, module


def kaiming_uniform(seed: int) -> Callable[[Sequence[int]], torch.Tensor]:
    """Draws float32 tensors of given shapes, as PEFT starts A, from the run's seed: the same bytes for every device."""
    import torch

    generator = torch.Generator().manual_seed(derive_seed(seed, "adapter"))
    return lambda shape: torch.nn.init.kaiming_uniform_(
        torch.empty(tuple(shape), dtype=torch.float32), a=math.sqrt(5), generator=generator
    )


def mark_rates(model: nn.Module, ratio: float) -> None:
    """LoRA+ (Hayou, Ghosh, Yu 2024, arXiv 2402.12354): B learns at `ratio` times A's rate; DoRA's magnitudes
    too, as in PEFT.

    `fedfinlora.train.optimizers` reads the mark, an attribute of the parameter.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ratio != 1 and (".lora_B." in name or parameter.ndim == 1):
            parameter.rate_factor = ratio  # type: ignore[attr-defined]


def plain_config(peft: PeftConfig, flags: Mapping[str, bool], model: ModelConfig) -> dict[str, Any]:
    """The keyword arguments of `peft.LoraConfig`."""
    return {
        "r": peft.rank,
        "lora_alpha": peft.alpha,
        "lora_dropout": peft.dropout,
        "target_modules": sorted(peft.target_modules),
        "use_dora": False,
        "use_rslora": False,
        **flags,
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.path,
    }


@dataclass(frozen=True)
class Lora:
    """A PEFT method. The base class is LoRA itself; others override what differs. Methods in the order in which they
    run.
    """

    flags: Mapping[str, bool] = field(default_factory=dict)
    """Of `peft.LoraConfig`."""
    saved_as: str = "lora"
    """The method whose form the saved folder has: plain PEFT loads that."""
    trained: ClassVar[tuple[str, ...]] = (A, B, MAGNITUDE)
    """How the saved names of trained tensors end."""
    drawn: ClassVar[tuple[str, ...]] = (A, B)
    """Those that `start` sets; the others begin as they were built."""
    whole: ClassVar[bool] = True
    """Whether a saved folder has the trained tensors under their own names: else `recovered` tells what it has."""
    peft_type: ClassVar[str] = "LORA"
    """The kind of adapter in PEFT that the saved folder is."""
    saved_ends: ClassVar[tuple[str, ...]] = (A, B, MAGNITUDE)
    """How the names of tensors in the saved folder end."""

    @property
    def needs_base(self) -> bool:
        """Whether the adapter's start is made of the base's weights: a server that scores nothing then loads it too."""
        return bool(self.flags.get("use_dora"))

    def is_fixed_by_seed(self, peft: PeftConfig) -> bool:
        """Whether tensors that are not trained depend on the run's seed, so that another seed needs another adapter."""
        return peft.freeze_a

    def build(self, model: nn.Module, peft: PeftConfig) -> None:
        """Make the method of PEFT's fresh LoRA: freeze, replace or add parameters. UserError where the base does not
        allow it.
        """
        if peft.freeze_a:
            for name, parameter in model.named_parameters():
                if ".lora_A." in name:
                    parameter.requires_grad_(False)

    def start(self, model: nn.Module, seed: int) -> None:
        """Where a run starts: A `kaiming_uniform` from the run's seed, B zero."""
        import torch

        drawn = kaiming_uniform(seed)
        with torch.no_grad():
            for module in model.modules():
                if ADAPTER_NAME in getattr(module, "lora_A", {}):
                    a, b = (
                        cast(Any, module).lora_A[ADAPTER_NAME].weight,
                        cast(Any, module).lora_B[ADAPTER_NAME].weight,
                    )
                    a.copy_(drawn(a.shape))
                    b.zero_()

    def first(self, session: Any, config: Config, start: NDArray[np.float32]) -> NDArray[np.float32]:
        """Where a run starts, (layout.size,) float32, made of `start`, which adds nothing, of public rows or of weights
        that the server alone needs. The banks receive it.
        """
        return start

    def adds_nothing(self, trained: Tensors) -> bool:
        """Whether the model with these tensors is the base model. False where that cannot be read off them, as with a
        method that does not train B, or DoRA, whose magnitudes count too.
        """
        ends = [tensor for name, tensor in trained.items() if ".lora_B." in name]
        return bool(ends) and not self.flags.get("use_dora") and not any(tensor.any() for tensor in ends)

    def saved(self, peft: PeftConfig) -> PeftConfig:
        """The settings with which plain PEFT computes from `exported` what was trained."""
        return peft

    def folder_config(self, peft: PeftConfig, model: ModelConfig) -> dict[str, Any]:
        """The keyword arguments of PEFT's configuration of the saved folder, whose kind is `peft_type`."""
        return plain_config(self.saved(peft), self.flags, model)

    def exported(self, trained: Tensors, frozen: Tensors) -> Tensors:
        """The tensors of a folder in the form of `saved_as`. `frozen`: the adapter's tensors that are not trained."""
        return {**frozen, **trained}

    def recovered(self, tensors: Tensors, peft: PeftConfig) -> Tensors | None:
        """The trained tensors of a folder of `exported`, bit for bit and without the base; None where they cannot be
        read off it.
        """
        return None

    def imported(self, tensors: Tensors, frozen: Tensors, file: Path) -> Tensors:
        """The trained tensors of a folder that has the names and shapes of `exported`. UserError where it is of another
        run.
        """
        for name, expected in frozen.items():
            if not np.array_equal(tensors[name], expected):
                raise UserError(
                    f"{file}: {name} is not what peft.freeze_a=true and this seed give. Set seed= as in its run, or "
                    "peft.freeze_a=false."
                )
        return tensors

    def most_rank(self, peft: PeftConfig, size_in: int, size_out: int) -> int:
        """The largest rank that adds anything to a layer of d_in inputs and d_out outputs."""
        return min(size_in, size_out)

    def parameters(self, peft: PeftConfig, shapes: Sequence[tuple[int, int]]) -> int:
        """Numbers that are trained and sent, for layers of these (d_in, d_out)."""
        inputs = 0 if peft.freeze_a else peft.rank
        outputs = peft.rank + bool(self.flags.get("use_dora"))
        return sum(inputs * size_in + outputs * size_out for size_in, size_out in shapes)
