"""Several LoRA adapters in one loaded model, by PEFT, next to the adapter of its session and only for a while."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fedfinlora.model.peft_methods.lora import ADAPTER_NAME, Tensors

if TYPE_CHECKING:
    import peft
    from torch import nn


@contextmanager
def experts_in(model: nn.Module, adapters: Sequence[tuple[peft.LoraConfig, Tensors]]) -> Iterator[list[str]]:
    """The names under which PEFT knows the adapters meanwhile, on whichever layers; afterwards the model is as it was,
    in eval mode, with its own adapter active. What the caller adds under other names, it takes off itself.

    `adapters` are (configuration, saved name -> tensor): A (rank, d_in) and B (d_out, rank) of each layer.
    """
    import torch
    from peft import set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = cast(Any, model)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    own = {module for module in model.modules() if isinstance(module, BaseTunerLayer)}
    names = [f"task_{number}" for number in range(len(adapters))]
    try:
        with torch.random.fork_rng(devices=[]), quiet_peft():
            for name, (config, tensors) in zip(names, adapters, strict=True):
                adapted.add_adapter(name, config)
                values = {key: torch.from_numpy(np.ascontiguousarray(tensor)) for key, tensor in tensors.items()}
                set_peft_model_state_dict(adapted, values, adapter_name=name)
        yield names
    finally:
        for place, module in list(model.named_modules()):  # PEFT leaves a layer wrapped when its last adapter goes
            if isinstance(module, BaseTunerLayer) and module not in own:
                parent, _, child = place.rpartition(".")
                setattr(model.get_submodule(parent), child, cast(Any, module).base_layer)
        adapted.set_adapter(ADAPTER_NAME)
        for name in names:
            if name in adapted.peft_config:
                adapted.delete_adapter(name)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])
        model.eval()


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warning that PEFT asks transformers by its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield
