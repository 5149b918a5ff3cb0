"""The largest rank that makes sense on a base model.

B A of a layer (d_out, d_in) has at most min(d_in, d_out) directions. A rank above that costs memory and traffic and
changes no result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedfinlora.config.model import ModelConfig
from fedfinlora.config.peft import PeftConfig
from fedfinlora.errors import ConfigError
from fedfinlora.model.base_checks import configuration_of
from fedfinlora.model.embedded import is_embedded, kept_folder
from fedfinlora.model.memory_models import ARCHITECTURES
from fedfinlora.model.peft_methods import METHODS


def check_rank(model: ModelConfig, peft: PeftConfig) -> None:
    """ConfigError for a rank above what the target layers hold. Reads the base's config.json, from the hub if need
    be; one that cannot be had is for the loading to refuse.
    """
    try:
        own = configuration_of(model).to_dict()
    except (OSError, ValueError):
        return
    _check(own, model, peft)


def check_rank_here(model: ModelConfig, peft: PeftConfig) -> None:
    """The same where config.json lies on this machine, without torch, transformers or a network."""
    if own := _configuration_here(model.path):
        _check(own, model, peft)


def layer_sizes(own: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Name of a decoder's linear layer -> (d_in, d_out), by the base's configuration; {} where it has other keys.

    >>> sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    >>> layer_sizes(sizes)["k_proj"], layer_sizes(sizes)["down_proj"], layer_sizes({})
    ((64, 32), (128, 64), {})
    """
    own = own.get("text_config") or own
    names = ("hidden_size", "intermediate_size", "num_attention_heads")
    found = [own.get(name) for name in names]
    hidden, inner, heads = (value if isinstance(value, int) and value > 0 else 0 for value in found)
    if not hidden or not inner or not heads:
        return {}
    head = own.get("head_dim") or hidden // heads
    keys = (own.get("num_key_value_heads") or heads) * head
    return {
        "q_proj": (hidden, heads * head),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (heads * head, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def _check(own: Mapping[str, Any], model: ModelConfig, peft: PeftConfig) -> None:
    sizes = layer_sizes(own)
    most = {name: METHODS[peft.method].most_rank(peft, *sizes[name]) for name in peft.target_modules if name in sizes}
    if not most:
        return
    layer = min(most, key=lambda name: most[name])
    rank = peft.rank - peft.frozen_rank
    if rank > most[layer]:
        size_in, size_out = sizes[layer]
        raise ConfigError(
            f"peft.rank={rank} is more than peft={peft.method} can use on {model.name}: {layer} has {size_in:,} inputs "
            f"and {size_out:,} outputs. Set peft.rank={most[layer]} or smaller."
        )


def _configuration_here(path: str) -> Mapping[str, Any] | None:
    """config.json of a base that is on this machine; None where it is not, or is damaged."""
    if path in ARCHITECTURES:
        return ARCHITECTURES[path]
    try:
        folder = kept_folder(path) if is_embedded(path) else Path(path).expanduser()
        found = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RuntimeError):
        return None
    return found if isinstance(found, dict) else None
