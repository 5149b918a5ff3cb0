"""Your own training script in the place of our loop: what it gets, what it must give back, and how its work is checked.

A trainer is a function of one `LocalTask`. It trains the adapter of `task.model` on `task.rows` and gives it back: in
the same layout, finite, with the base model's weights as they were. The banks' privacy mechanisms and FedProx's term
are steps of our own loop, so both are refused with a trainer.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import Vector, read_adapter, trainable, write_adapter
from fedfinlora.model.loading import Session, forget
from fedfinlora.model.packing import Example
from fedfinlora.seeds import derive_seed
from fedfinlora.train.loop import Stretch, TrainResult
from fedfinlora.train.optimizers import OptimizerState

if TYPE_CHECKING:
    from torch import nn

BANK_SIDE_RULES = ("scaffold", "rolora", "fedadamw_local")
"""Rules of the server that change the steps of the banks."""
SAMPLES = 64
"""Numbers of each frozen tensor that are compared before and after; training or merging changes nearly all of them."""


@dataclass(frozen=True)
class LocalTask:
    """What a trainer gets: one bank's work in one round."""

    rows: Sequence[Example]
    """The bank's tokenized rows: `prompt_ids` and `answer_ids`, which end with the end-of-sequence token."""
    model: nn.Module
    """A peft.PeftModel with the global adapter in it. Train it in place; what is trainable must stay so."""
    tokenizer: Any
    config: Config
    bank: str
    round: int
    """From 1."""
    stretch: Stretch
    """The optimiser steps that our own loop would take now, and how many rows each would have."""
    seed: int
    """Of this bank in this round. Python's, NumPy's and torch's global generators are seeded with it already."""
    generator: np.random.Generator
    """Seeded alike."""

    @property
    def planned_rows(self) -> int:
        """Rows that our own loop would train on in this round, repeats counted."""
        return max(1, math.floor(self.stretch.steps * self.stretch.rows_per_step + 1e-9))


@dataclass(frozen=True)
class Trained:
    """What a trainer gives back where it has metrics to report, else the adapter alone.

    `rows`, the bank's weight in the average, and `steps` are else counted as planned; tokens and the loss as not
    reported.
    """

    adapter: Any
    """`task.model`, or the trained tensors by the names that PEFT saves them under, or the flat vector."""
    loss: float | None = None
    """Mean negative log-likelihood of an answer token over the round, in nats."""
    rows: int | None = None
    """Rows trained on, repeats counted."""
    steps: int | None = None
    tokens: int | None = None
    answer_tokens: int | None = None


Trainer = Callable[[LocalTask], Any]


def reason_against(config: Config) -> str:
    """Why a run with this configuration cannot have a trainer; "" where it can."""
    if config.privacy.in_the_bank:
        return (
            f"A trainer cannot go with privacy={config.privacy.mode}: the clipping and the noise are steps of our own "
            "training loop. Leave trainer out, or use privacy=bank or privacy=none."
        )
    if config.strategy.name in BANK_SIDE_RULES or config.strategy.residual_rank or config.strategy.ranks:
        return (
            f"A trainer cannot go with strategy={config.strategy.name}, whose banks' part is in our own training loop. "
            "Leave trainer out, or use another strategy such as fedavg, without strategy.ranks and residual_rank."
        )
    if config.peft.frozen_rank:
        return (
            f"A trainer cannot go with peft.frozen_rank={config.peft.frozen_rank}: our own training loop keeps the "
            "ranks of the stage before. Leave trainer out, or train in one stage."
        )
    if config.train.proximal_mu:
        return (
            f"A trainer cannot go with train.proximal_mu={config.train.proximal_mu:g}: FedProx's term is a step of our "
            "own training loop. Set it to 0, and add the term in the trainer if you want it."
        )
    if config.train.processes > 1:
        return (
            f"A trainer cannot go with train.processes={config.train.processes}, which divides the steps of our own "
            "training loop. Set it to 1, and start the processes in the trainer if you want several."
        )
    return ""


def train_with(trainer: Trainer, name: str, session: Session, task: LocalTask) -> TrainResult:
    """Run `trainer` on `task`, and leave the trained adapter in the session's model. UserError with the trainer's name
    for an error inside it, and where what it gives back is not the trained adapter.

    Random states, training mode and what an accelerator puts around the model are put back afterwards.
    """
    before = _sample_of_base(session.model)
    started = time.monotonic()
    with _borrowed(session.model, task.seed):
        try:
            given = trainer(task)
        except UserError as error:
            raise UserError(f"The trainer {name}: {error}") from error
        except (Exception, SystemExit) as error:
            raise UserError(f"The trainer {name} failed in round {task.round}: {_cause(error)}.") from error
    wall_s = time.monotonic() - started
    if _sample_of_base(session.model) != before or set(trainable(session.model)) != set(session.layout.names):
        forget()
        raise UserError(
            f"The trainer {name} has changed the base model, or what of it is trained. Train the adapter only, and do "
            "not merge it."
        )
    found = given if isinstance(given, Trained) else Trained(given)
    write_adapter(session.model, _adapter(found.adapter, name, session))
    return _result(found, name, task, wall_s, session.layout.size)


def _adapter(given: Any, name: str, session: Session) -> Vector:
    """What a trainer gave back as the flat vector, (layout.size,) float32. UserError where it is no such adapter."""
    layout = session.layout
    if given is session.model:
        vector = read_adapter(session.model)
    elif isinstance(given, Mapping):
        vector = _from_tensors(given, name, session)
    elif isinstance(given, np.ndarray):
        if given.shape != (layout.size,):
            raise UserError(
                f"The trainer {name} gave back an array of shape {given.shape}, the adapter has ({layout.size},)."
            )
        vector = np.asarray(given, np.float32)
    else:
        raise UserError(
            f"The trainer {name} gave back {type(given).__name__}. Return task.model, or its tensors by name "
            "(peft.get_peft_model_state_dict), alone or in fedfinlora.trainers.Trained."
        )
    if not np.isfinite(vector).all():
        bad = int((~np.isfinite(vector)).sum())
        raise UserError(f"The trainer {name} gave back {bad} of {layout.size} numbers that are NaN or infinite.")
    return vector


def _from_tensors(given: Mapping[Any, Any], name: str, session: Session) -> Vector:
    layout = session.layout
    vector = np.empty(layout.size, np.float32)
    # PEFT also saves what is not trained (A with peft.freeze_a); it has not changed.
    extra = [str(key) for key in given if key not in layout.names and key not in session.frozen]
    missing = [key for key in layout.names if key not in given]
    if extra or missing:
        which = f"{missing[0]} is missing" if missing else f"{extra[0][:200]!r} is not one of them"
        raise UserError(f"The trainer {name} gave back another layout than the {len(layout.names)} tensors: {which}.")
    for key, view in layout.views(vector).items():
        tensor = given[key]
        try:
            values = np.asarray(tensor.detach().float().cpu() if hasattr(tensor, "detach") else tensor, np.float32)
        except (TypeError, ValueError) as error:
            raise UserError(f"The trainer {name} gave back {key} as {type(tensor).__name__}, not a tensor.") from error
        if values.shape != view.shape:
            raise UserError(f"The trainer {name} gave back {key} of shape {values.shape}, expected {view.shape}.")
        view[...] = values
    return vector


def _result(found: Trained, name: str, task: LocalTask, wall_s: float, size: int) -> TrainResult:
    for metric, least in (("rows", 1), ("steps", 1), ("tokens", 0), ("answer_tokens", 0)):
        value = getattr(found, metric)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise UserError(
                f"The trainer {name} reported {metric}={str(value)[:40]}, expected a whole number from {least}."
            )
    loss = math.nan if found.loss is None else found.loss
    if found.loss is not None and (
        isinstance(loss, bool) or not isinstance(loss, int | float) or not 0 <= loss < math.inf
    ):
        raise UserError(f"The trainer {name} reported loss={str(loss)[:40]}, expected a finite number from 0.")
    zeros = np.zeros(size, np.float32)
    return TrainResult(
        steps=found.steps or task.stretch.steps,
        rows=found.rows or task.planned_rows,
        tokens=found.tokens or 0,
        answer_tokens=found.answer_tokens or 0,
        loss=float(loss),
        step_losses=(),
        wall_s=wall_s,
        optimizer=OptimizerState(zeros, zeros.copy(), 0),
        checkpointed_layers=0,
    )


def task_of(
    session: Session, rows: Sequence[Example], config: Config, bank: str, round_number: int, stretch: Stretch
) -> LocalTask:
    """The task of a bank in a round."""
    seed = derive_seed(config.seed, "trainer", bank, round_number)
    return LocalTask(
        tuple(rows), session.model, session.tokenizer, config, bank, round_number, stretch, seed,
        np.random.default_rng(seed),
    )  # fmt: skip


def _cause(error: BaseException) -> str:
    """The kind of an error and the line that raised it; its text may quote rows."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


def _sample_of_base(model: nn.Module) -> str:
    """A hash of a few numbers of each frozen tensor, and of the names of all."""
    import torch

    digest = hashlib.sha256()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name or parameter.is_meta:
                continue
            flat = parameter.detach().reshape(-1)
            picked = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].cpu().contiguous()
            digest.update(name.encode() + picked.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _borrowed(model: nn.Module, seed: int) -> Iterator[None]:
    """The model in training mode and seeded random states; afterwards both as they were, without what a script has put
    around the model's forward or left in its gradients.
    """
    import torch

    device = next(model.parameters()).device
    attributes = dict(vars(model))
    base: Any = model
    config: Any = getattr(base, "config", None)
    use_cache = getattr(config, "use_cache", None)
    own, old = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 - what scripts draw from
            torch.manual_seed(seed)
            model.train()
            yield
    finally:
        random.setstate(own)
        np.random.set_state(old)  # noqa: NPY002
        vars(model).clear()
        vars(model).update(attributes)
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            base.gradient_checkpointing_disable()
        if use_cache is not None:
            config.use_cache = use_cache
        model.zero_grad(set_to_none=True)
        model.eval()
