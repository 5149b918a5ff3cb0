"""Attention over a packed sequence without its empty blocks.

Under the block mask of `fedfinlora.packing` a token looks at its own row and at the prefix in front of it, a small part of a T x T
matrix. Here the rows are gathered into a batch, each with its own copy of the prefix's keys and values, and run through the same
scaled-dot-product kernel; the result equals the masked one. Registered with transformers as `packed_sdpa`: a forward pass that brings
no `plan` is plain `sdpa`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

NAME = "packed_sdpa"
LEAST_SAVING = 1.3
"""Gathering costs something too: it must save at least this factor of query-key pairs."""
WIDEST_GROUP = 1.6
"""Rows of one gathered batch differ in length by at most this factor, so that little of it is padding."""
MOST_COPIES = 16
"""Keys and values may be copied at most this many times over."""


@dataclass(frozen=True)
class RowGroup:
    """R rows of similar length, at most L tokens each, behind prefixes of at most P tokens."""

    rows: int
    query_index: torch.Tensor
    """(R * L,) int64: the tokens of each row, padded by repeating its last."""
    key_index: torch.Tensor
    """(R * (P + L),) int64: the prefix, padded in front, and the tokens of each row."""
    mask: torch.Tensor
    """(R, 1, L, P + L) bool."""


@dataclass(frozen=True)
class AttentionPlan:
    """How to take a packed sequence of T tokens apart."""

    prefixes: tuple[tuple[int, int], ...]
    """(start, end) of each prefix in the sequence."""
    groups: tuple[RowGroup, ...]
    output_index: torch.Tensor
    """(T,) int64: where each token's result lies among the results of the prefixes and then of the groups."""


@dataclass(frozen=True)
class _Row:
    """Where a row and its prefix lie in the sequence."""

    start: int
    length: int
    prefix_start: int
    prefix: int


def make_plan(blocks: Sequence[tuple[int, Sequence[int]]], device: torch.device | str) -> AttentionPlan | None:
    """The plan of blocks given as (prefix tokens, tokens of each row), laid end to end; None where the plain mask is cheaper."""
    import torch

    prefixes: list[tuple[int, int]] = []
    rows: list[_Row] = []
    position = 0
    for prefix, lengths in blocks:
        start = position
        prefixes += [(start, start + prefix)] if prefix else []
        position += prefix
        for length in lengths:
            rows.append(_Row(position, length, start, prefix))
            position += length
    groups = _similar(rows)
    keys = [len(group) * (max(row.prefix for row in group) + max(row.length for row in group)) for group in groups]
    pairs = sum(count * max(row.length for row in group) for count, group in zip(keys, groups, strict=True))
    if (
        LEAST_SAVING * (pairs + sum((end - start) ** 2 for start, end in prefixes)) > position**2
        or sum(keys) > MOST_COPIES * position
    ):
        return None
    output_index = torch.empty(position, dtype=torch.int64)
    done = 0
    for start, end in prefixes:
        output_index[start:end] = torch.arange(done, done + end - start)
        done += end - start
    for group in groups:
        longest = max(row.length for row in group)
        for row in group:
            output_index[row.start : row.start + row.length] = torch.arange(done, done + row.length)
            done += longest
    return AttentionPlan(tuple(prefixes), tuple(_group(group, device) for group in groups), output_index.to(device))


def _similar(rows: Sequence[_Row]) -> list[list[_Row]]:
    """Rows by length, cut where the longest of a group would be more than WIDEST_GROUP times its shortest."""
    groups: list[list[_Row]] = []
    for row in sorted(rows, key=lambda row: (row.length + row.prefix, row.start)):
        if groups and row.length + row.prefix <= WIDEST_GROUP * (groups[-1][0].length + groups[-1][0].prefix):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _group(rows: Sequence[_Row], device: torch.device | str) -> RowGroup:
    import torch

    longest, longest_prefix = max(row.length for row in rows), max(row.prefix for row in rows)
    query_index = torch.zeros(len(rows), longest, dtype=torch.int64)
    key_index = torch.zeros(len(rows), longest_prefix + longest, dtype=torch.int64)
    sees_prefix = torch.zeros(len(rows), longest_prefix, dtype=torch.bool)
    for number, row in enumerate(rows):
        own = torch.arange(row.start, row.start + longest).clamp(max=row.start + row.length - 1)
        query_index[number] = own
        key_index[number, longest_prefix:] = own
        key_index[number, longest_prefix - row.prefix : longest_prefix] = torch.arange(
            row.prefix_start, row.prefix_start + row.prefix
        )
        sees_prefix[number, longest_prefix - row.prefix :] = True
    causal = torch.tril(torch.ones(longest, longest, dtype=torch.bool)).expand(len(rows), -1, -1)
    mask = torch.cat([sees_prefix.unsqueeze(1).expand(-1, longest, -1), causal], dim=2).unsqueeze(1)
    return RowGroup(len(rows), query_index.flatten().to(device), key_index.flatten().to(device), mask.contiguous().to(device))


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan, scaling: float | None
) -> torch.Tensor:
    """Attention of query (1, H, T, D) over key and value (1, H_kv, T, D), H a multiple of H_kv. Returns (1, T, H, D)."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    heads, width = query.shape[1], query.shape[3]
    copies = heads // key.shape[1]

    def gathered(tensor: torch.Tensor, index: torch.Tensor, rows: int) -> torch.Tensor:
        taken = tensor[0].index_select(1, index).view(tensor.shape[1], rows, -1, width).transpose(0, 1)
        return taken.repeat_interleave(heads // tensor.shape[1], dim=1)

    parts: list[torch.Tensor] = []
    for start, end in plan.prefixes:
        prefix_keys, prefix_values = (tensor[:, :, start:end].repeat_interleave(copies, dim=1) for tensor in (key, value))
        own = scaled_dot_product_attention(query[:, :, start:end], prefix_keys, prefix_values, is_causal=True, scale=scaling)
        parts.append(own[0].transpose(0, 1))
    for group in plan.groups:
        rows_out = scaled_dot_product_attention(
            gathered(query, group.query_index, group.rows),
            gathered(key, group.key_index, group.rows),
            gathered(value, group.key_index, group.rows),
            attn_mask=group.mask,
            scale=scaling,
        )
        parts.append(rows_out.transpose(1, 2).reshape(-1, heads, width))
    return torch.cat(parts).index_select(0, plan.output_index).unsqueeze(0)


def use_packed_attention(model: nn.Module) -> None:
    """Let a transformers model take `plan=` in its forward pass."""
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
        return packed_attention(query, key, value, plan, scaling), None

    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)  # type: ignore[operator]
