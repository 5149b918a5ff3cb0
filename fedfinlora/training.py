"""The one training loop: a bank in a round, all rows pooled, one bank alone.

AdamW (Loshchilov and Hutter 2019) or SGD on the adapter, linear warm-up and cosine decay over the whole run, gradient accumulation by
answer tokens, clipping, and FedProx's proximal term (Li et al. 2020, eq. 2). What a step sees depends only on the run's seed,
the bank's name, its rows and the step's number (`fedfinlora.row_order`), so a run that is interrupted goes on with the same bytes. How
many passes a step takes and which layers they checkpoint follows the memory there is (`fedfinlora.memory`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedfinlora.adapter import Vector, trainable
from fedfinlora.config import TrainConfig
from fedfinlora.errors import UserError
from fedfinlora.memory import Footprint, checkpoint_first, decoder_layers, footprint, free_bytes, own_checkpointing
from fedfinlora.packing import Example, Pack, answer_logits, make_pack, split_rows
from fedfinlora.privacy.dp_lora import PublishedMechanism, clip_and_noise
from fedfinlora.privacy.mechanism import Mechanism, private_step
from fedfinlora.row_order import groups_of, rows_of_step
from fedfinlora.seeds import derive_seed

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger("fedfinlora.training")


@dataclass(frozen=True)
class OptimizerState:
    """Adam's memory: two vectors of shape (layout.size,) float32 and how many steps they have seen."""

    first_moment: Vector
    second_moment: Vector
    steps: int


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
    """Told to the caller after each optimiser step."""

    step: int
    steps: int
    loss: float
    tokens_per_s: float


def total_steps(rows: int, rounds: int, config: TrainConfig) -> int:
    """Optimiser steps of a bank of `rows` rows in the whole run: at least one in each round, so that every bank is heard.

    Raises UserError when train.max_steps allows fewer than one a round.
    """
    by_epochs = config.epochs > 0 and config.batch_rows > 0
    steps = round(config.epochs * rows / min(config.batch_rows, rows)) if by_epochs else config.steps_per_round * rounds
    if config.max_steps:
        steps = min(steps, config.max_steps)
        if config.max_steps < rounds:
            raise UserError(
                f"train.max_steps={config.max_steps} is fewer than the {rounds} rounds. Lower num_server_rounds or raise it."
            )
    return max(steps, rounds)


def stretch_of_round(round_number: int, rounds: int, steps: int, rows: int, config: TrainConfig) -> Stretch:
    """The steps of one round (from 1), the run's `steps` being spread evenly over its rounds, for a bank of `rows` rows."""
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
    """The passes of one optimiser step: few enough layers checkpointed, else more passes of fewer rows, to stay within memory.

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
    """Sum over a pack's answer tokens of their negative log-likelihood, in nats; logits are made at those positions only."""
    import torch

    return torch.nn.functional.cross_entropy(answer_logits(model, pack), pack.answer_ids, reduction="sum")


def mean_loss(model: nn.Module, examples: Sequence[Example], config: TrainConfig) -> float:
    """Mean negative log-likelihood of an answer token over `examples`, in nats, without dropout or gradients."""
    import torch

    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        packs = packs_of_step(examples, config, device)
        total = sum(float(answer_loss(model, pack)) for pack in packs)
    return total / sum(len(pack.answer_ids) for pack in packs)


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
    privately: Mechanism | PublishedMechanism | None = None,
) -> TrainResult:
    """Take the steps of `stretch` on the model's adapter, in place.

    `optimizer` is Adam's memory to go on with; None starts afresh. FedProx's anchor is the adapter as it is on entry. `privately` makes the
    steps' gradients private, a Mechanism by drawing their rows too; its own clipping takes the place of train.clip_norm.
    Raises UserError for rows without answer tokens and for a loss that is not finite.
    """
    import torch

    _check_answers(examples)
    device = next(model.parameters()).device
    parameters = list(trainable(model).values())
    anchor = [parameter.detach().clone() for parameter in parameters] if config.proximal_mu else []
    update = _optimizer(parameters, config)
    update.zero_grad(set_to_none=True)
    if optimizer is not None and isinstance(update, torch.optim.AdamW):
        _load_optimizer(update, parameters, optimizer)
    groups = groups_of(examples) if config.share_prefix else ()
    losses: list[float] = []
    rows = tokens = answer_tokens = checkpointed_layers = 0
    loss_sum = 0.0
    started = time.monotonic()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _training_mode(model) as layers:
        limits = PassLimits.of(model, config)
        for step in range(stretch.first_step, stretch.first_step + stretch.steps):
            torch.manual_seed(derive_seed(seed, "dropout", bank, step))
            if not isinstance(privately, Mechanism):
                chosen = rows_of_step(step, len(examples), stretch.rows_per_step, seed, bank, groups)
                batch = [examples[index] for index in chosen]
                step_answers = sum(len(example.answer_ids) for example in batch)
                step_loss = 0.0
                for part in passes_of_step(batch, config, limits, device):
                    if part.checkpointed_layers and not checkpointed_layers:
                        _tell_checkpointing(bank, part, limits, config)
                    checkpointed_layers = max(checkpointed_layers, part.checkpointed_layers)
                    checkpoint_first(layers, part.checkpointed_layers)
                    loss = answer_loss(model, part.pack) / step_answers
                    loss.backward()  # type: ignore[no-untyped-call]
                    step_loss += float(loss.detach())
                # Under a private mechanism a loss that is not finite is one bit about the rows: the gradient then counts as zeros.
                if not math.isfinite(step_loss) and privately is None:
                    raise UserError(f"The training loss of {bank} is {step_loss} at step {step}. Lower train.learning_rate.")
            else:
                done = private_step(
                    model, examples, privately, step, config.batch_tokens, limits.footprint, limits.memory_bytes
                )
                batch = list(done.examples)
                step_answers = sum(len(example.answer_ids) for example in batch)
                step_loss = done.loss_sum / step_answers if step_answers else 0.0
            if isinstance(privately, PublishedMechanism):
                clip_and_noise(model, privately, step)
            if config.proximal_mu:
                for parameter, start in zip(parameters, anchor, strict=True):
                    assert parameter.grad is not None
                    parameter.grad.add_(parameter.detach() - start, alpha=config.proximal_mu)
            if config.clip_norm and privately is None:
                torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            if isinstance(update, torch.optim.AdamW):
                factor = schedule_factor(step, stretch.total_steps, config.warmup_steps, config.schedule)
                update.param_groups[0]["lr"] = config.learning_rate * factor
            update.step()
            update.zero_grad(set_to_none=True)
            losses.append(step_loss)
            loss_sum += step_loss * step_answers
            rows += len(batch)
            tokens += sum(len(example.prompt_ids) + len(example.answer_ids) for example in batch)
            answer_tokens += step_answers
            if on_step is not None:
                rate = tokens / (time.monotonic() - started)
                on_step(StepReport(step - stretch.first_step + 1, stretch.steps, step_loss, rate))
    return TrainResult(
        steps=stretch.steps,
        rows=rows,
        tokens=tokens,
        answer_tokens=answer_tokens,
        loss=loss_sum / answer_tokens if answer_tokens else math.nan,
        step_losses=tuple(losses),
        wall_s=time.monotonic() - started,
        optimizer=_read_optimizer(update, parameters),
        checkpointed_layers=checkpointed_layers,
    )


@contextmanager
def _training_mode(model: nn.Module) -> Iterator[list[nn.Module]]:
    """train(), and the layers that can be checkpointed; whatever happens inside, nothing of it is left on the shared model."""
    layers = decoder_layers(model)
    with own_checkpointing(layers):
        model.train()
        try:
            yield layers
        finally:
            model.zero_grad(set_to_none=True)
            model.eval()


def _tell_checkpointing(bank: str, part: Pass, limits: PassLimits, config: TrainConfig) -> None:
    """Say once how many layers are computed twice, and why."""
    layers, tokens = f"{part.checkpointed_layers} of {limits.footprint.layers} layers", part.pack.tokens
    memory = f"{limits.memory_bytes / 2**30:.1f} GiB"
    if not part.fits:
        log.warning("%s: a row of %d tokens needs more than %s even with %s checkpointed", bank, tokens, memory, layers)
    elif config.gradient_checkpointing:
        log.info("%s: %s checkpointed, as train.gradient_checkpointing says", bank, layers)
    else:
        log.info("%s: %s checkpointed to keep a pass of %d tokens within %s", bank, layers, tokens, memory)


def _check_answers(examples: Sequence[Example]) -> None:
    empty = sum(not example.answer_ids or not example.prompt_ids for example in examples)
    if empty or not examples:
        raise UserError(
            f"{empty} of {len(examples)} rows have no tokens to learn from. Run `python -m fedfinlora data check ROOT`."
        )


def _optimizer(parameters: Sequence[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    import torch

    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.sgd_learning_rate, weight_decay=config.weight_decay)
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(parameters, lr=config.learning_rate, betas=betas, weight_decay=config.weight_decay)


def _load_optimizer(adam: torch.optim.AdamW, parameters: Sequence[nn.Parameter], state: OptimizerState) -> None:
    import torch

    size = sum(parameter.numel() for parameter in parameters)
    if state.first_moment.shape != (size,) or state.second_moment.shape != (size,):
        raise UserError(
            f"The optimiser state has {state.first_moment.size} numbers, the adapter {size}: it is another adapter's."
        )
    offset = 0
    for parameter in parameters:
        end = offset + parameter.numel()
        first, second = (
            torch.from_numpy(moment[offset:end].copy()).reshape(parameter.shape).to(parameter.device)
            for moment in (state.first_moment, state.second_moment)
        )
        adam.state[parameter] = {"step": torch.tensor(float(state.steps)), "exp_avg": first, "exp_avg_sq": second}
        offset = end


def _read_optimizer(update: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> OptimizerState:
    import numpy as np
    import torch

    if not isinstance(update, torch.optim.AdamW) or not update.state:
        zeros = np.zeros(sum(parameter.numel() for parameter in parameters), np.float32)
        return OptimizerState(zeros, zeros.copy(), 0)

    def flat(key: str) -> Vector:
        return torch.cat([update.state[parameter][key].reshape(-1).float().cpu() for parameter in parameters]).numpy()

    return OptimizerState(flat("exp_avg"), flat("exp_avg_sq"), int(update.state[parameters[0]]["step"]))
