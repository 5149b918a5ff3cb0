"""The reference of `bench gpu`: the same model in float32 on the CPU, every row by itself, plain causal attention.

It shares no code with packing, quantized layers, decoding or private steps: a LlamaForCausalLM of transformers with the
values that the checked model holds, and a LoRA adapter of PEFT with the same numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fedfinlora.model.adapter import Vector, layout_of, trainable, write_adapter
from fedfinlora.model.loading import Session
from fedfinlora.model.packing import Example, Tokens


@dataclass(frozen=True)
class Reference:
    """A PEFT model in float32 on the CPU."""

    model: nn.Module

    def row_losses(self, rows: Sequence[Example]) -> torch.Tensor:
        """(rows,) sum over a row's answer tokens of their negative log-likelihood, in nats, with gradients."""
        return torch.stack([-self.answer_logprobs(row.prompt_ids, row.answer_ids).sum() for row in rows])

    def answer_logprobs(self, prompt: Tokens, answer: Tokens) -> torch.Tensor:
        """(answer,) log-probability of each answer token."""
        ids = torch.tensor([[*prompt, *answer]])
        logits = self.logits(ids)[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """(1, T, vocabulary) for ids (1, T)."""
        return cast(torch.Tensor, self.model(input_ids=ids, use_cache=False).logits)

    def gradient(self, loss: torch.Tensor) -> torch.Tensor:
        """(layout.size,) of a loss."""
        found = torch.autograd.grad(loss, list(trainable(self.model).values()))
        return torch.cat([part.flatten() for part in found])


def reference_base(session: Session) -> nn.Module:
    """The base model with the values that the session's holds, dequantized, in float32 on the CPU."""
    from transformers import LlamaForCausalLM

    checked: Any = session.model
    config = copy.deepcopy(checked.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype, config._attn_implementation, config.use_cache = torch.float32, "eager", False
    model: nn.Module = LlamaForCausalLM(config).float()
    values = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): value
        for name, value in _values(checked).items()
    }
    model.load_state_dict(values, strict=True)
    cast(Any, model).name_or_path = checked.config.name_or_path
    model.requires_grad_(False)
    model.eval()
    return model


def _values(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name -> the base model's weights in float32 on the CPU; bitsandbytes' are dequantized by its own functions."""
    found: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        if weight is None or "lora_" in name or isinstance(getattr(module, "base_layer", None), nn.Module):
            continue
        kind = type(weight).__name__  # bitsandbytes need not be installed
        if kind == "Params4bit":
            from bitsandbytes.functional import dequantize_4bit

            value = dequantize_4bit(weight.data, weight.quant_state)
        elif kind == "Int8Params":
            state: Any = cast(Any, module).state  # where the codes and scales are after the first pass
            codes, scales = (state.CB, state.SCB) if weight.SCB is None else (weight.data, weight.SCB)
            value = codes.float() * (scales.float() / 127.0).unsqueeze(1)
        else:
            value = weight.data
        found[f"{name}.weight"] = value.detach().float().cpu()
    return found


def reference_of(session: Session, base: nn.Module, adapter: Vector) -> Reference:
    """The reference with an adapter, (layout.size,), as PEFT builds it from the same settings."""
    from peft import LoraConfig, get_peft_model

    settings = cast(Any, session.model).peft_config["default"]
    values = {name: getattr(settings, name) for name in ("r", "lora_alpha", "lora_dropout", "use_rslora")}
    values["target_modules"] = sorted(settings.target_modules)
    model = get_peft_model(cast(Any, base), LoraConfig(**values, task_type="CAUSAL_LM"))
    assert layout_of(model) == session.layout
    write_adapter(model, adapter)
    return Reference(model.eval())


def loaded_by_peft(base: nn.Module, folder: Path) -> Reference:
    """The base with an adapter folder, loaded as PEFT's documentation shows."""
    from peft import PeftModel

    return Reference(PeftModel.from_pretrained(cast(Any, base), folder).eval())
