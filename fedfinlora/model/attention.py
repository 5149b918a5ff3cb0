"""Attention over a tree of token stretches laid end to end in one sequence (see `fedfinlora.model.packing`).

A token looks at the stretches on its way to the root and at its own up to itself. The queries are cut into short runs,
each computed with the keys that it can see, gathered once: the result of the whole masked matrix. (Block-sparse
document masking as in FlexAttention, on plain scaled-dot-product attention, so that it runs and differentiates the same
on CPUs and GPUs.) Registered with transformers as `packed_sdpa`: a forward pass that brings no `plan` is plain `sdpa`.

Shapes: H query heads, G key heads (H a multiple of G), D numbers a head, T new tokens, S keys that were computed
before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

NAME = "packed_sdpa"
SHORTEST_RUN, LONGEST_RUN = 64, 256
"""Queries computed together: longer runs see more foreign keys, shorter ones gather the same keys more often."""
RUN_PER_KEY = 8
"""A run has about one query for so many keys in front of it, between the two bounds."""

Range = tuple[int, int]
"""(start, end) of consecutive keys."""


class AttentionPlan(Protocol):
    """How one forward pass computes its attention."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """Attention of query (1, H, T, D) over key and value (1, G, T, D) of layer number `layer`. Returns (1, T, H,
        D).
        """
        ...


class Plan(AttentionPlan, Protocol):
    """How a pack's attention is computed."""

    @property
    def runs(self) -> tuple[Run, ...]:
        """What is gathered and masked besides the queries, keys and values themselves."""
        ...


@dataclass(frozen=True)
class QuerySpan:
    """Consecutive tokens of the packed sequence that the same rows share."""

    start: int
    end: int
    """Places in the packed sequence, 0 to T."""
    sees: tuple[Range, ...]
    """The keys in front of it, in key coordinates: the S earlier keys first, then the packed sequence at S + place."""


@dataclass(frozen=True)
class Run:
    """Queries that are computed together."""

    start: int
    end: int
    keys: tuple[Range, ...]
    """The keys that any of them sees, in key coordinates."""
    mask: torch.Tensor | None
    """(queries, keys) float32, 0 where a query sees a key and -inf elsewhere; None for plain causal attention."""


@dataclass(frozen=True)
class TreePlan:
    """Attention of a packed sequence by runs."""

    runs: tuple[Run, ...]
    _masks: dict[tuple[torch.dtype, torch.device], list[torch.Tensor | None]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        kind = (query.dtype, query.device)
        if kind not in self._masks:  # once a pass, not once a layer
            self._masks[kind] = [
                None if run.mask is None else run.mask.to(query.device, query.dtype) for run in self.runs
            ]
        return attend_by_runs(query, key, value, self.runs, scaling, self._masks[kind])


def make_runs(stretches: Sequence[QuerySpan], earlier_keys: int, device: torch.device | str) -> tuple[Run, ...]:
    """Cut stretches, given in the order of the packed sequence without gaps, into runs. `earlier_keys` is S."""
    runs: list[Run] = []
    pieces: list[QuerySpan] = []
    room = 0
    for stretch in stretches:
        length = stretch.end - stretch.start
        if not stretch.sees and length > SHORTEST_RUN:  # the beginning of everything: causal, for any length
            runs += _close(pieces, earlier_keys, device)
            runs.append(
                Run(
                    stretch.start, stretch.end, ((earlier_keys + stretch.start, earlier_keys + stretch.end),), mask=None
                )
            )
            pieces, room = [], 0
            continue
        start = stretch.start
        while start < stretch.end:
            sees = (
                stretch.sees
                if start == stretch.start
                else (*stretch.sees, (earlier_keys + stretch.start, earlier_keys + start))
            )
            if room <= 0:
                runs += _close(pieces, earlier_keys, device)
                pieces = []
                visible = sum(last - first for first, last in sees)
                room = max(SHORTEST_RUN, min(LONGEST_RUN, visible // RUN_PER_KEY))
            end = min(stretch.end, start + room)
            pieces.append(QuerySpan(start, end, sees))
            room -= end - start
            start = end
    runs += _close(pieces, earlier_keys, device)
    return tuple(runs)


def _close(pieces: Sequence[QuerySpan], earlier_keys: int, device: torch.device | str) -> list[Run]:
    """The run of some consecutive pieces."""
    if not pieces:
        return []
    import numpy as np
    import torch

    first, last = pieces[0].start, pieces[-1].end
    own_start = earlier_keys + first
    outside = merge_ranges(
        [(start, min(end, own_start)) for piece in pieces for start, end in piece.sees if start < own_start]
    )
    keys = merge_ranges([*outside, (own_start, earlier_keys + last)])
    columns: list[tuple[int, int, int]] = []  # (first key, last key, column of the first)
    width = 0
    for start, end in keys:
        columns.append((start, end, width))
        width += end - start

    def column(key: int) -> int:
        return next(at + key - start for start, end, at in columns if start <= key < end)

    mask = np.full((last - first, width), -np.inf, np.float32)
    for piece in pieces:
        rows = slice(piece.start - first, piece.end - first)
        for start, end in piece.sees:
            at = column(start)
            mask[rows, at : at + end - start] = 0.0
        length, at = piece.end - piece.start, column(earlier_keys + piece.start)
        mask[rows, at : at + length] = np.triu(np.full((length, length), -np.inf, np.float32), k=1)
    return [Run(first, last, tuple(keys), torch.from_numpy(mask).to(device))]


def merge_ranges(ranges: Sequence[Range]) -> list[Range]:
    """The same keys as sorted ranges that neither touch nor overlap.

    >>> merge_ranges([(5, 7), (0, 2), (2, 4), (6, 9)])
    [(0, 4), (5, 9)]
    """
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def attend_by_runs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    runs: Sequence[Run],
    scaling: float | None,
    masks: Sequence[torch.Tensor | None] | None = None,
) -> torch.Tensor:
    """Attention of query (1, H, T, D) over key and value (1, G, S + T, D). Returns (1, T, H, D).

    `masks` are those of the runs in the query's type. For a backward pass the tensors are split once and the pieces
    put together: the gradient of a slice is a tensor as long as all keys, most of it zeros, for each slice of each run.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    _, heads, tokens, width = query.shape
    groups = key.shape[1]
    shared = heads // groups  # query heads that read the same keys; they are batched without copying the keys
    queries = query.reshape(groups, shared, tokens, width)
    keys, values = key.transpose(0, 1), value.transpose(0, 1)
    if masks is None:
        masks = [None if run.mask is None else run.mask.to(query.dtype) for run in runs]
    asked = queries.split([run.end - run.start for run in runs], dim=2)
    pieces: tuple[_Pieces, _Pieces] | None = None
    if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
        cuts = cuts_of(runs, key.shape[2])
        pieces = _Pieces(keys, cuts), _Pieces(values, cuts)

    def seen(which: int, ranges: Sequence[Range]) -> torch.Tensor:
        tensor = (keys, values)[which]
        parts = pieces[which].of(ranges) if pieces is not None else [tensor[:, :, start:end] for start, end in ranges]
        gathered = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        return gathered.expand(groups, shared, gathered.shape[2], width)

    outputs = [
        scaled_dot_product_attention(
            own,
            seen(0, run.keys),
            seen(1, run.keys),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
        )
        for run, own, mask in zip(runs, asked, masks, strict=True)
    ]
    return torch.cat(outputs, dim=2).reshape(heads, tokens, width).transpose(0, 1).unsqueeze(0)


def cuts_of(runs: Sequence[Run], keys: int) -> list[int]:
    """Where any range of keys begins or ends, from 0 to `keys`."""
    return sorted({0, keys} | {bound for run in runs for reach in run.keys for bound in reach})


class _Pieces:
    """A tensor (G, 1, S + T, D) cut at `cuts`, once for all runs."""

    def __init__(self, tensor: torch.Tensor, cuts: Sequence[int]) -> None:
        self.number = {cut: number for number, cut in enumerate(cuts)}
        self.pieces = tensor.split([end - start for start, end in pairwise(cuts)], dim=2)

    def of(self, ranges: Sequence[Range]) -> list[torch.Tensor]:
        """The pieces of sorted ranges, in order."""
        return [self.pieces[number] for start, end in ranges for number in range(self.number[start], self.number[end])]


def no_mask(device: torch.device | str) -> torch.Tensor:
    """What a forward pass with a plan brings as attention_mask, so that transformers makes none of its own; (1, 1, 1,
    1) bool.
    """
    import torch

    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def use_packed_attention(model: nn.Module) -> None:
    """Let a transformers model take `plan=` (an AttentionPlan) in its forward pass."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def forward(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        plan: AttentionPlan | None = None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        if plan is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)  # type: ignore[no-any-return]
        return plan.attend(int(module.layer_idx), query, key, value, scaling), None  # type: ignore[arg-type]

    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)  # type: ignore[operator]
