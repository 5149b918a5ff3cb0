"""The test before a bank's first private round: a unit's gradient among others and alone, and by plain autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from fedfinlora.errors import UserError
from fedfinlora.model.adapter import trainable
from fedfinlora.model.packing import Example
from fedfinlora.privacy.grid import Grid
from fedfinlora.privacy.mechanism import answer_means, one_pass, pack_units, token_losses, tokens_of
from fedfinlora.privacy.per_example import add_to_grid, norms_of, unit_gradients
from fedfinlora.privacy.randomness import secret_keys, unit_seed
from fedfinlora.privacy.unit_passes import dropout_of_units

if TYPE_CHECKING:
    import torch
    from torch import nn

AUTOGRAD_TOLERANCE = 1e-4
"""Largest relative difference between a unit's norm as it is computed here and by plain autograd, in the same pass."""
LOW_PRECISION_TOLERANCE = 0.05
"""The same where activations have 8 bits of precision (bfloat16) or 11 (float16)."""
TESTED_UNITS = 8
"""Of lengths from the shortest to the longest."""


def units_to_test(units: Sequence[Sequence[Example]], most_tokens: int) -> list[Sequence[Example]]:
    """At most TESTED_UNITS units of lengths spread from the shortest to the longest, together of about `most_tokens`
    tokens next to the longest.
    """
    ordered = sorted(units, key=tokens_of)
    places = sorted({round(number * (len(ordered) - 1) / (TESTED_UNITS - 1)) for number in range(TESTED_UNITS)})
    chosen, used = [ordered[places.pop()]], 0
    for place in places:
        if used + tokens_of(ordered[place]) <= most_tokens:
            chosen.append(ordered[place])
            used += tokens_of(ordered[place])
    return chosen


def self_test(model: nn.Module, units: Sequence[Sequence[Example]], clip_norm: float) -> float:
    """The mean change of a unit's clipped gradient among the others instead of alone, as a share of C.

    In training mode, with the masks of one secret key. Also compares each norm with plain autograd's. UserError where
    they differ: nothing may then be sent.
    """
    parameters = trainable(model)
    grid = Grid(clip_norm, 0.0, sum(parameter.numel() for parameter in parameters.values()))
    masks = secret_keys().masks
    numbered = list(enumerate(units))
    was_training = model.training
    model.train()
    try:
        _, kept, spans = one_pass(model, numbered, masks, copies=1)
        together = unit_gradients(kept, spans)
        changes = []
        for number, unit in numbered:
            _, kept, spans = one_pass(model, [(number, unit)], masks, copies=1)
            alone = unit_gradients(kept, spans)
            (found,) = norms_of(alone)
            _compare_with_autograd(model, unit, found, masks, number)
            own = {name: per_unit[number : number + 1].clone() for name, per_unit in together.items()}
            if math.isfinite(found):
                changes.append(_distance(own, alone, grid) / grid.bound_steps)
    finally:
        model.train(was_training)
    return fmean(changes) if changes else math.inf


def _distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], grid: Grid) -> float:
    """Distance in grid steps of two gradients' contributions, (1, out, in) each by name."""
    import torch

    sums = [{name: torch.zeros_like(values[0], dtype=torch.float64) for name, values in one.items()} for _ in range(2)]
    for gradients, total in zip((one, other), sums, strict=True):
        add_to_grid(gradients, grid, total)
    return math.sqrt(sum(float((sums[0][name] - sums[1][name]).square().sum()) for name in one))


def _compare_with_autograd(model: nn.Module, unit: Sequence[Example], found: float, masks: bytes, number: int) -> None:
    import torch

    parameters = trainable(model)
    pack = pack_units([unit], next(model.parameters()).device)
    with dropout_of_units(model, [(0, tokens_of(unit))], [unit_seed(masks, number)]):
        (token_losses(model, pack) * answer_means(pack)).sum().backward()  # type: ignore[no-untyped-call]
    squares = [
        parameter.grad.float().square().sum(dtype=torch.float64)
        for parameter in parameters.values()
        if parameter.grad is not None
    ]
    by_autograd = float(torch.stack(squares).sum().sqrt())
    model.zero_grad(set_to_none=True)
    precise = all(parameter.dtype in (torch.float32, torch.uint8, torch.int8) for parameter in model.parameters())
    allowed = (AUTOGRAD_TOLERANCE if precise else LOW_PRECISION_TOLERANCE) * max(by_autograd, 1e-12)
    if math.isfinite(by_autograd) and not abs(found - by_autograd) <= allowed:
        raise UserError(
            f"The gradient norm of a unit is {found:.6g} here and {by_autograd:.6g} by plain autograd: clipping cannot "
            "be relied on with this model. Nothing is sent."
        )
