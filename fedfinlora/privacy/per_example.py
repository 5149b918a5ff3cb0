"""The clipped gradients of units, from one backward pass over many of them.

Units (examples, or customers with several) lie one after the other in a packed sequence, nothing shared. A linear layer
y = W x of the adapter has, for unit i, the gradient G_i = sum over i's tokens of g_t x_t^T, with g_t the gradient of
its output. Each layer's x and g are kept during one backward pass (book-keeping: Bu, Wang, Zha and Karypis 2023,
section 3). LoRA's tensors are so thin that G_i itself, for a few units at a time, costs less than the ghost norm's
token-by-token products. It is scaled by its length over all layers and rounded to the grid (`fedfinlora.privacy.grid`),
where its length is checked in exact integers.

Guarantee: the integer contribution of any unit has norm at most C, for any gradient, or nothing of the step is
used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedfinlora.errors import UserError
from fedfinlora.model.adapter import FROZEN_ENTRIES, saved_name, trainable
from fedfinlora.privacy.grid import Grid

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

LEAST_WIDTH = 16
"""Tokens of the shortest filled unit on GPUs; longer ones are filled up to powers of two."""
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
            f"privacy=example can clip the weights of linear layers only, not {other[0]}. Use peft=lora, qlora, "
            "rslora, pissa, olora, eva, loftq, qalora, miss or lora_xs."
        )
    return layers


@contextmanager
def keeping(model: nn.Module) -> Iterator[Kept]:
    """Keep inputs and output gradients of the adapted layers of one forward and backward pass. Their weights get no
    gradient of the whole batch.
    """
    import torch

    kept = Kept()

    def forward_of(name: str, layer: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
        def keep_gradient(gradient: torch.Tensor) -> None:
            own = gradient.detach().reshape(-1, gradient.shape[-1])
            kept.output_gradients[name] = _without_frozen(own, layer, axis=0)

        def forward(values: torch.Tensor) -> torch.Tensor:
            kept.inputs[name] = _without_frozen(values.detach().reshape(-1, values.shape[-1]), layer, axis=1)
            output = torch.nn.functional.linear(values, layer.weight.detach().to(values.dtype), layer.bias)
            if not output.requires_grad:  # nothing in front of it is trained
                output.requires_grad_()
            output.register_hook(keep_gradient)
            return output

        return forward

    with ExitStack() as stack:
        for name, layer in adapted_layers(model).items():
            stack.enter_context(forward_instead(layer, forward_of(name, layer)))
        yield kept


def _without_frozen(values: torch.Tensor, layer: nn.Linear, axis: int) -> torch.Tensor:
    """(T, entries) with zeros for the weight's entries along `axis` that get no gradient, so that the clip does not
    count them.
    """
    frozen_axis, count = getattr(layer.weight, FROZEN_ENTRIES, (axis, 0))
    if frozen_axis != axis or not count:
        return values
    own = values.clone()
    own[:, values.shape[1] - count :] = 0.0
    return own


@contextmanager
def forward_instead(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward function for a while."""
    layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        del layer.__dict__["forward"]


def unit_gradients(kept: Kept, spans: Sequence[Span]) -> dict[str, torch.Tensor]:
    """Name of the weight -> (units, out, in) float32: G_i of each unit."""
    import torch

    found = {}
    for name, inputs in kept.inputs.items():
        gradients = kept.output_gradients[name]
        if inputs.is_cuda:
            found[name] = padded_unit_gradients(inputs, gradients, spans)
            continue
        per_unit = torch.empty(len(spans), gradients.shape[1], inputs.shape[1], device=inputs.device)
        for place, (start, end) in enumerate(spans):
            torch.mm(gradients[start:end].float().T, inputs[start:end].float(), out=per_unit[place])
        found[name] = per_unit
    return found


def padded_unit_gradients(inputs: torch.Tensor, gradients: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
    """(units, out, in) float32 of inputs (T, in) and output gradients (T, out): units of similar length are filled up
    with zeros and multiplied together, which a GPU does faster than one after the other.
    """
    import torch

    found = torch.empty(len(spans), gradients.shape[1], inputs.shape[1], device=inputs.device)
    by_width: dict[int, list[int]] = {}
    for unit, (start, end) in enumerate(spans):
        by_width.setdefault(max(LEAST_WIDTH, 1 << (end - start - 1).bit_length()), []).append(unit)
    for width, units in by_width.items():
        starts = torch.tensor([spans[unit][0] for unit in units], device=inputs.device)[:, None]
        ends = torch.tensor([spans[unit][1] for unit in units], device=inputs.device)[:, None]
        places = starts + torch.arange(width, device=inputs.device)
        inside = (places < ends).unsqueeze(-1)
        places = places.clamp(max=len(inputs) - 1)
        # torch.where, not a product: zero times what is not finite in a neighbour's place is not zero.
        own = [torch.where(inside, tensor[places].float(), 0.0) for tensor in (gradients, inputs)]
        found[units] = torch.bmm(own[0].transpose(1, 2), own[1])
    return found


def norms_of(gradients: Mapping[str, torch.Tensor]) -> list[float]:
    """|G_i| over all layers together, one a unit; not finite where a unit's gradient is not."""
    import torch

    first = next(iter(gradients.values())).device  # of several GPUs, where the model's layers lie on several
    squares = [per_unit.square().sum(dim=(1, 2), dtype=torch.float64).to(first) for per_unit in gradients.values()]
    return [float(norm) for norm in torch.stack(squares).sum(0).sqrt().tolist()]


def add_to_grid(gradients: Mapping[str, torch.Tensor], grid: Grid, sums: dict[str, torch.Tensor]) -> list[float]:
    """Clip each unit's gradient, round it to the grid and add it to `sums`: name -> (out, in) float64 with whole
    numbers of steps.

    Returns the units' norms before the clip. `gradients`, name -> (units, out, in), is overwritten with what was added.
    A unit that is not finite counts as zeros. UserError if a contribution were longer than C: then nothing of the step
    may be used.
    """
    import torch

    norms = norms_of(gradients)
    factors = [grid.factor(norm) for norm in norms]
    device = next(iter(gradients.values())).device
    scale = torch.tensor(factors, dtype=torch.float32, device=device).view(-1, 1, 1)
    squares = torch.zeros(len(norms), dtype=torch.float64, device=device)
    for per_unit in gradients.values():
        per_unit.mul_(scale.to(per_unit.device)).round_()
        for place, factor in enumerate(factors):
            if factor == 0:
                per_unit[place] = 0.0
        squares += per_unit.double().square_().sum(dim=(1, 2)).to(device)
    if float(squares.max()) > grid.bound_squared:
        raise UserError(
            "A clipped gradient is longer than privacy.clip_norm: this machine's arithmetic cannot be relied on. "
            "Nothing is sent."
        )
    for name, per_unit in gradients.items():
        sums[name] += per_unit.sum(dim=0, dtype=torch.float64)
    return norms
