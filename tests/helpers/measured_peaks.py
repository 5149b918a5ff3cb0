"""How much memory a pass through a long pack takes, and what was estimated: a program of its own, whose heap holds
nothing else.
"""

from __future__ import annotations

import ctypes
import json
from dataclasses import replace

import numpy as np
import torch
from conftest import tiny_config

from fedfinlora.config.model import ModelConfig
from fedfinlora.model.loading import get_session
from fedfinlora.model.packing import Example, make_pack
from fedfinlora.train.gradient_step import answer_loss
from fedfinlora.train.memory import (
    checkpoint_first,
    decoder_layers,
    footprint,
    own_checkpointing,
    peak_bytes,
    reset_peak,
)

CPU = torch.device("cpu")


def main() -> None:
    """Print [[layers checkpointed, bytes estimated, bytes measured], …] of the embedded model in float32."""
    model = get_session(replace(tiny_config(), model=ModelConfig(quantization="none"))).model
    draw = np.random.default_rng(0)
    beginning = tuple(draw.integers(5, 4000, 500).tolist())
    pack = make_pack(
        [Example(beginning + tuple(draw.integers(5, 4000, 39).tolist()), (5,) * 12, row) for row in range(10)]
    )
    model.train()
    answer_loss(model, pack).backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    found = []
    for layers in (0, 10, 30):
        with own_checkpointing(decoder_layers(model)):
            checkpoint_first(decoder_layers(model), layers)
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the heap holds is used again, and would not count
            reset_peak(CPU)
            before = peak_bytes(CPU)
            answer_loss(model, pack).backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)
        found.append([layers, footprint(model).pass_bytes(pack, layers), peak_bytes(CPU) - before])
    print(json.dumps(found, allow_nan=False))
