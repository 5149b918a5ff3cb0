"""The local training of a round: from the received adapter, by the rule's gradient, with what the bank keeps of earlier
rounds (optimiser moments, SCAFFOLD's control variate, its own adapter under strategy.sync=drift).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from client_app.control import CorrectedStep, control_after, correction_of
from client_app.facts import BankFacts
from client_app.global_step import LastGlobal, rates_of, started
from client_app.kept_state import (
    load_control,
    load_global,
    load_local,
    load_moments,
    save_control,
    save_global,
    save_local,
    save_moments,
)
from client_app.local_rounds import LocalAdapter, begun_from
from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import MOMENT_RULES
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import Vector, read_adapter, write_adapter
from fedfinlora.model.loading import Session
from fedfinlora.model.packing import Example
from fedfinlora.model.parts import sent_part, trained_factor
from fedfinlora.train import trainer_names
from fedfinlora.train.gradient_step import PLAIN, FactorStep, GradientStep
from fedfinlora.train.loop import Stretch, TrainResult
from fedfinlora.train.optimizers import OptimizerState
from fedfinlora.train.own_columns import start_of
from fedfinlora.train.own_trainer import task_of, train_with
from fedfinlora.train.parallel import train_in_bank
from fedfinlora.train.parallel_peer import ProcessFault
from fedfinlora.wire.messages import BankError, TrainRequest

log = logging.getLogger("fedfinlora.bank")
NOTHING = np.zeros(0, np.float32)


def trained(
    request: TrainRequest,
    facts: BankFacts,
    session: Session,
    examples: Sequence[Example],
    stretch: Stretch,
    gradient: GradientStep,
) -> tuple[Vector, TrainResult]:
    """(delta, what the training was) of the received adapter on `examples`. BankError where either is not finite."""
    config = request.config
    if facts.trainer.name:
        write_adapter(session.model, start_of(request.adapter, session.layout, config, facts.name))
        return _trained_by_own(request, facts, session, examples, stretch)
    folder = facts.state_folder / request.run / facts.name
    part = sent_part(config.strategy.name, session.layout, request.round)
    restarted = config.strategy.name in MOMENT_RULES
    keeps_moments = (
        config.train.optimizer_state == "keep" and config.train.optimizer != "sgd" and part is None and not restarted
    )
    moments = load_moments(folder, request.round) if keeps_moments else None
    if restarted:
        last_global = load_global(folder, request.round)
        moments = started(
            last_global, request.adapter, request.second_moments, session.layout, stretch, request.round, config
        )
    if part is not None:  # a factor's moments are two rounds old when its turn comes: AdamW begins afresh
        gradient = FactorStep(trained_factor(config.strategy.name, request.round), gradient)
    controlled = config.strategy.name == "scaffold"
    correction = NOTHING
    if controlled:
        last = load_control(folder, request.round)
        correction = correction_of(last, request.adapter, request.round, config)
        gradient = CorrectedStep(correction, gradient)
    delta, result = train_received(session, request.adapter, examples, stretch, config, facts.name, moments, gradient)
    if keeps_moments:
        save_moments(folder, request.round, result.optimizer)
    if restarted:
        save_global(folder, LastGlobal(request.round, request.adapter, rates_of(stretch, config)))
    if controlled:
        after = control_after(correction, request.adapter, delta, result.steps, request.round, config)
        save_control(folder, after)
    log.info(
        "%s: round %d, %d rows, loss %.4f, %.1f s", facts.name, request.round, result.rows, result.loss, result.wall_s
    )
    return delta if part is None else part.of(delta), result


def trained_since_average(
    request: TrainRequest,
    facts: BankFacts,
    session: Session,
    examples: Sequence[Example],
    stretch: Stretch,
    gradient: GradientStep,
) -> tuple[Vector, TrainResult]:
    """The same as `trained` from where the bank is since the last average (`client_app.local_rounds`)."""
    folder = facts.state_folder / request.run / facts.name
    begun = begun_from(request, load_local(folder, request.round), facts.name, session.layout.size)
    _, result = trained(replace(request, adapter=begun.adapter), facts, session, examples, stretch, gradient)
    local = LocalAdapter(read_adapter(session.model), begun.reference)
    if request.silent:
        save_local(folder, request.round, local)
    return local.sent(session.layout, request.silent), result


def _trained_by_own(
    request: TrainRequest, facts: BankFacts, session: Session, examples: Sequence[Example], stretch: Stretch
) -> tuple[Vector, TrainResult]:
    """The same by the bank's own trainer (`fedfinlora.train.own_trainer`)."""
    task = task_of(session, examples, request.config, facts.name, request.round, stretch)
    try:
        result = train_with(trainer_names.load(facts.trainer), facts.trainer.name, session, task)
    except UserError as error:
        log.error("%s", error, exc_info=not facts.deployed)  # the cause may quote rows
        raise BankError("trainer", str(error)) from error
    log.info("%s: round %d by %s, %.1f s", facts.name, request.round, facts.trainer.name, result.wall_s)
    return read_adapter(session.model) - request.adapter, result


def train_received(
    session: Session,
    adapter: Vector,
    examples: Sequence[Example],
    stretch: Stretch,
    config: Config,
    bank: str,
    moments: OptimizerState | None = None,
    gradient: GradientStep = PLAIN,
) -> tuple[Vector, TrainResult]:
    """(delta, (size,) float32; what the training was) of the received `adapter`, (size,) float32, on a bank's rows.
    BankError where either is not finite.
    """
    write_adapter(session.model, start_of(adapter, session.layout, config, bank))
    try:
        result = train_in_bank(
            session, examples, stretch, config, config.train, bank=bank, optimizer=moments, gradient=gradient,
            frozen=config.strategy.residual_rank,
        )  # fmt: skip
    except ProcessFault as error:
        raise BankError("internal", str(error)) from error
    except UserError as error:
        raise BankError("diverged", str(error)) from error
    delta = read_adapter(session.model) - adapter
    if not np.isfinite(delta).all():
        raise BankError("diverged", "the trained adapter is not finite")
    return delta, result
