"""One optimiser step of DP-SGD on the adapter (Abadi et al. 2016, algorithm 1): draw units, clip each one's gradient,
add noise once.

    g = step * (sum over drawn units i of round(c_i G_i) + N_Z(0, 2^(2 L))) / E

G_i is the gradient of unit i's loss over all trainable tensors; c_i scales it to at most C, in steps of the integer
grid (`fedfinlora.privacy.grid`); E is the declared number of units of a step: the drawn one is private. An example's
loss is the mean over its own answer tokens, a customer's the sum over its examples'. How a step is cut into passes
changes nothing but rounding.

| edge case | what happens |
|---|---|
| no unit drawn | the step is noise alone |
| one unit | the same, its contribution clipped |
| a unit whose gradient is zero | contributes zeros, and counts as drawn |
| a unit whose gradient is NaN or infinite | contributes zeros; the others are as they would be without it |
| dropout | each unit has secret masks of its own (`fedfinlora.privacy.unit_passes`) |
| a pass runs out of memory | nothing of it counts; the same units in two passes; noise once |

Neighbours. Products of other shapes round otherwise, so a unit's gradient among others is not to the last bit what it
is alone, and a hostile adapter could enlarge the difference. NEIGHBOUR_SHARE of C is kept free for it.
`fedfinlora.privacy.first_round_check` measures it before a bank's first round, and each step on the shortest of its
units; where it is too large, units go one to a pass, and there is no difference.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

from fedfinlora.model.adapter import trainable
from fedfinlora.model.devices import devices_of, release_cached
from fedfinlora.model.packing import Example, Pack, answer_logits, make_pack
from fedfinlora.privacy.accounting import Steps
from fedfinlora.privacy.grid import Grid
from fedfinlora.privacy.per_example import (
    Kept,
    Span,
    adapted_layers,
    add_to_grid,
    keeping,
    unit_gradients,
)
from fedfinlora.privacy.randomness import Keys, Stream, poisson_sample, reproducible_keys, secret_keys, unit_seed
from fedfinlora.privacy.unit_passes import (
    dropout_of_units,
    drops_out,
    repeated_tokens,
    shared_products,
    spans_of_lengths,
)
from fedfinlora.train.gradient_step import RETRY_SHARE, StepTaken

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from fedfinlora.train.gradient_step import LocalRows
    from fedfinlora.train.memory import Footprint

log = logging.getLogger("fedfinlora.privacy")
NEIGHBOUR_SHARE = 0.02
"""Contributions are clipped to (1 - this) C; the rest is for what one unit may change in the rounding of all others."""
GRADIENTS_BYTES = 2**28
"""Most memory for the gradients of single units that are held at the same time."""

Unit = tuple[int, Sequence[Example]]
"""(its number, which decides its masks; its examples)."""


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
    """Places of each unit's examples among the bank's; an example belongs to one unit at most."""
    expected_units: float
    """E, the denominator: q times the declared number of units."""
    seed: int
    bank: str
    reproducible: bool = False
    """Draws from the run's seed: for tests, and worth nothing as a guarantee."""
    alone: bool = False
    """One unit to a pass."""
    augmentations: int = 1
    """A unit's gradient is the mean over so many copies of it with masks of their own, before the clip (De et al. 2022,
    section 3.2).
    """

    is_private = True
    sensitivity = 1.0

    def spends(self, count: int) -> Steps:
        """What `count` steps are to the accountant."""
        return Steps(self.sampling_rate, self.noise_multiplier, count)

    def among(self, rows: Sequence[Example], taking_part: NDArray[np.bool_]) -> tuple[Mechanism, Sequence[Example]]:
        """The same for the units all of whose rows may take part; the rows keep their places, and the denominator
        stays: it is declared.
        """
        return replace(self, units=tuple(unit for unit in self.units if taking_part[list(unit)].all())), rows

    def take(self, local: LocalRows, step: int) -> StepTaken:
        """The noisy gradient of a Poisson sample of the units (`fedfinlora.train.gradient_step`)."""
        limits = local.limits
        done = private_step(
            local.model, local.examples, self, step, local.config.batch_tokens, limits.footprint, limits.memory_bytes
        )
        if done.memory_bytes < limits.memory_bytes:
            local.limits = replace(limits, memory_bytes=done.memory_bytes)  # later steps do not fail first
        answers = sum(len(example.answer_ids) for example in done.examples)
        return StepTaken(done.examples, done.loss_sum / answers if answers else 0.0)

    def keys(self, step: int) -> Keys:
        """The keys of one step: fresh each time, also when a step is repeated."""
        return reproducible_keys(self.seed, self.bank, step) if self.reproducible else secret_keys()

    def grid(self, size: int) -> Grid:
        """The grid for an adapter of `size` numbers."""
        return Grid(self.clip_norm, self.noise_multiplier, size, 1 - NEIGHBOUR_SHARE)


@dataclass(frozen=True)
class PrivateStep:
    """What a step was; all of it stays in the bank."""

    examples: tuple[Example, ...]
    """Those drawn."""
    loss_sum: float
    """Negative log-likelihood of their answer tokens, in nats; of one copy where there are several."""
    norms: tuple[float, ...]
    """Each drawn unit's gradient norm before the clip."""
    memory_bytes: float = math.inf
    """What a later pass may be estimated to need; less than was given where a pass ran out of memory."""


def private_step(
    model: nn.Module,
    examples: Sequence[Example],
    mechanism: Mechanism,
    step: int,
    batch_tokens: int,
    footprint: Footprint,
    memory_bytes: float,
    extra: Sequence[Mapping[str, torch.Tensor]] = (),
) -> PrivateStep:
    """Put the noisy gradient of one step into the parameters' `grad`; without any sampled row it is noise alone.

    `extra` are gradients by name, (out, in) each, that are clipped and added like a drawn unit's: an audit's canaries.
    """
    import torch

    keys = mechanism.keys(step)
    parameters = trainable(model)
    grid = mechanism.grid(sum(parameter.numel() for parameter in parameters.values()))
    places = poisson_sample(len(mechanism.units), mechanism.sampling_rate, Stream(keys.draws))
    drawn = [(unit, [examples[place] for place in mechanism.units[unit]]) for unit in places]
    cut = partial(
        private_passes, model, drawn, footprint=footprint, memory_bytes=memory_bytes, copies=mechanism.augmentations
    )
    summed = None if mechanism.alone else _summed(model, cut(batch_tokens), grid, keys.masks, mechanism)
    sums, loss_sum, norms, failed = summed or cast(
        _Summed, _summed(model, cut(0), grid, keys.masks, replace(mechanism, alone=True))
    )
    for gradient in extra:
        copies = {
            name: gradient[name].detach().to(parameters[name].device, torch.float32)[None].clone() for name in sums
        }
        add_to_grid(copies, grid, sums)
    noise = Stream(keys.noise)
    for name, parameter in parameters.items():
        steps = torch.from_numpy(grid.noise(parameter.numel(), noise)).reshape(parameter.shape).to(parameter.device)
        # Whole numbers below 2^53: the sum with the noise is exact, and all that follows is made of it alone.
        noisy = sums[name] + steps.to(torch.float64)
        parameter.grad = (noisy * (grid.step / mechanism.expected_units)).to(parameter.dtype)
    needed = [_pass_bytes(model, units, footprint, mechanism.augmentations) for units in failed]
    room_bytes = min([memory_bytes, *(RETRY_SHARE * each for each in needed)])
    return PrivateStep(tuple(example for _, unit in drawn for example in unit), loss_sum, tuple(norms), room_bytes)


class _Summed(NamedTuple):
    sums: dict[str, torch.Tensor]
    """Name -> (out, in) float64, in steps of the grid."""
    loss_sum: float
    norms: list[float]
    failed: list[list[Unit]]
    """Passes that ran out of memory and were halved."""


def _summed(
    model: nn.Module, passes: Iterable[list[Unit]], grid: Grid, masks: bytes, mechanism: Mechanism
) -> _Summed | None:
    """The sum of the clipped gradients of all passes; None where the first pass of several units shows that neighbours
    change more than is kept free. MemoryError where a single unit does not fit.

    A pass has a sum of its own until it is done: whole numbers of steps, so the order of adding changes no bit.
    """
    sums = _zeros(trainable(model))
    loss_sum, norms, failed = 0.0, list[float](), list[list[Unit]]()
    checked = mechanism.alone
    for part in passes:
        waiting = [part]
        while waiting:
            units = waiting.pop()
            own = _zeros(sums)
            first = None if checked or len(units) == 1 else _zeros(sums)
            done = _add_or_none(model, units, grid, own, masks, mechanism.augmentations, first)
            if done is None:
                failed.append(units)
                waiting += _halves(units)[::-1]
                continue
            loss_sum += done[0]
            norms += done[1]
            for name, total in own.items():
                sums[name] += total
            if first is None:
                continue
            checked = True
            if _changed(model, units[0], first, grid, masks, mechanism) > NEIGHBOUR_SHARE:
                log.warning(
                    "a unit's gradient changes too much among others: the step is computed again, one unit to a pass"
                )
                return None
    return _Summed(sums, loss_sum, norms, failed)


def _add_or_none(
    model: nn.Module,
    units: Sequence[Unit],
    grid: Grid,
    sums: dict[str, torch.Tensor],
    masks: bytes,
    copies: int,
    first_unit: dict[str, torch.Tensor] | None,
) -> tuple[float, list[float]] | None:
    """`add_units`; None where memory did not do, and `sums` and `first_unit` are then worth nothing."""
    import torch

    try:
        return add_units(model, units, grid, sums, masks, copies, first_unit)
    except torch.OutOfMemoryError:
        pass  # what the failed pass kept goes with the exception
    release_cached(devices_of(model))
    return None


def _halves(units: list[Unit]) -> list[list[Unit]]:
    """A pass that did not fit, as two. MemoryError for one unit: it is never cut."""
    if len(units) == 1:
        raise MemoryError("out of memory: a private pass of a single unit does not fit")
    log.warning("out of memory in a private pass of %d units: it is taken again as two", len(units))
    return [units[: len(units) // 2], units[len(units) // 2 :]]


def _changed(
    model: nn.Module,
    unit: Unit,
    among_others: Mapping[str, torch.Tensor],
    grid: Grid,
    masks: bytes,
    mechanism: Mechanism,
) -> float:
    """This unit's change, against its contribution alone, for all units of a step together, as a share of C; infinite
    where memory does not do for the unit alone.
    """
    alone = _zeros(among_others)
    if _add_or_none(model, [unit], grid, alone, masks, mechanism.augmentations, None) is None:
        return math.inf
    squares = sum(float((alone[name] - among_others[name]).square().sum()) for name in alone)
    return math.sqrt(squares) / grid.bound_steps * mechanism.expected_units


def add_units(
    model: nn.Module,
    units: Sequence[Unit],
    grid: Grid,
    sums: dict[str, torch.Tensor],
    masks: bytes,
    copies: int = 1,
    first_unit: dict[str, torch.Tensor] | None = None,
) -> tuple[float, list[float]]:
    """One pass: add the units' clipped gradients to `sums`, name -> (out, in) float64 in steps of the grid; the first
    unit's to `first_unit` too.

    Returns (sum of their answer tokens' losses in nats, each unit's norm). Where a gradient is not finite the units go
    one by one: zero times infinity would spoil its neighbours.
    """
    losses, kept, spans = one_pass(model, units, masks, copies)
    size_bytes = 4 * sum(parameter.numel() for parameter in trainable(model).values())
    at_once = max(1, GRADIENTS_BYTES // size_bytes)
    norms: list[float] = []
    pending = _zeros(trainable(model))
    for first in range(0, len(spans), at_once):
        gradients = unit_gradients(kept, spans[first : first + at_once])
        norms += add_to_grid(gradients, grid, pending)
        if first_unit is not None and first == 0:
            for name, steps in gradients.items():
                first_unit[name] += steps[0]
    if len(units) > 1 and not all(map(math.isfinite, norms)):
        del kept, pending
        if first_unit is not None:
            for total in first_unit.values():
                total.zero_()
            add_units(model, units[:1], grid, first_unit, masks, copies)
        parts = [add_units(model, [unit], grid, sums, masks, copies) for unit in units]
        return sum(loss for loss, _ in parts), [norm for _, found in parts for norm in found]
    for name, total in pending.items():
        sums[name] += total
    return (losses if all(map(math.isfinite, norms)) else 0.0), norms


def one_pass(model: nn.Module, units: Sequence[Unit], masks: bytes, copies: int) -> tuple[float, Kept, list[Span]]:
    """(loss in nats of one copy of the units, what the backward pass left, where each unit lies)."""
    rows = [example for _, unit in units for _ in range(copies) for example in unit]
    spans = spans_of_lengths([copies * tokens_of(unit) for _, unit in units])
    pack = make_pack(rows, next(model.parameters()).device, share=False, keep_order=True)
    repeated = None if drops_out(model) else repeated_tokens(rows)
    seeds = [unit_seed(masks, number) for number, _ in units]
    with keeping(model) as kept, dropout_of_units(model, spans, seeds), shared_products(model, repeated):
        losses = token_losses(model, pack)
        ((losses * answer_means(pack)).sum() / copies).backward()  # type: ignore[no-untyped-call]
    return float(losses.detach().sum()) / copies, kept, spans


def private_passes(
    model: nn.Module,
    units: Sequence[Unit],
    batch_tokens: int,
    footprint: Footprint,
    memory_bytes: float,
    copies: int = 1,
) -> Iterator[list[Unit]]:
    """Cut a step's units into passes of `batch_tokens` (0 = one unit each) or what memory allows; a unit is never cut,
    however long it is.

    Besides what any pass keeps, a private one keeps the gradients of the adapted layers' outputs.
    """
    waiting: list[list[Unit]] = []
    used = 0
    for unit in sorted(units, key=lambda unit: (tokens_of(unit[1]), unit[0])):
        tokens = copies * tokens_of(unit[1])
        if waiting and used + tokens <= batch_tokens:
            waiting[-1].append(unit)
            used += tokens
        else:
            waiting.append([unit])
            used = 0  # after its first unit a pass takes `batch_tokens` further tokens
    waiting.reverse()
    while waiting:
        part = waiting.pop()
        fits = _pass_bytes(model, part, footprint, copies) <= memory_bytes
        if len(part) > 1 and not fits:
            waiting += [part[len(part) // 2 :], part[: len(part) // 2]]
            continue
        if not fits:
            log.warning("one unit needs more memory than train.memory_gib allows")
        yield part


def _pass_bytes(model: nn.Module, units: Sequence[Unit], footprint: Footprint, copies: int) -> float:
    """What a private pass is estimated to need."""
    kept_bytes = 4 * sum(layer.out_features for layer in adapted_layers(model).values())
    pack = pack_units([unit for _, unit in units], "cpu")
    return copies * (footprint.pass_bytes(pack, 0) + pack.tokens * kept_bytes)


def tokens_of(unit: Sequence[Example]) -> int:
    """Tokens that a pass reads for a unit."""
    return sum(len(example.read_ids) for example in unit)


def pack_units(units: Sequence[Sequence[Example]], device: torch.device | str) -> Pack:
    """The units one after the other, nothing shared."""
    return make_pack([example for unit in units for example in unit], device, share=False, keep_order=True)


def token_losses(model: nn.Module, pack: Pack) -> torch.Tensor:
    """(A,) negative log-likelihood of each answer token, in nats."""
    import torch

    return torch.nn.functional.cross_entropy(answer_logits(model, pack), pack.answer_ids, reduction="none")


def answer_means(pack: Pack) -> torch.Tensor:
    """(A,) factors that make the sum over an example's answer tokens their mean."""
    import torch

    lengths = torch.tensor(pack.answer_lengths, device=pack.answer_ids.device)
    return (1.0 / lengths).repeat_interleave(lengths)


def _zeros(like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name -> float64 zeros of each tensor's shape."""
    import torch

    return {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in like.items()}
