"""What a bank remembers of its rounds, by optimiser and rule: Adam's moments, SCAFFOLD's control variate, or
fedadamw_local's last global adapter. A rule whose banks remember something else is a class here and a line of
REMEMBERING; its file's form is in `client_app.kept_state`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from client_app.control import CorrectedStep, control_after, correction_of
from client_app.facts import BankFacts
from client_app.global_step import LastGlobal, rates_of, started
from client_app.kept_state import load_control, load_global, load_moments, save_control, save_global, save_moments
from fedfinlora.config.schema import Config
from fedfinlora.model.adapter import Vector
from fedfinlora.model.loading import Session
from fedfinlora.model.packing import Example
from fedfinlora.model.parts import sent_part
from fedfinlora.train.gradient_step import GradientStep
from fedfinlora.train.loop import Stretch, TrainResult
from fedfinlora.train.optimizers import OptimizerState
from fedfinlora.wire.messages import TrainRequest


@dataclass(frozen=True)
class LocalRound:
    """What a bank trains in a round."""

    request: TrainRequest
    facts: BankFacts
    session: Session
    examples: Sequence[Example]
    stretch: Stretch
    gradient: GradientStep
    """The rule's part is put around it by `Memory.around`."""

    @property
    def config(self) -> Config:
        return self.request.config

    @property
    def folder(self) -> Path:
        """Where the bank keeps what it remembers of this run."""
        return self.facts.state_folder / self.request.run / self.facts.name


class Memory(Protocol):
    """Made at the beginning of a round, of what was kept before."""

    moments: OptimizerState | None
    """Where the optimiser starts; None: afresh."""

    def around(self, gradient: GradientStep) -> GradientStep:
        """The step with what the rule adds to its gradient."""

    def keep(self, now: LocalRound, delta: Vector, result: TrainResult) -> None:
        """Keep what the next round needs of this one. BankError where the disk does not take it."""


class NoMemory:
    """Each round begins afresh."""

    moments: OptimizerState | None = None

    def around(self, gradient: GradientStep) -> GradientStep:
        return gradient

    def keep(self, now: LocalRound, delta: Vector, result: TrainResult) -> None:
        return


class Moments(NoMemory):
    """Adam's moments go on from round to round (train.optimizer_state=keep)."""

    def __init__(self, now: LocalRound) -> None:
        self.moments = load_moments(now.folder, now.request.round)

    def keep(self, now: LocalRound, delta: Vector, result: TrainResult) -> None:
        save_moments(now.folder, now.request.round, result.optimizer)


class GlobalStep(NoMemory):
    """strategy=fedadamw_local (`client_app.global_step`)."""

    def __init__(self, now: LocalRound) -> None:
        request = now.request
        last = load_global(now.folder, request.round)
        self.moments = started(
            last, request.adapter, request.second_moments, now.session.layout, now.stretch, request.round, now.config
        )

    def keep(self, now: LocalRound, delta: Vector, result: TrainResult) -> None:
        rates = rates_of(now.stretch, now.config)
        save_global(now.folder, LastGlobal(now.request.round, now.request.adapter, rates))


class ControlVariate(NoMemory):
    """strategy=scaffold (`client_app.control`)."""

    def __init__(self, now: LocalRound) -> None:
        last = load_control(now.folder, now.request.round)
        self._correction = correction_of(last, now.request.adapter, now.request.round, now.config)

    def around(self, gradient: GradientStep) -> GradientStep:
        return CorrectedStep(self._correction, gradient)

    def keep(self, now: LocalRound, delta: Vector, result: TrainResult) -> None:
        request = now.request
        after = control_after(self._correction, request.adapter, delta, result.steps, request.round, now.config)
        save_control(now.folder, after)


REMEMBERING: Mapping[str, Callable[[LocalRound], Memory]] = {
    "scaffold": ControlVariate,
    "fedadamw_local": GlobalStep,
}
"""Rule -> what its banks remember, where that is not the optimiser's moments."""


def memory_of(now: LocalRound) -> Memory:
    """The bank's memory at the beginning of a round. A rule that trains one factor at a time has none: a factor's
    moments are two rounds old when its turn comes.
    """
    train, rule = now.config.train, now.config.strategy.name
    if rule in REMEMBERING:
        return REMEMBERING[rule](now)
    is_part = sent_part(rule, now.session.layout, now.request.round) is not None
    if train.optimizer_state != "keep" or train.optimizer == "sgd" or is_part:
        return NoMemory()
    return Moments(now)
