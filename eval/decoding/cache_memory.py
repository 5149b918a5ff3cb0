"""How much memory the keys and values of an evaluation may take, and who keeps it from one `generate` to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from eval.decoding.kv_cache import StaticCache
from fedfinlora.model.devices import cuda_of, devices_of, free_bytes
from fedfinlora.train.memory import decoder_layers, give_back_heap, limit_of

if TYPE_CHECKING:
    from torch import nn

CACHE_GIB, CACHE_SHARE_ON_GPU = 2.0, 0.6
"""Memory for keys and values where none is named, and its share of what is free on a GPU."""

_held: WeakKeyDictionary[nn.Module, tuple[float, StaticCache]] = WeakKeyDictionary()


def static_cache(model: nn.Module, cache_gib: float) -> StaticCache:
    """Memory for keys and values, sized from what is free now; nothing is taken before it is used."""
    return StaticCache(cache_limit_bytes(model, cache_gib))


def held_cache(model: nn.Module, cache_gib: float) -> StaticCache:
    """The cache of the evaluation that runs: made when it is first asked for, the same until it ends
    (`gives_memory_back`)."""
    found = _held.get(model)
    if found is None or found[0] != cache_gib:
        _held[model] = found = (cache_gib, static_cache(model, cache_gib))
    return found[1]


@contextmanager
def gives_memory_back() -> Iterator[None]:
    """An evaluation: after it, also after an error, `held_cache` holds nothing and the heap has nothing in reserve."""
    try:
        yield
    finally:
        _held.clear()
        give_back_heap()


def cache_limit_bytes(model: nn.Module, cache_gib: float) -> float:
    """Bytes for keys and values: `cache_gib`, or as the model's devices allow where it is 0. Of a model on several
    GPUs, what all may hold when the one with the least room is full.
    """
    devices = devices_of(model)
    if cache_gib:
        return cache_gib * 2**30
    if not cuda_of(devices):
        return CACHE_GIB * 2**30
    where = [next(layer.parameters()).device for layer in decoder_layers(model)]
    return limit_of({device: CACHE_SHARE_ON_GPU * free_bytes(device) for device in devices}, where)
