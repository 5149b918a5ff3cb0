"""A later stage on top of an earlier one, as one adapter: stage 1 stays frozen next to the base, whose weights stay.

A layer with the earlier adapter's scale s1, A1 (r1, d_in) and B1 (d_out, r1), and the new one's s, A (r, d_in) and B
(d_out, r), computes

    W x + s B A x + s1 B1 A1 x = W x + s [B, (s1 / s) B1] [A; A1] x,

one LoRA of rank r + r1, exactly. Its last r1 ranks are frozen (`fedfinlora.train.own_columns`). A layer that the
earlier adapter lacks has zeros there; one that the new stage does not train has zeros, without gradient, in the other
r. Saved folders are ordinary LoRA. Dropout in training acts on the frozen ranks too.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import Layout, Vector
from fedfinlora.model.adapter_folder import same_base
from fedfinlora.model.plain_lora import plain_lora

log = logging.getLogger("fedfinlora")
PREFIX = "base_model.model."
"""Of a layer's saved name, in front of its module path."""


def stacked_start(start: Vector, layout: Layout, config: Config) -> Vector:
    """What a later stage begins with, (layout.size,) float32: the ranks that are trained as in `start`, (layout.size,),
    where A is drawn and B zero; the last peft.frozen_rank are the adapter in config.start_adapter.

    UserError where that does not fit the model's layers.
    """
    peft, folder = config.peft, Path(config.start_adapter)
    earlier, scale, trained = plain_lora(folder), peft.alpha / peft.rank, config.trained_rank
    stacked, missing = start.copy(), dict(earlier.layers)
    for layer in layout.layers:
        a, b = layer.of(stacked)
        a[trained:], b[:, trained:] = 0.0, 0.0
        if not peft.trains(layer.layer):
            a[:trained], b[:, :trained] = 0.0, 0.0
        if (path := layer.layer.removeprefix(PREFIX)) not in missing:
            continue
        frozen_a, frozen_b = missing.pop(path)
        if frozen_a.shape != a[trained:].shape or frozen_b.shape != b[:, trained:].shape:
            raise UserError(
                f"{folder} does not fit this model: A of {path} has shape {frozen_a.shape}, {a[trained:].shape} is "
                "expected. Take an adapter of the same base model."
            )
        a[trained:], b[:, trained:] = frozen_a, (frozen_b.astype(np.float64) / scale).astype(np.float32)
    if missing:
        raise UserError(f"{folder} has layers that this model lacks, such as {min(missing)}. Take one of its own base.")
    if earlier.base and not same_base(earlier.base, config.model.path):
        log.warning("The adapter in %s was made for %s, the model here is %s.", folder, earlier.base, config.model.path)
    return stacked
