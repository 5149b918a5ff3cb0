"""One optimiser step of DP-SGD on the adapter (Abadi et al. 2016, algorithm 1): draw units, clip each one's gradient, add noise once.

    g = (sum over drawn units i of min(1, C / |G_i|) G_i + N(0, (sigma C)^2 I)) / (q N)

G_i is the gradient of unit i's loss over all trainable tensors together, q the sampling rate, N the bank's units: the denominator is the
expected size of a step, not the drawn one, which is private. How a step is cut into passes changes nothing but rounding. The loss of an
example is the mean over its own answer tokens, so that no example's loss depends on another; a customer's is the sum over its examples'.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from fedfinlora.adapter import trainable
from fedfinlora.errors import UserError
from fedfinlora.packing import Example, Pack, answer_logits, make_pack
from fedfinlora.privacy.noise import gaussian, poisson_sample, reproducible_generator, secret_generator
from fedfinlora.privacy.per_example import Span, adapted_layers, add_clipped, clip_factors, gradient_norms, keeping

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from fedfinlora.memory import Footprint

log = logging.getLogger("fedfinlora.privacy")
PROOF_TOLERANCE = 1e-4
"""Largest relative difference between a unit's norm as it is computed here and by plain autograd, in the same pass."""
NEIGHBOUR_TOLERANCE = 1e-3
"""Largest relative difference between a unit's norm among others and alone: products of other shapes round otherwise (1.2e-4 was seen with a
135M model in float32)."""
LOW_PRECISION_TOLERANCE = 0.05
"""Both, where activations have 8 bits of precision (bfloat16) or 11 (float16)."""


@dataclass(frozen=True)
class Mechanism:
    """What a bank does to its gradients in a run."""

    clip_norm: float
    """C."""
    sampling_rate: float
    """q."""
    noise_multiplier: float
    """sigma."""
    units: tuple[tuple[int, ...], ...]
    """Places of each unit's examples among the bank's; every example belongs to one unit."""
    seed: int
    bank: str
    reproducible: bool = False
    """Draws from the run's seed: for tests, and worth nothing as a guarantee."""

    @property
    def expected_units(self) -> float:
        """q N."""
        return self.sampling_rate * len(self.units)

    def draws(self, step: int) -> np.random.Generator:
        """The generator of one step."""
        return reproducible_generator(self.seed, self.bank, step) if self.reproducible else secret_generator()


@dataclass(frozen=True)
class PrivateStep:
    """What a step was; all of it stays in the bank."""

    examples: tuple[Example, ...]
    """Those drawn."""
    loss_sum: float
    """Negative log-likelihood of their answer tokens, in nats."""
    left_out_units: int
    """Units whose gradient was not finite."""


def private_step(
    model: nn.Module,
    examples: Sequence[Example],
    mechanism: Mechanism,
    step: int,
    batch_tokens: int,
    footprint: Footprint,
    memory_bytes: float,
) -> PrivateStep:
    """Put the noisy gradient of one step into the parameters' `grad`, whatever was drawn: nothing at all is noise alone."""
    import torch

    draw = mechanism.draws(step)
    parameters = trainable(model)
    sums = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
    places = poisson_sample(len(mechanism.units), mechanism.sampling_rate, draw)
    drawn = [[examples[place] for place in mechanism.units[unit]] for unit in places]
    loss_sum, norms = 0.0, list[float]()
    for units in private_passes(model, drawn, batch_tokens, footprint, memory_bytes):
        losses, found = add_units(model, units, mechanism.clip_norm, sums)
        loss_sum += losses
        norms += found
    deviation = mechanism.noise_multiplier * mechanism.clip_norm
    for name, parameter in parameters.items():
        noise = torch.from_numpy(gaussian(parameter.numel(), deviation, draw)).reshape(parameter.shape).to(parameter.device)
        parameter.grad = ((sums[name] + noise) / mechanism.expected_units).to(parameter.dtype)
    finite = [norm for norm in norms if math.isfinite(norm)]
    return PrivateStep(
        examples=tuple(example for unit in drawn for example in unit),
        loss_sum=loss_sum,
        left_out_units=len(norms) - len(finite),
    )


def add_units(
    model: nn.Module, units: Sequence[Sequence[Example]], clip_norm: float, sums: dict[str, torch.Tensor]
) -> tuple[float, list[float]]:
    """One pass: add the units' clipped gradients to `sums`. Returns (sum of their answer tokens' losses in nats, each unit's norm).

    Where a gradient is not finite the units go one by one: in one sequence, zero weight times infinity would spoil its neighbours too.
    """
    pack = pack_units(units, next(model.parameters()).device)
    with keeping(model) as kept:
        losses = token_losses(model, pack)
        (losses * answer_means(pack)).sum().backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)  # the unclipped gradient that autograd made besides
    spans = spans_of(units)
    norms = gradient_norms(kept, spans)
    if len(units) > 1 and not all(map(math.isfinite, norms)):
        del kept, losses
        parts = [add_units(model, [unit], clip_norm, sums) for unit in units]
        return sum(loss for loss, _ in parts), [norm for _, found in parts for norm in found]
    add_clipped(kept, spans, clip_factors(norms, clip_norm), sums)
    return (float(losses.detach().sum()) if all(map(math.isfinite, norms)) else 0.0), norms


def private_passes(
    model: nn.Module, units: Sequence[Sequence[Example]], batch_tokens: int, footprint: Footprint, memory_bytes: float
) -> Iterator[list[Sequence[Example]]]:
    """Cut a step's units into passes of `batch_tokens` or what memory allows; a unit is never cut, whatever its length.

    Beside what any pass keeps, a private one keeps the gradients of the adapted layers' outputs.
    """
    kept_bytes = 4 * sum(layer.out_features for layer in adapted_layers(model).values())
    waiting: list[list[Sequence[Example]]] = []
    used = 0
    for unit in sorted(units, key=tokens_of):
        if waiting and used + tokens_of(unit) <= batch_tokens:
            waiting[-1].append(unit)
        else:
            waiting.append([unit])
            used = 0
        used += tokens_of(unit)
    waiting.reverse()
    while waiting:
        part = waiting.pop()
        pack = pack_units(part, "cpu")
        fits = footprint.pass_bytes(pack, 0) + pack.tokens * kept_bytes <= memory_bytes
        if len(part) > 1 and not fits:
            waiting += [part[len(part) // 2 :], part[: len(part) // 2]]
            continue
        if not fits:
            log.warning("one unit of %d tokens needs more memory than train.memory_gib allows", pack.tokens)
        yield part


def tokens_of(unit: Sequence[Example]) -> int:
    """Tokens that a pass reads for a unit."""
    return sum(len(example.read_ids) for example in unit)


def pack_units(units: Sequence[Sequence[Example]], device: torch.device | str) -> Pack:
    """The units one after the other, nothing shared."""
    return make_pack([example for unit in units for example in unit], device, share=False, keep_order=True)


def spans_of(units: Sequence[Sequence[Example]]) -> list[Span]:
    """Where each unit lies in the packed sequence."""
    return list(pairwise([0, *accumulate(tokens_of(unit) for unit in units)]))


def token_losses(model: nn.Module, pack: Pack) -> torch.Tensor:
    """(A,) negative log-likelihood of each answer token, in nats."""
    import torch

    return torch.nn.functional.cross_entropy(answer_logits(model, pack), pack.answer_ids, reduction="none")


def answer_means(pack: Pack) -> torch.Tensor:
    """(A,) factors that make the sum over an example's answer tokens their mean."""
    import torch

    lengths = torch.tensor(pack.answer_lengths, device=pack.answer_ids.device)
    return (1.0 / lengths).repeat_interleave(lengths)


def prove(model: nn.Module, units: Sequence[Sequence[Example]]) -> None:
    """Compare the units' norms in one pass with each one's alone, and those with plain autograd. UserError where they differ: nothing may then be
    sent.
    """
    import torch

    parameters = trainable(model)

    def norms_of(chosen: Sequence[Sequence[Example]]) -> list[float]:
        sums = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
        return add_units(model, chosen, 1.0, sums)[1]

    precise = all(parameter.dtype in (torch.float32, torch.uint8, torch.int8) for parameter in model.parameters())
    for unit, among_others in zip(units, norms_of(units), strict=True):
        (alone,) = norms_of([unit])
        pack = pack_units([unit], next(model.parameters()).device)
        (token_losses(model, pack) * answer_means(pack)).sum().backward()  # type: ignore[no-untyped-call]
        squares = [
            parameter.grad.float().square().sum(dtype=torch.float64)
            for parameter in parameters.values()
            if parameter.grad is not None
        ]
        by_autograd = float(torch.stack(squares).sum().sqrt())
        model.zero_grad(set_to_none=True)
        for found, other, tolerance, how in (
            (alone, by_autograd, PROOF_TOLERANCE, "by plain autograd"),
            (among_others, alone, NEIGHBOUR_TOLERANCE, "alone, among others the former"),
        ):
            allowed = (tolerance if precise else LOW_PRECISION_TOLERANCE) * max(other, 1e-12)
            if math.isfinite(other) and not abs(found - other) <= allowed:
                raise UserError(
                    f"The gradient norm of a unit is {found:.6g} here and {other:.6g} {how}: clipping cannot be relied on with this model. "
                    "Nothing is sent."
                )
