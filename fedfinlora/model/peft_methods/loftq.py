"""LoftQ (Li, Yu, Liang et al. 2024, arXiv 2310.08659, algorithm 1 with T = 1): B A starts as what quantizing lost.

s B0 A0 is the best rank-r approximation of W - Q, with W the weight in the checkpoint and Q what the quantized layer
computes with: A0 = sqrt(Sigma_r / s) V_r^T, B0 = U_r sqrt(Sigma_r / s). Later steps of the algorithm would quantize W
- s B A again; every bank's base stays as it is here. PEFT's own start leaves out s.

Only the coordinator reads the checkpoint, a layer at a time, when the run starts; from the first adapter on it is LoRA.
The base's own score is that of Q alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfinlora.config.model import ModelConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.model.embedded import embedded_folder, is_embedded
from fedfinlora.model.peft_methods.lora import ADAPTER_NAME, A, B, Lora, adapted_layers
from fedfinlora.model.peft_methods.lora_xs import base_weight, factors

PREFIX = "base_model.model."


class Loftq(Lora):
    """LoRA from another A and B."""

    @property
    def needs_base(self) -> bool:
        return True

    def first(self, session: Any, config: Config, start: NDArray[np.float32]) -> NDArray[np.float32]:
        found = start.copy()
        views = session.layout.views(found)
        checkpoint = Checkpoint(config.model)
        for path, layer in adapted_layers(session.model):
            weight = checkpoint.weight(f"{path.removeprefix(PREFIX)}.weight")
            a, b = lost_factors(weight, base_weight(layer.get_base_layer()), config.peft.rank)
            root = np.float32(layer.scaling[ADAPTER_NAME] ** -0.5)
            views[path + A][:], views[path + B][:] = root * a, root * b
        return found


def lost_factors(
    weight: NDArray[np.float64], quantized: NDArray[np.float64], rank: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(A (rank, d_in), B (d_out, rank)): the best B A of this rank for weight - quantized."""
    right, left = factors(weight - quantized, rank)
    values = np.linalg.norm(left.astype(np.float64), axis=0)
    root = np.sqrt(values)
    return (root[:, None] * right).astype(np.float32), (left / root).astype(np.float32)


class Checkpoint:
    """The weights of a model's *.safetensors, read one at a time."""

    def __init__(self, model: ModelConfig) -> None:
        """UserError where there is no such file here."""
        from safetensors import safe_open

        folder = _folder(model)
        files = sorted(folder.glob("*.safetensors")) if folder else []
        self._files = [safe_open(file, "pt") for file in files]
        self._names = [set(file.keys()) for file in self._files]
        self._model = model.path

    def weight(self, name: str) -> NDArray[np.float64]:
        """A matrix (d_out, d_in)."""
        for file, names in zip(self._files, self._names, strict=True):
            if name in names:
                return np.asarray(file.get_tensor(name).double())
        raise UserError(
            f"peft=loftq needs the weights of {self._model} before they were quantized, and {name} is in no "
            "*.safetensors here. Download the model's folder and set model.path=FOLDER, or take peft=qlora."
        )


def _folder(model: ModelConfig) -> Path | None:
    """Where a model's files are: an embedded copy, a folder, or what was downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if is_embedded(model.path):
        return embedded_folder(model.path)
    own = os.path.expanduser(model.path)
    if os.path.isdir(own):
        return Path(own)
    try:
        return Path(snapshot_download(model.path, revision=model.revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
