"""Llama's decoder layers on a CPU with fewer walks through memory: the arithmetic of transformers' and PEFT's layers,
their pointwise steps joined.

Next to its matrix products a layer of transformers reads and writes its activations some forty times: RMSNorm, rotary
positions, the gated unit, LoRA's scaling and sums, each of several operations with a tensor of its own, and autograd
keeps most of these. Here each step is one function with its own derivative (as in Liger, Hsu et al. 2024, arXiv
2410.10989, which fuses the same on GPUs); sums are part of the products (BLAS's beta), and without gradients they are
made in place. Results are those of the ordinary layers up to the rounding of float32 sums.

The layers are changed while `fused_layers` lasts, and only for passes with a `plan`; everything else, such as
`generate` of transformers, finds them as they were. What has no counterpart here, such as DoRA, quantized products or
other architectures, runs as it is.

Shapes: T tokens laid end to end, C hidden width, H heads of D numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    import torch
    from torch import nn

LAYER = "LlamaDecoderLayer"
"""The class of transformers whose arithmetic this is."""


class Linear(NamedTuple):
    """A frozen linear layer with at most one LoRA adapter."""

    base: nn.Linear
    a: nn.Linear | None
    b: nn.Linear | None
    scale: float
    dropout: nn.Module | None

    def dropped(self, inputs: torch.Tensor) -> torch.Tensor | None:
        """The adapter's inputs, (T, C), where they are not all of `inputs`."""
        if self.dropout is None or not self.dropout.training or not getattr(self.dropout, "p", 0.0):
            return None
        return cast("torch.Tensor", self.dropout(inputs))


@dataclass(frozen=True)
class FusedLayer:
    """One decoder layer."""

    layer: Any
    attention_inputs: tuple[Linear, ...]
    """q, k, v."""
    attention_output: Linear
    gate_inputs: tuple[Linear, ...]
    """gate, up."""
    gate_output: Linear

    def __call__(self, hidden_states: torch.Tensor, *args: Any, plan: Any = None, **kwargs: Any) -> torch.Tensor:
        """hidden_states (1, T, C) float32 -> the same shape."""
        own = self.layer
        if plan is None or args or hidden_states.shape[0] != 1:
            return cast("torch.Tensor", type(own).forward(own, hidden_states, *args, plan=plan, **kwargs))
        attention, tokens = own.self_attn, hidden_states.shape[1]
        cos, sin = (table[0].unsqueeze(1) for table in kwargs["position_embeddings"])  # (T, 1, D)
        residual = hidden_states[0]
        query, key, value = (
            output.view(tokens, -1, attention.head_dim)
            for output in products(normalised(own.input_layernorm, residual), self.attention_inputs)
        )
        query, key = (rotated(heads, cos, sin).transpose(0, 1).unsqueeze(0) for heads in (query, key))
        value = value.transpose(0, 1).unsqueeze(0)
        attended = plan.attend(int(attention.layer_idx), query, key, value, attention.scaling).reshape(tokens, -1)
        (residual,) = products(attended, (self.attention_output,), residual)
        gate, up = products(normalised(own.post_attention_layernorm, residual), self.gate_inputs)
        (residual,) = products(gated(gate, up), (self.gate_output,), residual)
        return residual.unsqueeze(0)


@contextmanager
def fused_layers(model: nn.Module) -> Iterator[int]:
    """Within it, passes with a plan run through fused layers, where the model has such. Gives how many it has."""
    changed: list[nn.Module] = []
    try:
        for module in model.modules():
            if type(module).__name__ == LAYER and "forward" not in vars(module):
                fused = fused_layer(module)
                if fused is not None:
                    cast(Any, module).forward = fused
                    changed.append(module)
        yield len(changed)
    finally:
        for module in changed:
            vars(module).pop("forward", None)


def fused_layer(layer: nn.Module) -> FusedLayer | None:
    """A LlamaDecoderLayer with the same weights; None where any part of it is not in float32 on a CPU or not plain."""
    import torch

    own = cast(Any, layer)
    attention, mlp = own.self_attn, own.mlp
    names = (
        *((attention, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
        *((mlp, name) for name in ("gate_proj", "up_proj", "down_proj")),
    )
    linears = [_linear(getattr(parent, name)) for parent, name in names]
    is_silu = "silu" in type(mlp.act_fn).__name__.lower()
    values = [*layer.parameters()]
    plain = all(value.device.type == "cpu" and value.dtype == torch.float32 for value in values)
    hooked = any(
        module._forward_hooks or module._forward_pre_hooks for module in layer.modules() if module is not layer
    )
    if not is_silu or not plain or hooked or any(linear is None for linear in linears):
        return None
    found = cast("list[Linear]", linears)
    return FusedLayer(layer, tuple(found[:3]), found[3], tuple(found[4:6]), found[6])


def _linear(module: nn.Module) -> Linear | None:
    """A frozen linear layer, plain or with one plain LoRA adapter; None for any other."""
    import torch
    from peft.tuners.lora.layer import Linear as Adapted

    if type(module) is torch.nn.Linear:
        return None if module.weight.requires_grad else Linear(module, None, None, 0.0, None)
    if type(module) is not Adapted:
        return None
    adapted = cast(Any, module)
    active = [name for name in adapted.active_adapters if name in adapted.lora_A]
    if type(adapted.base_layer) is not torch.nn.Linear or adapted.base_layer.weight.requires_grad or adapted.merged:
        return None
    if adapted.disable_adapters or not active:
        return Linear(adapted.base_layer, None, None, 0.0, None)
    a, b = adapted.lora_A[active[0]], adapted.lora_B[active[0]]
    plain = all(type(factor) is torch.nn.Linear and factor.bias is None for factor in (a, b))
    if len(active) > 1 or not plain or active[0] in adapted.lora_variant:
        return None
    return Linear(adapted.base_layer, a, b, float(adapted.scaling[active[0]]), adapted.lora_dropout[active[0]])


def products(
    inputs: torch.Tensor, linears: Sequence[Linear], residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """W x + s B A x + bias of each linear layer, (T, d_out), for inputs (T, C); one layer's may be added to a
    `residual` (T, d_out).
    """
    import torch

    settings: list[torch.Tensor | None] = []
    for linear in linears:
        a, b = (None if factor is None else factor.weight for factor in (linear.a, linear.b))
        settings += [linear.dropped(inputs) if a is not None else None, linear.base.weight, linear.base.bias, a, b]
    scales = tuple(linear.scale for linear in linears)
    if torch.is_grad_enabled():
        found: tuple[torch.Tensor, ...] = _functions().products.apply(inputs, residual, scales, *settings)
        return found
    return _products(inputs, residual, scales, settings)[0]


def _products(
    inputs: torch.Tensor,
    residual: torch.Tensor | None,
    scales: Sequence[float],
    settings: Sequence[torch.Tensor | None],
    keep_residual: bool = False,
) -> tuple[tuple[torch.Tensor, ...], list[torch.Tensor | None]]:
    """(outputs, A x of each adapter)."""
    import torch

    outputs: list[torch.Tensor] = []
    inner: list[torch.Tensor | None] = []
    for number, scale in enumerate(scales):
        dropped, weight, bias, a, b = settings[5 * number : 5 * number + 5]
        assert weight is not None
        if residual is None:
            output = torch.nn.functional.linear(inputs, weight, bias)
        else:
            add = residual.addmm if keep_residual else residual.addmm_
            output = add(inputs, weight.t())
            if bias is not None:
                output += bias
        ranks = None
        if a is not None and b is not None:
            ranks = (inputs if dropped is None else dropped) @ a.t()
            output.addmm_(ranks, b.t(), alpha=scale)
        outputs.append(output)
        inner.append(ranks)
    return tuple(outputs), inner


def normalised(norm: Any, inputs: torch.Tensor) -> torch.Tensor:
    """RMSNorm (Zhang and Sennrich 2019, eq. 4) of inputs (T, C)."""
    import torch

    if torch.is_grad_enabled():
        found: torch.Tensor = _functions().norm.apply(inputs, norm.weight, norm.variance_epsilon)
        return found
    return (inputs * _inverse_rms(inputs, norm.variance_epsilon)).mul_(norm.weight)


def _inverse_rms(inputs: torch.Tensor, epsilon: float) -> torch.Tensor:
    """(T, 1): 1 / sqrt(mean square + epsilon)."""
    import torch

    length: torch.Tensor = torch.linalg.vector_norm(inputs, dim=-1, keepdim=True)
    return length.square_().div_(inputs.shape[-1]).add_(epsilon).rsqrt_()


def rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions (Su et al. 2021, eq. 34) of heads (T, H, D) by cos and sin (T, 1, D)."""
    import torch

    if torch.is_grad_enabled():
        found: torch.Tensor = _functions().rotation.apply(heads, cos, sin)
        return found
    return _rotated(heads, cos, sin, 1.0)


def _rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float) -> torch.Tensor:
    """By the angles, or with sign -1 by the angles backwards: the derivative."""
    half = heads.shape[-1] // 2
    output = heads * cos
    output[..., :half].addcmul_(heads[..., half:], sin[..., half:] if sign < 0 else sin[..., :half], value=-sign)
    output[..., half:].addcmul_(heads[..., :half], sin[..., :half] if sign < 0 else sin[..., half:], value=sign)
    return output


def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (SwiGLU: Shazeer 2020, eq. 6), (T, width). Without gradients `gate` is overwritten."""
    import torch

    if torch.is_grad_enabled():
        found: torch.Tensor = _functions().gated_unit.apply(gate, up)
        return found
    return torch.nn.functional.silu(gate, inplace=True).mul_(up)


class _Functions(NamedTuple):
    products: Any
    norm: Any
    rotation: Any
    gated_unit: Any


@functools.cache
def _functions() -> _Functions:
    """The same with their derivatives."""
    import torch
    from torch.autograd.function import once_differentiable

    class Products(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            inputs: torch.Tensor,
            residual: torch.Tensor | None,
            scales: Sequence[float],
            *settings: torch.Tensor | None,
        ) -> tuple[torch.Tensor, ...]:
            outputs, inner = _products(inputs, residual, scales, settings, keep_residual=True)
            ctx.scales, ctx.count = scales, len(settings)
            adapted = any(ranks is not None for ranks in inner)
            ctx.save_for_backward(inputs if adapted else None, *settings, *inner)
            return outputs

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
            inputs, *rest = ctx.saved_tensors
            settings, inner = rest[: ctx.count], rest[ctx.count :]
            needed = ctx.needs_input_grad
            to_inputs: torch.Tensor | None = None
            found: list[torch.Tensor | None] = [None] * ctx.count
            for number, (scale, gradient, ranks) in enumerate(zip(ctx.scales, gradients, inner, strict=True)):
                dropped, weight, _, a, b = settings[5 * number : 5 * number + 5]
                of_dropped, _, _, of_a, of_b = needed[3 + 5 * number : 8 + 5 * number]
                if needed[0]:
                    to_inputs = gradient @ weight if to_inputs is None else to_inputs.addmm_(gradient, weight)
                if a is None:
                    continue
                to_ranks = (gradient @ b).mul_(scale)
                if of_b:
                    found[5 * number + 4] = (gradient.t() @ ranks).mul_(scale)
                if of_a:
                    found[5 * number + 3] = to_ranks.t() @ (inputs if dropped is None else dropped)
                if dropped is None:
                    if to_inputs is not None:
                        to_inputs.addmm_(to_ranks, a)
                elif of_dropped:
                    found[5 * number] = to_ranks @ a
            return to_inputs, gradients[0] if needed[1] else None, None, *found

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
            inverse = _inverse_rms(inputs, epsilon)
            ctx.save_for_backward(inputs, weight, inverse)
            return (inputs * inverse).mul_(weight)

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
            inputs, weight, inverse = ctx.saved_tensors
            weighted = gradient * weight
            along = (weighted * inputs).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(-inputs.shape[-1])
            return weighted.mul_(inverse).addcmul_(inputs, along), None, None

    class Rotation(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(cos, sin)
            return _rotated(heads, cos, sin, 1.0)

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
            cos, sin = ctx.saved_tensors
            return _rotated(gradient, cos, sin, -1.0), None, None

    class GatedUnit(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(gate, up)
            return torch.nn.functional.silu(gate).mul_(up)

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            gate, up = ctx.saved_tensors
            to_gate = torch.ops.aten.silu_backward(gradient * up, gate)
            return to_gate, torch.nn.functional.silu(gate).mul_(gradient)

    return _Functions(Products, Norm, Rotation, GatedUnit)
