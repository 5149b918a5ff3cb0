"""One clip over all trainable tensors of a unit together, without a gradient per unit in memory.

Units (examples, or customers with several) lie one after the other in a packed sequence, nothing shared. A linear layer y = W x of the
adapter has, for unit i, the gradient G_i = sum over i's tokens of g_t x_t^T, with g_t the gradient of its output. Each layer's x and g
are kept during one backward pass; the squared norms |G_i|^2, summed over layers, give the factors c_i = min(1, C / |G_i|), and the clipped sum is
sum_t c_i(t) g_t x_t^T, one product more a layer (book-keeping: Bu, Wang, Zha and Karypis 2023, section 3). LoRA's tensors are so thin that G_i of one
layer and one unit, made and thrown away, costs less than the ghost norm's token-by-token products. All in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedfinlora.adapter import saved_name, trainable
from fedfinlora.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

Span = tuple[int, int]
"""(first token, end) of a unit in the packed sequence."""


@dataclass
class Kept:
    """What one backward pass leaves of each adapted layer, by the name of its weight."""

    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    """(T, in) as the layer saw it."""
    output_gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    """(T, out)."""


def adapted_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Name of the weight -> layer, for every trainable tensor. UserError if one is not the weight of a linear layer."""
    from torch import nn

    layers = {
        saved_name(f"{name}.weight"): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad
    }
    other = sorted(set(trainable(model)) - set(layers))
    if other:
        raise UserError(
            f"privacy=example can clip the weights of linear layers only, not {other[0]}. Use peft=lora, qlora or rslora, not dora."
        )
    return layers


@contextmanager
def keeping(model: nn.Module) -> Iterator[Kept]:
    """Keep inputs and output gradients of the adapted layers of one forward and backward pass."""
    kept = Kept()

    def watch(name: str) -> Any:
        def forward(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if output.requires_grad:
                kept.inputs[name] = inputs[0].detach().reshape(-1, inputs[0].shape[-1])

                def backward(gradient: torch.Tensor) -> None:
                    kept.output_gradients[name] = gradient.detach().reshape(-1, gradient.shape[-1])

                output.register_hook(backward)

        return forward

    hooks = [layer.register_forward_hook(watch(name)) for name, layer in adapted_layers(model).items()]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def gradient_norms(kept: Kept, spans: Sequence[Span]) -> list[float]:
    """|G_i| over all layers together, one a unit; not finite where a unit's gradient is not."""
    import torch

    total = None
    for name, inputs in kept.inputs.items():
        gradients = kept.output_gradients[name]
        squares = torch.stack(
            [
                (gradients[start:end].float().T @ inputs[start:end].float()).square().sum(dtype=torch.float64)
                for start, end in spans
            ]
        )
        total = squares if total is None else total + squares
    return [] if total is None else [float(norm) for norm in total.sqrt().tolist()]


def clip_factors(norms: Sequence[float], clip_norm: float) -> list[float]:
    """min(1, C / norm) for each unit; 0 for a gradient that is not finite, which is left out.

    >>> clip_factors([0.0, 0.5, 2.0, float("nan"), float("inf")], 1.0)
    [1.0, 1.0, 0.5, 0.0, 0.0]
    """
    return [0.0 if not math.isfinite(norm) else 1.0 if norm <= clip_norm else clip_norm / norm for norm in norms]


def add_clipped(kept: Kept, spans: Sequence[Span], factors: Sequence[float], sums: dict[str, torch.Tensor]) -> None:
    """Add sum_i c_i G_i to `sums`: name of the weight -> (out, in) float32. A unit of factor 0 is left out even where it is not finite."""
    import torch

    counted = [(start, end, factor) for (start, end), factor in zip(spans, factors, strict=True) if factor]
    if not counted:
        return
    device = next(iter(kept.inputs.values())).device
    tokens = torch.cat([torch.arange(start, end, device=device) for start, end, _ in counted])
    scale = torch.cat([torch.full((end - start, 1), factor, device=device) for start, end, factor in counted])
    for name, inputs in kept.inputs.items():
        gradients = kept.output_gradients[name]
        sums[name] += (gradients[tokens].float() * scale).T @ inputs[tokens].float()
