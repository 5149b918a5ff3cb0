"""A session without a base model, for a server that scores nothing: 70B would cost it 40 GB for a list of shapes.

The base is built on torch's meta device from its config.json alone, shapes without numbers; the adapter's own tensors
lie on the CPU and start from the run's seed as everywhere. DoRA's magnitudes and LoRA-XS's factors are made of the
base's weights, so they need the base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from fedfinlora.config.model import ModelConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import frozen_tensors, layout_of, read_adapter
from fedfinlora.model.base_checks import configuration_of
from fedfinlora.model.loading import Session, add_adapter, get_session, unreachable
from fedfinlora.model.peft_methods import METHODS

if TYPE_CHECKING:
    from torch import nn


def server_session(config: Config, scores: bool) -> Session:
    """The session of a server. Its model can be run only if it `scores`, or the adapter's start needs the base."""
    method = METHODS[config.peft.method]
    return get_session(config) if scores or method.needs_base else layout_session(config)


def layout_session(config: Config) -> Session:
    """The adapter's layout, start and frozen tensors; neither base nor tokenizer. UserError as `get_session`."""
    import torch

    method = METHODS[config.peft.method]
    model = add_adapter(_empty_base(config.model), config.model, config.peft, config.seed)
    for module in model.modules():
        for factors in (getattr(module, "lora_A", None), getattr(module, "lora_B", None)):
            if factors is not None:
                factors.to_empty(device="cpu")
    method.start(model, config.seed)
    return Session(model, None, layout_of(model), torch.device("cpu"), 0.0, read_adapter(model), frozen_tensors(model))


def _empty_base(config: ModelConfig) -> nn.Module:
    """The base model's modules on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        own = configuration_of(config)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(own)
        model.name_or_path = model.config.name_or_path = config.path
        return cast("nn.Module", model.requires_grad_(False))
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(unreachable(config, error)) from error
