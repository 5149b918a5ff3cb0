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
MOST_COPIES = 16
"""Keys and values may be copied at most this many times over."""


@dataclass(frozen=True)
class AttentionPlan:
    """How to take a packed sequence of T tokens apart: R rows of at most L tokens behind prefixes of at most P tokens."""

    prefixes: tuple[tuple[int, int], ...]
    """(start, end) of each prefix in the sequence."""
    query_index: torch.Tensor
    """(R * L,) int64: the tokens of each row, padded by repeating a token."""
    key_index: torch.Tensor
    """(R * (P + L),) int64: the prefix (padded in front) and the tokens of each row."""
    mask: torch.Tensor
    """(R, 1, L, P + L) bool."""
    output_index: torch.Tensor
    """(T,) int64: where each token's result lies among the prefixes' and then the rows' results."""
    rows: int


def make_plan(blocks: Sequence[tuple[int, Sequence[int]]], device: torch.device | str) -> AttentionPlan | None:
    """The plan of blocks given as (prefix tokens, tokens of each row), laid end to end; None where the plain mask is cheaper."""
    import torch

    lengths = [length for _, rows in blocks for length in rows]
    longest_prefix, longest_row = max(prefix for prefix, _ in blocks), max(lengths)
    total = sum(prefix + sum(rows) for prefix, rows in blocks)
    keys = longest_prefix + longest_row
    pairs = len(lengths) * longest_row * keys + sum(prefix**2 for prefix, _ in blocks)
    if LEAST_SAVING * pairs > total**2 or len(lengths) * keys > MOST_COPIES * total:
        return None
    prefixes: list[tuple[int, int]] = []
    query_index = torch.zeros(len(lengths), longest_row, dtype=torch.int64)
    key_index = torch.zeros(len(lengths), keys, dtype=torch.int64)
    sees_prefix = torch.zeros(len(lengths), longest_prefix, dtype=torch.bool)
    output_index = torch.empty(total, dtype=torch.int64)
    prefix_tokens = sum(prefix for prefix, _ in blocks)
    position = done_prefix = row = 0
    for prefix, rows in blocks:
        start = position
        output_index[start : start + prefix] = torch.arange(done_prefix, done_prefix + prefix)
        prefixes += [(start, start + prefix)] if prefix else []
        done_prefix += prefix
        position += prefix
        for length in rows:
            own = torch.arange(position, position + longest_row).clamp(max=position + length - 1)
            query_index[row] = own
            key_index[row, longest_prefix - prefix : longest_prefix] = torch.arange(start, start + prefix)
            key_index[row, longest_prefix:] = own
            sees_prefix[row, longest_prefix - prefix :] = True
            output_index[position : position + length] = prefix_tokens + row * longest_row + torch.arange(length)
            position += length
            row += 1
    causal = torch.tril(torch.ones(longest_row, longest_row, dtype=torch.bool)).expand(row, -1, -1)
    mask = torch.cat([sees_prefix.unsqueeze(1).expand(-1, longest_row, -1), causal], dim=2).unsqueeze(1)
    return AttentionPlan(
        tuple(prefixes),
        query_index.flatten().to(device),
        key_index.flatten().to(device),
        mask.contiguous().to(device),
        output_index.to(device),
        row,
    )


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan, scaling: float | None
) -> torch.Tensor:
    """Attention of query (1, H, T, D) over key and value (1, H_kv, T, D), H a multiple of H_kv. Returns (1, T, H, D)."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    heads, width = query.shape[1], query.shape[3]
    groups = heads // key.shape[1]

    def gathered(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        rows = tensor[0].index_select(1, index).view(tensor.shape[1], plan.rows, -1, width).transpose(0, 1)
        return rows.repeat_interleave(heads // tensor.shape[1], dim=1)

    parts: list[torch.Tensor] = []
    for start, end in plan.prefixes:
        prefix_keys, prefix_values = (tensor[:, :, start:end].repeat_interleave(groups, dim=1) for tensor in (key, value))
        own = scaled_dot_product_attention(query[:, :, start:end], prefix_keys, prefix_values, is_causal=True, scale=scaling)
        parts.append(own[0].transpose(0, 1))
    rows_out = scaled_dot_product_attention(
        gathered(query, plan.query_index),
        gathered(key, plan.key_index),
        gathered(value, plan.key_index),
        attn_mask=plan.mask,
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
