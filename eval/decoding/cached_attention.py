"""Attention over keys and values that are kept: of a pass that reads prompts, and of a step that decodes one token a
row.

Shapes: R rows, H query heads, G key heads, D numbers a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval.decoding.kv_cache import Buffer, Layers, Prefix
from fedfinlora.model.attention import Plan

if TYPE_CHECKING:
    import torch


class Reading:
    """Attention of a pass that reads prompts; keeps the keys and values of cached_prefix and pass, and lets the
    cached_prefix's own go.
    """

    def __init__(self, plan: Plan, cached_prefix: Layers) -> None:
        self.plan, self.cached_prefix, self.layers = plan, cached_prefix, Layers()

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        import torch

        if self.cached_prefix.keys:
            key = torch.cat([self.cached_prefix.keys[layer], key], dim=2)
            value = torch.cat([self.cached_prefix.values[layer], value], dim=2)
            self.cached_prefix.keys[layer] = self.cached_prefix.values[layer] = key[:, :, :0].clone()
        self.layers.keys.append(key)
        self.layers.values.append(value)
        return self.plan.attend(layer, query, key, value, scaling)


class Writing:
    """Attention of one decoding step: query (1, H, R, D), one token a row."""

    def __init__(self, buffers: Sequence[Buffer], shared: Sequence[tuple[Prefix, torch.Tensor]], step: int) -> None:
        self.buffers, self.shared, self.step = buffers, shared, step

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        import torch

        _, heads, rows, width = query.shape
        groups = key.shape[1]
        scale = width**-0.5 if scaling is None else scaling
        queries = query[0].transpose(0, 1).reshape(rows, groups, heads // groups, width) * scale
        new_keys, new_values = key[0].transpose(0, 1), value[0].transpose(0, 1)
        outputs: list[torch.Tensor] = []
        normalisers: list[torch.Tensor] = []
        start = 0
        for buffer in self.buffers:
            end = start + len(buffer.rows)
            last = buffer.width + self.step
            own_keys, own_values = buffer.layers.keys[layer], buffer.layers.values[layer]
            own_keys[:, :, last], own_values[:, :, last] = new_keys[start:end], new_values[start:end]
            scores = (queries[start:end] @ own_keys[:, :, : last + 1].transpose(-1, -2)).float()
            scores[..., : buffer.width] += buffer.hidden.to(scores.device)[:, None, None]
            output, normaliser = weighted(scores, own_values[:, :, : last + 1])
            outputs.append(output)
            normalisers.append(normaliser)
            start = end
        output, normaliser = torch.cat(outputs), torch.cat(normalisers)
        for prefix, slots in self.shared:
            members = slots.to(queries.device)
            asked = queries[members].transpose(0, 1).reshape(groups, -1, width)
            scores = (asked @ prefix.layers.keys[layer].transpose(-1, -2)).float()
            seen, weight = weighted(scores, prefix.layers.values[layer])
            seen = seen.view(groups, len(members), heads // groups, width).transpose(0, 1)
            weight = weight.view(groups, len(members), heads // groups).transpose(0, 1)
            # The softmax over both parts is the mean of the two softmaxes, weighted by exp(normaliser).
            share = torch.sigmoid(weight - normaliser[members]).unsqueeze(-1)
            output[members] = torch.lerp(output[members].float(), seen.float(), share).to(output.dtype)
        return output.reshape(1, rows, heads, width)


def weighted(scores: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(softmax(scores) @ values, log of the sum of exp(scores)) of scores (…, queries, keys), changed in place, and
    values (…, keys, D).
    """
    highest = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(highest).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    output = weights.to(values.dtype) @ values / total.to(values.dtype)
    return output, (highest + total.log()).squeeze(-1)
