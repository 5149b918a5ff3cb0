"""The gradient of one optimiser step: what `fedfinlora.train.loop` asks of it, and the plain one.

A step's rows are cut into passes that fit the memory there is (`fedfinlora.train.memory`); the loss is the mean over
the answer tokens of the whole step. The private ones are `fedfinlora.privacy.mechanism.Mechanism` and
`fedfinlora.privacy.dp_lora.PublishedMechanism`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fedfinlora.config.schema import TrainConfig
from fedfinlora.errors import UserError
from fedfinlora.model.packing import Example, Pack, answer_logits, make_pack, split_rows
from fedfinlora.train.memory import Footprint, checkpoint_first, footprint, free_bytes
from fedfinlora.train.row_order import Groups, rows_of_step

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger("fedfinlora.train.loop")


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
        if not math.isfinite(taken.loss):
            raise UserError(
                f"The training loss of {local.bank} is {taken.loss} at step {step}. Lower train.learning_rate."
            )
        return taken


PLAIN = PlainStep()


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

    def add_gradient(self, step: int) -> StepTaken:
        """Add to `grad` the gradient of the mean loss of the rows whose turn it is at `step`."""
        chosen = rows_of_step(step, len(self.examples), self.rows_per_step, self.seed, self.bank, self.groups)
        batch = [self.examples[index] for index in chosen]
        answers = sum(len(example.answer_ids) for example in batch)
        total = 0.0
        for part in passes_of_step(batch, self.config, self.limits, next(self.model.parameters()).device):
            if part.checkpointed_layers and not self.checkpointed_layers:
                _log_checkpointing(self.bank, part, self.limits, self.config)
            self.checkpointed_layers = max(self.checkpointed_layers, part.checkpointed_layers)
            checkpoint_first(self.layers, part.checkpointed_layers)
            loss = answer_loss(self.model, part.pack) / answers
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return StepTaken(batch, total)


def packs_of_step(examples: Sequence[Example], config: TrainConfig, device: torch.device | str) -> list[Pack]:
    """The forward passes of one optimiser step, as long as memory does not matter."""
    parts = split_rows(examples, config.batch_tokens, config.share_prefix)
    return [make_pack(part, device, config.share_prefix) for part in parts]


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a step."""

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
        """train.memory_gib, or half of what is free on the model's device now."""
        given = config.memory_gib * 2**30 or free_bytes(next(model.parameters()).device) / 2
        return cls(footprint(model), given)


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
        yield Pass(pack, limits.footprint.layers if every_layer else needed or 0, needed is not None)


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
