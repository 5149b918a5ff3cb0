"""Keys and values that decoding keeps: of the prompts read last, of beginnings that several rows share, and of each row
by itself.

Shapes: R rows, G key heads, D numbers a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fedfinlora.model.packing import Tokens, common_prefix_tokens

if TYPE_CHECKING:
    import torch
    from torch import nn

LONG_PREFIX_TOKENS = 256
"""A shared beginning of at least so many tokens is kept once while decoding; shorter ones are copied to each row."""
WIDTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""Widths of buffers; longer rows get multiples of 4096."""


@dataclass
class Layers:
    """Keys and values of some tokens: one (…, tokens, D) tensor of each kind a layer."""

    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))


@dataclass
class Prefix:
    """A long beginning that several rows share: (G, tokens, D) a layer."""

    tokens: Tokens
    layers: Layers


@dataclass
class Buffer:
    """Rows of similar length: (R, G, width + budget, D) a layer; prompts end at `width`, new tokens follow."""

    width: int
    rows: list[int]
    """Those written so far; the tensors have room for all."""
    layers: Layers
    hidden: torch.Tensor
    """(R, width) float32: -inf in front of shorter rows, 0 elsewhere."""


@dataclass
class Pool:
    """Rows that have been read and wait to be decoded together."""

    buffers: dict[int, Buffer] = field(default_factory=dict)
    """By width."""
    first_tokens: dict[int, int] = field(default_factory=dict)
    prefixes: list[tuple[Prefix, list[int]]] = field(default_factory=list)
    """Each with the rows behind it."""

    @property
    def prefix_bytes(self) -> int:
        return sum(prefix.layers.size_bytes for prefix, _ in self.prefixes)


class StaticCache:
    """Memory for the buffers of the rows that are decoded together: taken once, and used by one pool after the other
    (one flat tensor a layer and kind). Give it to every `generate` of an evaluation.
    """

    def __init__(self, limit_bytes: float) -> None:
        self.limit_bytes = limit_bytes
        """Of all keys and values, those that are read among them."""
        self.flat = Layers()
        self.capacity_tokens = 0

    @property
    def size_bytes(self) -> int:
        return self.flat.size_bytes

    def release(self) -> None:
        self.flat, self.capacity_tokens = Layers(), 0

    def reserve(self, tokens: int, like: Layers) -> None:
        """Room for so many tokens of keys and values as `like`, (1, G, tokens, D) a layer; what was there is lost."""
        if tokens <= self.capacity_tokens:
            return
        self.release()
        for source, flat in ((like.keys, self.flat.keys), (like.values, self.flat.values)):
            flat += [tensor.new_empty(tokens * tensor.shape[1] * tensor.shape[3]) for tensor in source]
        self.capacity_tokens = tokens

    def buffers(self, rows_by_width: Mapping[int, int], budget: int, like: Layers) -> dict[int, Buffer]:
        """Empty buffers side by side, by width."""
        import torch

        found, start = {}, 0
        for width, rows in sorted(rows_by_width.items()):
            end = start + rows * (width + budget)

            def cut(
                flat: torch.Tensor,
                one: torch.Tensor,
                start: int = start,
                end: int = end,
                shape: tuple[int, int] = (rows, width + budget),
            ) -> torch.Tensor:
                groups, numbers = one.shape[1], one.shape[3]
                return flat[start * groups * numbers : end * groups * numbers].view(shape[0], groups, shape[1], numbers)

            keys, values = (
                [cut(flat, one) for flat, one in zip(mine, source, strict=True)]
                for mine, source in ((self.flat.keys, like.keys), (self.flat.values, like.values))
            )
            hidden = torch.zeros(rows, width, device=like.keys[0].device)
            found[width] = Buffer(width, [], Layers(keys, values), hidden)
            start = end
        return found


def long_prefixes(ordered: Sequence[Tokens]) -> list[int]:
    """For each of the sorted prompts, how many of its first tokens are kept once while decoding; the same number for
    neighbours that share.

    Neighbours are grouped while they have LONG_PREFIX_TOKENS in common; a part of a group that has more in common goes
    by itself if that keeps fewer tokens in all.
    """
    shared = [0, *(common_prefix_tokens(one, other) for one, other in pairwise(ordered))]
    lengths = [0] * len(ordered)
    waiting = [(0, len(ordered), 0)]
    while waiting:
        first, last, kept = waiting.pop()
        if last - first < 2:
            continue
        common = min(min(shared[first + 1 : last]), min(len(tokens) - 1 for tokens in ordered[first:last]))
        if common - kept >= LONG_PREFIX_TOKENS and (common - kept) * (last - first) >= (common if kept else 0):
            lengths[first:last] = [common] * (last - first)
            kept = common
        lowest = min(shared[first + 1 : last])
        ends = [number for number in range(first + 1, last) if shared[number] == lowest]
        waiting += zip([first, *ends], [*ends, last], [kept] * (len(ends) + 1), strict=True)
    return lengths


def compacted(buffers: Sequence[Buffer], alive: Sequence[bool]) -> list[Buffer]:
    """The buffers without the rows that have ended: the last ones move to the places of those, nothing else moves."""
    import torch

    found: list[Buffer] = []
    start = 0
    for buffer in buffers:
        lives = alive[start : start + len(buffer.rows)]
        start += len(buffer.rows)
        left = sum(lives)
        if not left:
            continue
        holes = [place for place in range(left) if not lives[place]]
        movers = [place for place in range(left, len(lives)) if lives[place]]
        rows = buffer.rows[:left]
        for hole, mover in zip(holes, movers, strict=True):
            rows[hole] = buffer.rows[mover]
        to, source = torch.tensor(holes, dtype=torch.int64), torch.tensor(movers, dtype=torch.int64)

        def cut(
            tensor: torch.Tensor, left: int = left, to: torch.Tensor = to, source: torch.Tensor = source
        ) -> torch.Tensor:
            if len(to):
                tensor[to.to(tensor.device)] = tensor[source.to(tensor.device)]
            return tensor[:left]

        layers = Layers(*([cut(tensor) for tensor in kind] for kind in (buffer.layers.keys, buffer.layers.values)))
        found.append(Buffer(buffer.width, rows, layers, cut(buffer.hidden)))
    return found


def shared_by(
    prefixes: Sequence[tuple[Prefix, list[int]]], rows: Sequence[int], device: torch.device
) -> list[tuple[Prefix, torch.Tensor]]:
    """Each prefix with the slots of its rows that are still being decoded."""
    import torch

    slot_of = {row: slot for slot, row in enumerate(rows)}
    found = [(prefix, [slot_of[row] for row in members if row in slot_of]) for prefix, members in prefixes]
    return [(prefix, torch.tensor(slots, device=device)) for prefix, slots in found if slots]


def gather(layers: Layers, ranges: Sequence[tuple[int, int]], free: bool = False) -> Layers:
    """Copies of the keys and values in `ranges`, (1, G, tokens, D) a layer; `free` lets each tensor go when it is
    copied.
    """
    import torch

    gathered = Layers()
    for source, copies in ((layers.keys, gathered.keys), (layers.values, gathered.values)):
        for layer, tensor in enumerate(source):
            copies.append(torch.cat([tensor[:, :, start:end] for start, end in ranges], dim=2))
            if free:
                source[layer] = copies[-1]
    return gathered


def buffer_width(tokens: int) -> int:
    return next((width for width in WIDTHS if width >= tokens), -(-tokens // 4096) * 4096)


def cache_bytes_per_token(model: nn.Module) -> int:
    """Bytes of one token's keys and values over all layers."""
    config: Any = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    floating = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    frozen = [parameter for parameter in floating if not parameter.requires_grad]
    return int(2 * config.num_hidden_layers * heads * width * (frozen or floating)[0].element_size())
