"""Several adapters under a trained X-LoRA gate (`eval.xlora_gate`) as one model to score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from data.catalog import Benchmark
from data.rows import Row
from eval.models import LocalModel, end_ids
from eval.xlora_gate import Gate, adapter_id, gated
from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.schema import Config
from fedfinlora.model.adapter import peft_config_values
from fedfinlora.model.adapter_folder import read_tensors
from fedfinlora.model.loading import Session
from fedfinlora.model.peft_methods.lora import Tensors

if TYPE_CHECKING:
    import peft as peft_library
    from torch import nn


@dataclass(frozen=True)
class GatedExpert:
    """One of the adapters."""

    peft: PeftConfig
    folder: Path

    def loaded(self, config: Config) -> tuple[peft_library.LoraConfig, Tensors]:
        """(PEFT's configuration without dropout, saved name -> tensor float32)."""
        from peft import LoraConfig

        values = peft_config_values(replace(self.peft, dropout=0.0), config.model)
        return LoraConfig(**values), {name: tensor.numpy() for name, tensor in read_tensors(self.folder).items()}


@dataclass
class XLoraModel(LocalModel):
    """The adapters in the gate's order."""

    experts: tuple[GatedExpert, ...] = ()
    gate: Gate | None = None
    fixed: ClassVar[bool | None] = False
    """Its two passes are not recorded as CUDA graphs."""

    @classmethod
    def of(cls, session: Session, config: Config, experts: Sequence[GatedExpert], gate: Gate) -> XLoraModel:
        """The model; the session's own adapter takes no part."""
        return cls(session, config, np.zeros(session.layout.size, np.float32), experts=tuple(experts), gate=gate)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        assert self.gate is not None
        return {
            **super().identity,
            "adapter": "xlora",
            "adapters": [adapter_id(expert.folder, expert.peft) for expert in self.experts],
            "gate": self.gate.sha256,
        }

    @contextmanager
    def in_place(self) -> Iterator[nn.Module]:
        adapters = [expert.loaded(self.config) for expert in self.experts]
        with gated(self.session.model, adapters, self.gate) as model:
            yield model

    def generate_plainly(self, benchmark: Benchmark, rows: Sequence[Row]) -> list[str]:
        """Row by row, each token by both passes over all that is there, without kept keys and values."""
        import torch

        ends = end_ids(self.session)
        found = []
        with self.in_place() as model, torch.inference_mode():
            for row, prompt in zip(rows, self._tokens(rows), strict=True):
                tokens = list(prompt)
                for _ in range(benchmark.budget_tokens):
                    ids = torch.tensor([tokens], device=self.session.device)
                    token = int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax())
                    if token in ends:
                        break
                    tokens.append(token)
                found.append(self._text(row, tokens[len(prompt) :]))
        return found
