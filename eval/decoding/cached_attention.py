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
    """Attention of one decoding step: query (1, H, R, D), one token a row.

    With `fixed`, a (place to write at, hidden) for each buffer, tensors have the same shape in each step and nothing
    comes from the host: places of later tokens are looked at as well, and hidden.
    """

    def __init__(
        self,
        buffers: Sequence[Buffer],
        shared: Sequence[tuple[Prefix, torch.Tensor]],
        step: int,
        fixed: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
    ) -> None:
        self.buffers, self.shared, self.step, self.fixed = buffers, shared, step, fixed

    def _with_new(
        self, number: int, layer: int, new_keys: torch.Tensor, new_values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Keys and values (R, G, tokens, D) of a buffer with those of the new tokens, (R, G, D), and what is hidden of
        its first tokens, (R, tokens).
        """
        buffer = self.buffers[number]
        keys, values = buffer.layers.keys[layer], buffer.layers.values[layer]
        if self.fixed:
            place, hidden = self.fixed[number]
            keys.index_copy_(2, place, new_keys.unsqueeze(2))
            values.index_copy_(2, place, new_values.unsqueeze(2))
            return keys, values, hidden
        last = buffer.width + self.step
        keys[:, :, last], values[:, :, last] = new_keys, new_values
        return keys[:, :, : last + 1], values[:, :, : last + 1], buffer.hidden

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
        for number, buffer in enumerate(self.buffers):
            end = start + len(buffer.rows)
            keys, values, hidden = self._with_new(number, layer, new_keys[start:end], new_values[start:end])
            scores = (queries[start:end] @ keys.transpose(-1, -2)).float()
            scores[..., : hidden.shape[1]] += hidden.to(scores.device)[:, None, None]
            output, normaliser = weighted(scores, values)
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
