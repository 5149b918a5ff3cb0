"""The gradient of one optimiser step: what `fedfinlora.train.loop` asks of it, and the plain one.

A step's rows are cut into passes that fit the memory there is (`fedfinlora.train.memory`); the loss is the mean over
the answer tokens of the whole step. The private ones are `fedfinlora.privacy.mechanism.Mechanism` and
`fedfinlora.privacy.dp_lora.PublishedMechanism`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fedfinlora.config.train import TrainConfig
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import trainable
from fedfinlora.model.devices import devices_of, release_cached
from fedfinlora.model.packing import Example, Pack, answer_logits, make_pack, split_rows
from fedfinlora.train.memory import Footprint, checkpoint_first, footprint, pass_limit_bytes
from fedfinlora.train.row_order import Groups, rows_of_step

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger("fedfinlora.train.loop")
RETRY_SHARE = 0.8
"""After a pass ran out of memory, later ones may need at most this share of what it was estimated to need."""


class StepTaken(NamedTuple):
    """What a gradient was made of."""

    examples: Sequence[Example]
    loss: float
    """Mean negative log-likelihood of their answer tokens, in nats; 0 without rows."""


class GradientStep(Protocol):
    """Puts a step's gradient into the trainable parameters' `grad`."""

    @property
    def is_private(self) -> bool:
        """Whether it clips by itself. One that does also counts a gradient that is not finite as zeros: an error would
        be one bit about the rows.
        """

    def take(self, local: LocalRows, step: int) -> StepTaken:
        """The gradient of step number `step` of the run, of rows that it chooses among the bank's."""


@dataclass(frozen=True)
class PlainStep:
    """The gradient of the rows whose turn it is (`fedfinlora.train.row_order`)."""

    is_private = False

    def take(self, local: LocalRows, step: int) -> StepTaken:
        """UserError for a loss that is not finite."""
        taken = local.add_gradient(step)
        check_finite(taken.loss, local.bank, step)
        return taken


def check_finite(loss: float, bank: str, step: int) -> None:
    """UserError for a loss that is not finite."""
    if not math.isfinite(loss):
        raise UserError(f"The training loss of {bank} is {loss} at step {step}. Lower train.learning_rate.")


PLAIN = PlainStep()


@dataclass(frozen=True)
class FactorStep:
    """A gradient step that moves one factor alone: the other has no gradient, so that no optimiser touches it."""

    factor: str
    """lora_A or lora_B."""
    inner: GradientStep = PLAIN

    @property
    def is_private(self) -> bool:
        return self.inner.is_private

    def take(self, local: LocalRows, step: int) -> StepTaken:
        taken = self.inner.take(local, step)
        for name, parameter in local.model.named_parameters():
            if parameter.requires_grad and f".{self.factor}." not in name:
                parameter.grad = None
        return taken


@dataclass
class LocalRows:
    """A bank's rows and model as a gradient step sees them."""

    model: nn.Module
    examples: Sequence[Example]
    rows_per_step: float
    config: TrainConfig
    seed: int
    bank: str
    groups: Groups
    """Rows with a common beginning, where train.share_prefix is on."""
    limits: PassLimits
    layers: Sequence[nn.Module]
    """The decoder's, which can be checkpointed."""
    checkpointed_layers: int = 0
    """Most of them that any pass so far has checkpointed."""
    _pool: Executor | None = None
    _last_step: int = 0
    _ready: dict[int, Future[tuple[list[Example], Iterator[Pass]]]] = field(default_factory=dict)
    """Step -> its rows and passes, made ahead."""

    def add_gradient(self, step: int, share: Callable[[list[Example]], list[Example]] = list) -> StepTaken:
        """Add to `grad` the gradient of the mean loss of the rows whose turn it is at `step`; with a `share` of them,
        what those add to the mean loss of all.
        """
        ready = self._ready.pop(step, None)
        batch, passes = ready.result() if ready is not None else self._passes_of(step, share)
        if self._pool is not None and step + 1 < self._last_step:
            self._ready[step + 1] = self._pool.submit(lambda: _whole(self._passes_of(step + 1, share)))
        answers = sum(len(example.answer_ids) for example in batch)
        losses: list[torch.Tensor] = []
        for part in passes:
            losses += self._add_pass(part, answers)
        return StepTaken(batch, sum(float(loss) for loss in losses))  # read once a step: a GPU need not be waited for

    def prepare_ahead(self, pool: Executor, last_step: int) -> None:
        """Make the packs of a step in `pool` while the step before it is computed, up to `last_step` (exclusive)."""
        self._pool, self._last_step = pool, last_step

    def _passes_of(
        self, step: int, share: Callable[[list[Example]], list[Example]]
    ) -> tuple[list[Example], Iterator[Pass]]:
        """The rows whose turn it is, and the passes of a share of them."""
        chosen = rows_of_step(step, len(self.examples), self.rows_per_step, self.seed, self.bank, self.groups)
        batch = [self.examples[index] for index in chosen]
        return batch, passes_of_step(share(batch), self.config, self.limits, next(self.model.parameters()).device)

    def _add_pass(self, part: Pass, answers: int) -> list[torch.Tensor]:
        """Add one pass's gradient to `grad` and return its share of the step's loss; in smaller passes where a GPU has
        too little memory after all. MemoryError where the smallest does not fit.
        """
        import torch

        if part.checkpointed_layers and not self.checkpointed_layers:
            _log_checkpointing(self.bank, part, self.limits, self.config)
        self.checkpointed_layers = max(self.checkpointed_layers, part.checkpointed_layers)
        try:
            return [self._add_gradient_of(part, answers)]
        except torch.OutOfMemoryError:
            pass  # what the failed pass kept goes with the exception
        release_cached(devices_of(self.model))
        needed = self.limits.footprint.pass_bytes(part.pack, part.checkpointed_layers)
        self.limits = replace(self.limits, memory_bytes=min(self.limits.memory_bytes, RETRY_SHARE * needed))
        smaller = _smaller(part, len(self.layers), self.config)
        if not smaller:
            raise MemoryError(
                f"out of memory: a row of {part.pack.tokens} tokens does not fit, with every layer checkpointed"
            )
        log.warning(
            "%s: out of memory in a pass of %d rows and %d tokens: it is taken again as %s",
            self.bank,
            len(part.rows),
            part.pack.tokens,
            "two" if len(smaller) == 2 else "one with every layer checkpointed",
        )
        return [loss for each in smaller for loss in self._add_pass(each, answers)]

    def _add_gradient_of(self, part: Pass, answers: int) -> torch.Tensor:
        """Nothing is added unless the whole backward pass is done."""
        import torch

        parameters = list(trainable(self.model).values())
        checkpoint_first(self.layers, part.checkpointed_layers)
        loss = answer_loss(self.model, part.pack) / answers
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return loss.detach()


def packs_of_step(examples: Sequence[Example], config: TrainConfig, device: torch.device | str) -> list[Pack]:
    """The forward passes of one optimiser step, as long as memory does not matter."""
    parts = split_rows(examples, config.batch_tokens, config.share_prefix)
    return [make_pack(part, device, config.share_prefix) for part in parts]


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a step."""

    rows: Sequence[Example]
    pack: Pack
    checkpointed_layers: int
    fits: bool
    """Whether it stays within the limit; one that does not is a single row with every layer checkpointed."""


@dataclass(frozen=True)
class PassLimits:
    """What decides how a step is cut into passes."""

    footprint: Footprint
    memory_bytes: float

    @classmethod
    def of(cls, model: nn.Module, config: TrainConfig) -> PassLimits:
        """train.memory_gib, or a share of what is free on the model's devices now."""
        return cls(footprint(model), config.memory_gib * 2**30 or pass_limit_bytes(model))


def passes_of_step(
    examples: Sequence[Example], config: TrainConfig, limits: PassLimits, device: torch.device | str
) -> Iterator[Pass]:
    """The passes of one optimiser step: few enough layers checkpointed, else more passes of fewer rows, to stay within
    memory.

    Rows that are taken apart read their common beginning once in each pass. The step's loss and gradient are the same.
    """
    waiting = list(split_rows(examples, config.batch_tokens, config.share_prefix))[::-1]
    while waiting:
        rows = waiting.pop()
        pack = make_pack(rows, device, config.share_prefix)
        needed = limits.footprint.layers_to_checkpoint(pack, limits.memory_bytes)
        if needed is None and len(rows) > 1:
            half = len(rows) // 2
            waiting += [rows[half:], rows[:half]]
            continue
        every_layer = config.gradient_checkpointing or needed is None
        yield Pass(rows, pack, limits.footprint.layers if every_layer else needed or 0, needed is not None)


def _whole(passes: tuple[list[Example], Iterator[Pass]]) -> tuple[list[Example], Iterator[Pass]]:
    """The same with every pack made."""
    return passes[0], iter(list(passes[1]))


def _smaller(part: Pass, layers: int, config: TrainConfig) -> list[Pass]:
    """A pass that did not fit as two of half the rows, or with every layer checkpointed; none where neither is left."""
    device = part.pack.token_ids.device
    half = len(part.rows) // 2
    if half:
        parts = (part.rows[:half], part.rows[half:])
        return [replace(part, rows=rows, pack=make_pack(rows, device, config.share_prefix)) for rows in parts]
    return [] if part.checkpointed_layers >= layers else [replace(part, checkpointed_layers=layers)]


def answer_loss(model: nn.Module, pack: Pack) -> torch.Tensor:
    """Sum over a pack's answer tokens of their negative log-likelihood, in nats; logits are made at those positions
    only.
    """
    import torch

    return torch.nn.functional.cross_entropy(answer_logits(model, pack), pack.answer_ids, reduction="sum")


def _log_checkpointing(bank: str, part: Pass, limits: PassLimits, config: TrainConfig) -> None:
    """Say once how many layers are computed twice, and why."""
    layers, tokens = f"{part.checkpointed_layers} of {limits.footprint.layers} layers", part.pack.tokens
    memory = f"{limits.memory_bytes / 2**30:.1f} GiB"
    if not part.fits:
        log.warning("%s: a row of %d tokens needs more than %s even with %s checkpointed", bank, tokens, memory, layers)
    elif config.gradient_checkpointing:
        log.info("%s: %s checkpointed, as train.gradient_checkpointing says", bank, layers)
    else:
        log.info("%s: %s checkpointed to keep a pass of %d tokens within %s", bank, layers, tokens, memory)
