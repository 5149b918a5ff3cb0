"""Arrow: several LoRA adapters as one model, each token by those that fit it, without training (Ostapenko et al. 2024,
arXiv 2405.11157; computed by PEFT, `peft.tuners.lora.arrow`).

In every layer an adapter's prototype is the top right singular vector of its B·A: the direction of input that it
changes most. A token's hidden state h weighs adapter i by the softmax of abs(h · prototype_i) over the `top_k` largest;
the layer's change is the sum of the adapters' changes under these weights. Nothing is merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from eval.expert_adapters import experts_in, quiet_peft
from eval.models import LocalModel
from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.schema import Config
from fedfinlora.model.adapter import Vector, peft_config_values
from fedfinlora.model.loading import Session
from fedfinlora.model.peft_methods import METHODS
from fedfinlora.model.peft_methods.lora import ADAPTER_NAME, Tensors
from fedfinlora.run.checkpoint import adapter_checksum

if TYPE_CHECKING:
    import peft
    from torch import nn

TOP_K = 3
"""Adapters that share a token, at most: PEFT's default."""
TEMPERATURE = 1.0
"""Of the softmax over adapters: PEFT's default."""
ROUTER = "arrow_router"
"""The name that PEFT knows the router by among a layer's adapters."""


@dataclass(frozen=True)
class ArrowExpert:
    """One of the adapters."""

    peft: PeftConfig
    """Its rank, alpha and target modules."""
    adapter: Vector
    """(layout.size,) float32."""


@dataclass
class ArrowModel(LocalModel):
    """The session's base model with several adapters, routed by Arrow."""

    experts: tuple[ArrowExpert, ...] = ()
    fixed: ClassVar[bool | None] = False
    """The router copies the adapters' scales to the device in each pass, which no CUDA graph may hold."""

    @classmethod
    def of(cls, session: Session, config: Config, experts: Sequence[ArrowExpert]) -> ArrowModel:
        """The model of adapters that all have the session's layout."""
        return cls(session, config, np.zeros(session.layout.size, np.float32), experts=tuple(experts))

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        return {
            **super().identity,
            "adapter": "arrow",
            "adapters": [
                [adapter_checksum(expert.adapter), expert.peft.method, str(expert.peft.alpha)]
                for expert in self.experts
            ],
            "layout": self.session.layout.id,
            "top_k": self._top_k,
            "temperature": TEMPERATURE,
            "seed": self.config.seed,
        }

    @property
    def _top_k(self) -> int:
        return min(TOP_K, len(self.experts))

    @contextmanager
    def in_place(self) -> Iterator[nn.Module]:
        from peft import ArrowConfig, LoraConfig

        layout, frozen = self.session.layout, self.session.frozen
        adapters = [
            (
                LoraConfig(**peft_config_values(expert.peft, self.config.model)),
                METHODS[expert.peft.method].exported(layout.views(expert.adapter), frozen),
            )
            for expert in self.experts
        ]
        arrow = ArrowConfig(top_k=self._top_k, router_temperature=TEMPERATURE, rng_seed=self.config.seed)
        with arrow_routing(self.session.model, adapters, arrow) as model:
            yield model


@contextmanager
def arrow_routing(
    model: nn.Module, adapters: Sequence[tuple[peft.LoraConfig, Tensors]], arrow: peft.ArrowConfig
) -> Iterator[nn.Module]:
    """A PEFT model with the adapters under Arrow's router, in eval mode; afterwards it is as it was.

    `adapters` are (configuration, saved name -> tensor): A (rank, d_in) and B (d_out, rank) of each layer, of the same
    ranks and target modules. What PEFT's `create_arrow_model` does with a bare base model and folders is done here with
    the model that is loaded.
    """
    import torch
    from peft import LoraConfig

    adapted = cast(Any, model)
    first = adapters[0][0]
    with experts_in(model, adapters) as names:
        try:
            arrow = replace(arrow)
            arrow.task_adapter_names, arrow.gks_adapter_names = names, []
            router = LoraConfig(r=first.r, target_modules=first.target_modules, arrow_config=arrow)
            with torch.random.fork_rng(devices=[]), quiet_peft():
                adapted.add_adapter(ROUTER, router)
            adapted.set_adapter(ROUTER)
            yield model.eval()
        finally:
            adapted.set_adapter(ADAPTER_NAME)
            if ROUTER in adapted.peft_config:
                adapted.delete_adapter(ROUTER)
            for module in list(model.modules()):
                if hasattr(module, "lora_arrow"):
                    del module.lora_arrow
