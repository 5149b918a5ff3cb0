"""The one training loop: a bank in a round, all rows pooled, one bank alone.

AdamW (Loshchilov and Hutter 2019) or SGD on the adapter, linear warm-up and cosine decay over the whole run, gradient
accumulation by answer tokens, clipping, and FedProx's proximal term (Li et al. 2020, eq. 2). What a step sees depends
only on the run's seed, the bank's name, its rows and the step's number (`fedfinlora.train.row_order`), so a run that is
interrupted resumes with the same bytes. How many passes a step takes and which layers they checkpoint follows the
memory there is (`fedfinlora.train.memory`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedfinlora.config.train import TrainConfig
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import trainable
from fedfinlora.model.devices import cuda_of, devices_of
from fedfinlora.model.packing import Example
from fedfinlora.seeds import derive_seed
from fedfinlora.train.gradient_step import (
    PLAIN,
    GradientStep,
    LocalRows,
    PassLimits,
    StepTaken,
    answer_loss,
    packs_of_step,
)
from fedfinlora.train.memory import decoder_layers, own_checkpointing
from fedfinlora.train.optimizers import OptimizerState, is_adam, load_state, make_optimizer, read_state, set_rate
from fedfinlora.train.row_order import groups_of

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Stretch:
    """Which optimiser steps of a run to take now: `first_step` (from 0) and `steps`, out of `total_steps`."""

    first_step: int
    steps: int
    total_steps: int
    rows_per_step: float
    """Rows of a step; where it is no whole number, steps differ by one row."""


@dataclass(frozen=True)
class TrainResult:
    """What a stretch of training gave."""

    steps: int
    rows: int
    tokens: int
    """Tokens of prompts and answers, each row counted in full (not fewer where a prefix was shared)."""
    answer_tokens: int
    loss: float
    """Mean negative log-likelihood of an answer token over the stretch, in nats, before each step's update."""
    step_losses: tuple[float, ...]
    wall_s: float
    optimizer: OptimizerState
    checkpointed_layers: int
    """Most decoder layers that any pass checkpointed."""


@dataclass(frozen=True)
class StepReport:
    """Reported to the caller after each optimiser step."""

    step: int
    steps: int
    loss: float
    tokens_per_s: float


def total_steps(rows: int, rounds: int, config: TrainConfig) -> int:
    """Optimiser steps of a bank of `rows` rows in the whole run: at least one in each round, so that every bank is
    heard.

    Raises UserError when train.max_steps allows fewer than one a round.
    """
    by_epochs = config.epochs > 0 and config.batch_rows > 0
    steps = round(config.epochs * rows / min(config.batch_rows, rows)) if by_epochs else config.steps_per_round * rounds
    if config.max_steps:
        steps = min(steps, config.max_steps)
        if config.max_steps < rounds:
            raise UserError(
                f"train.max_steps={config.max_steps} is fewer than the {rounds} rounds. Lower num_server_rounds or "
                "raise it."
            )
    return max(steps, rounds)


def stretch_of_round(round_number: int, rounds: int, steps: int, rows: int, config: TrainConfig) -> Stretch:
    """The steps of one round (from 1), the run's `steps` being spread evenly over its rounds, for a bank of `rows`
    rows.
    """
    first, end = (steps * done // rounds for done in (round_number - 1, round_number))
    rows_per_step = float(config.batch_rows) if config.batch_rows else config.epochs * rows / steps
    return Stretch(first, end - first, steps, rows_per_step)


def schedule_factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """Share of the peak rate at a step (from 0): linear warm-up, then constant, or cosine to zero at step `total`.

    The cosine is SGDR's without restarts (Loshchilov and Hutter 2017, eq. 5). A warm-up takes at most a tenth of a run.

    >>> [round(schedule_factor(step, 20, 2, "cosine"), 3) for step in (0, 1, 2, 11, 19)]
    [0.5, 1.0, 1.0, 0.5, 0.008]
    """
    warmup = min(warmup, total // 10)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def mean_loss(model: nn.Module, examples: Sequence[Example], config: TrainConfig) -> float:
    """Mean negative log-likelihood of an answer token over `examples`, in nats, without dropout or gradients."""
    import torch

    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        packs = packs_of_step(examples, config, device)
        total = sum(float(answer_loss(model, pack)) for pack in packs)
    return total / sum(len(pack.answer_ids) for pack in packs)


@dataclass
class _Done:
    """What the steps so far were made of."""

    losses: list[float] = field(default_factory=list)
    rows: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    loss_sum: float = 0.0

    def count(self, taken: StepTaken) -> None:
        answers = sum(len(example.answer_ids) for example in taken.examples)
        self.losses.append(taken.loss)
        self.loss_sum += taken.loss * answers
        self.rows += len(taken.examples)
        self.tokens += answers + sum(len(example.prompt_ids) for example in taken.examples)
        self.answer_tokens += answers


def train(
    model: nn.Module,
    examples: Sequence[Example],
    stretch: Stretch,
    config: TrainConfig,
    *,
    seed: int,
    bank: str,
    optimizer: OptimizerState | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    gradient: GradientStep = PLAIN,
) -> TrainResult:
    """Take the steps of `stretch` on the model's adapter, in place.

    `optimizer` is Adam's state to continue with; None starts afresh. FedProx's anchor is the adapter as it is on entry.
    A private `gradient` clips by itself, in the place of train.clip_norm. Raises UserError for rows without answer
    tokens and for a loss that is not finite.
    """
    import torch

    _check_answers(examples)
    devices = devices_of(model)
    parameters = list(trainable(model).values())
    anchor = [parameter.detach().clone() for parameter in parameters] if config.proximal_mu else []
    update = make_optimizer(parameters, config)
    update.zero_grad(set_to_none=True)
    if optimizer is not None and is_adam(update):
        load_state(update, parameters, optimizer)
    done = _Done()
    started = time.monotonic()
    with (
        torch.random.fork_rng(devices=cuda_of(devices)),
        _training_mode(model) as layers,
        ThreadPoolExecutor(1, "packs") as pool,
    ):
        groups = groups_of(examples) if config.share_prefix else ()
        local = LocalRows(
            model, examples, stretch.rows_per_step, config, seed, bank, groups, PassLimits.of(model, config), layers
        )
        if cuda_of(devices):
            local.prepare_ahead(pool, stretch.first_step + stretch.steps)
        for step in range(stretch.first_step, stretch.first_step + stretch.steps):
            torch.manual_seed(derive_seed(seed, "dropout", bank, step))
            taken = gradient.take(local, step)
            if config.proximal_mu:
                for parameter, start in zip(parameters, anchor, strict=True):
                    assert parameter.grad is not None
                    parameter.grad.add_(parameter.detach() - start, alpha=config.proximal_mu)
            if config.clip_norm and not gradient.is_private:
                torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            if is_adam(update):
                factor = schedule_factor(step, stretch.total_steps, config.warmup_steps, config.schedule)
                set_rate(update, config.learning_rate * factor)
            update.step()
            update.zero_grad(set_to_none=True)
            done.count(taken)
            if on_step is not None:
                rate = done.tokens / (time.monotonic() - started)
                on_step(StepReport(step - stretch.first_step + 1, stretch.steps, taken.loss, rate))
    return TrainResult(
        steps=stretch.steps,
        rows=done.rows,
        tokens=done.tokens,
        answer_tokens=done.answer_tokens,
        loss=done.loss_sum / done.answer_tokens if done.answer_tokens else math.nan,
        step_losses=tuple(done.losses),
        wall_s=time.monotonic() - started,
        optimizer=read_state(update, parameters),
        checkpointed_layers=local.checkpointed_layers,
    )


@contextmanager
def _training_mode(model: nn.Module) -> Iterator[list[nn.Module]]:
    """train(), and the layers that can be checkpointed; also after an error, nothing of it is left on the shared
    model.
    """
    layers = decoder_layers(model)
    with own_checkpointing(layers):
        model.train()
        try:
            yield layers
        finally:
            model.zero_grad(set_to_none=True)
            model.eval()


def _check_answers(examples: Sequence[Example]) -> None:
    empty = sum(not example.answer_ids or not example.prompt_ids for example in examples)
    if empty or not examples:
        raise UserError(
            f"{empty} of {len(examples)} rows have no tokens to learn from. Run `python -m fedfinlora data check ROOT`."
        )
