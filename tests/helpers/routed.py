"""What the tests of several adapters as one model share: small adapters on disk, and a model's logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conftest import random_adapter, tiny_config

from eval.models import LocalModel
from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.schema import Config
from fedfinlora.model.adapter import save_adapter
from fedfinlora.model.loading import get_session

TOKENS = torch.tensor([[5, 17, 200, 33, 90, 4, 61, 128]])


def config_of(**values: Any) -> Config:
    return replace(
        tiny_config(),
        peft=PeftConfig(
            **{"method": "lora", "rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": ("q_proj",)} | values
        ),
    )


def adapter_folder(folder: Path, seed: int, **values: Any) -> Path:
    """A random adapter in a PEFT folder."""
    config = config_of(**values)
    session = get_session(config)
    save_adapter(folder, random_adapter(session.layout.size, seed), session.layout, config.peft, config.model)
    return folder


def logits_in(model: LocalModel) -> torch.Tensor:
    with model.in_place() as module, torch.no_grad():
        return module(input_ids=TOKENS).logits
