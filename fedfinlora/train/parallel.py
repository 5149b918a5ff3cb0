"""Data parallel: several processes of one bank, each with a copy of the model on its own GPU, take each step together.

A process computes the gradient of its share of the step's rows; the sum over all processes is that of one process with
all rows. Each process then takes the same optimiser step, so the adapters stay equal. The process that trains in a bank
is rank 0 (`fedfinlora.train.parallel_group`); it keeps the others (`fedfinlora.train.parallel_process`) for the next
round. What is guaranteed: docs/adr/0039-data-parallel-in-one-bank.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from fedfinlora.config.schema import Config
from fedfinlora.config.train import TrainConfig
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import read_adapter, trainable
from fedfinlora.model.devices import free_bytes
from fedfinlora.model.loading import Session
from fedfinlora.model.packing import Example, in_order
from fedfinlora.seeds import derive_seed
from fedfinlora.train.gradient_step import PLAIN, GradientStep, LocalRows, StepTaken, check_finite
from fedfinlora.train.loop import StepReport, Stretch, TrainResult, train
from fedfinlora.train.optimizers import OptimizerState
from fedfinlora.train.own_columns import frozen_columns, of_own_ranks
from fedfinlora.train.parallel_group import end_group, group_of
from fedfinlora.train.parallel_peer import ProcessFault, Task

if TYPE_CHECKING:
    import torch


def share_of(rows: Sequence[Example], rank: int, processes: int) -> list[Example]:
    """The rows of a step that one process takes: a piece of the sorted rows, so that those with a common beginning stay
    together, of about equal tokens. Each row is in one share; a share may be empty.
    """
    ordered = in_order(rows)
    ends = list(itertools.accumulate(len(row.read_ids) for row in ordered))
    middles = (end - len(row.read_ids) / 2 for row, end in zip(ordered, ends, strict=True))
    return [row for row, middle in zip(ordered, middles, strict=True) if int(middle * processes / ends[-1]) == rank]


@dataclass(frozen=True)
class ParallelStep:
    """The gradient of the rows whose turn it is, each process having computed its share."""

    rank: int
    processes: int
    add_up: Callable[[torch.Tensor, int], object]
    """Puts the sum over all processes into a tensor, at the step of this number."""
    is_private = False

    def take(self, local: LocalRows, step: int) -> StepTaken:
        """UserError for a loss that is not finite; ProcessFault where the processes do not have the same rows."""
        import torch

        if self.rank:  # else the shares would have the same dropout masks
            torch.manual_seed(derive_seed(local.seed, "dropout", local.bank, step, self.rank))
        own = local.add_gradient(step, lambda rows: share_of(rows, self.rank, self.processes))
        parameters = list(trainable(local.model).values())
        answers = _answers(share_of(own.examples, self.rank, self.processes))
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        figures = torch.tensor([own.loss, answers], dtype=torch.float32, device=parameters[0].device)
        flat = torch.cat([*(gradient.reshape(-1).float() for gradient in gradients), figures])
        self.add_up(flat, step)
        loss, summed = flat[-2:].tolist()
        if round(summed) != _answers(own.examples):
            raise ProcessFault(f"The processes of {local.bank} do not have the same rows at step {step}.")
        check_finite(loss, local.bank, step)
        parts = flat[:-2].split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.reshape(parameter.shape).to(parameter.dtype)
        return StepTaken(own.examples, loss)


def _answers(rows: Sequence[Example]) -> int:
    return sum(len(row.answer_ids) for row in rows)


def with_innermost(gradient: GradientStep, innermost: GradientStep) -> GradientStep:
    """A gradient step around another one than the plain one. UserError for a private one, which has none inside."""
    if gradient == PLAIN:
        return innermost
    inner = getattr(gradient, "inner", None)
    if inner is None:
        raise UserError("train.processes above 1 goes with the plain training loop only. Set train.processes=1.")
    return cast(GradientStep, replace(cast(Any, gradient), inner=with_innermost(inner, innermost)))


def train_in_bank(
    session: Session,
    examples: Sequence[Example],
    stretch: Stretch,
    config: Config,
    settings: TrainConfig,
    *,
    bank: str,
    optimizer: OptimizerState | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    gradient: GradientStep = PLAIN,
    frozen: int = 0,
) -> TrainResult:
    """`fedfinlora.train.loop.train` on the session's model by settings.processes processes, this one among them.

    The last `frozen` ranks get no gradient (`fedfinlora.train.own_columns`). ProcessFault, MemoryError or UserError for
    what goes wrong in any of them; the further processes have then ended.
    """
    gradient = of_own_ranks(gradient, config.peft)
    with frozen_columns(session.model, frozen, config.peft):
        if settings.processes == 1:
            return train(
                session.model, examples, stretch, settings, seed=config.seed, bank=bank, optimizer=optimizer,
                on_step=on_step, gradient=gradient,
            )  # fmt: skip
        import torch

        group = group_of(session.device, settings.processes)
        threads = torch.get_num_threads()
        own_threads = max(1, threads // settings.processes) if session.device.type == "cpu" else threads
        settings = _with_own_memory(settings, session)
        model = replace(config.model, threads=own_threads)
        task = Task(
            replace(config, model=model), settings, read_adapter(session.model), tuple(examples), stretch, bank,
            optimizer, gradient, frozen,
        )  # fmt: skip
        try:
            group.begin(task)
            torch.set_num_threads(own_threads)
            step = ParallelStep(0, group.processes, group.add_up)
            result = train(
                session.model, examples, stretch, settings, seed=config.seed, bank=bank, optimizer=optimizer,
                on_step=on_step, gradient=with_innermost(gradient, step),
            )  # fmt: skip
            group.finish(read_adapter(session.model))
        except BaseException:
            end_group()
            raise
        finally:
            torch.set_num_threads(threads)
        return result


def _with_own_memory(settings: TrainConfig, session: Session) -> TrainConfig:
    """On CPUs all processes share one memory; each GPU has its own."""
    if settings.memory_gib or session.device.type != "cpu":
        return settings
    return replace(settings, memory_gib=free_bytes(session.device) / 2 / settings.processes / 2**30)
