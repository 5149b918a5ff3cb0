"""The local training of a round: from the received adapter, by the rule's gradient, with what the bank remembers of
earlier rounds (`client_app.memories`) and, under strategy.sync=drift, from its own adapter.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from client_app.kept_state import load_local, save_local
from client_app.local_rounds import LocalAdapter, begun_from
from client_app.memories import LocalRound, memory_of
from fedfinlora.config.schema import Config
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
from fedfinlora.wire.messages import BankError

log = logging.getLogger("fedfinlora.bank")


def trained(now: LocalRound) -> tuple[Vector, TrainResult]:
    """(delta, what the training was) of the received adapter on a bank's rows. BankError where either is not finite."""
    request, layout, rule = now.request, now.session.layout, now.config.strategy.name
    if now.facts.trainer.name:
        write_adapter(now.session.model, start_of(request.adapter, layout, now.config, now.facts.name))
        return _trained_by_own(now)
    memory = memory_of(now)
    part, gradient = sent_part(rule, layout, request.round), now.gradient
    if part is not None:
        gradient = FactorStep(trained_factor(rule, request.round), gradient)
    delta, result = train_received(
        now.session, request.adapter, now.examples, now.stretch, now.config, now.facts.name, memory.moments,
        memory.around(gradient),
    )  # fmt: skip
    memory.keep(now, delta, result)
    log.info(
        "%s: round %d, %d rows, loss %.4f, %.1f s",
        now.facts.name, request.round, result.rows, result.loss, result.wall_s
    )  # fmt: skip
    return delta if part is None else part.of(delta), result


def trained_since_average(now: LocalRound) -> tuple[Vector, TrainResult]:
    """The same as `trained` from where the bank is since the last average (`client_app.local_rounds`)."""
    request, layout = now.request, now.session.layout
    begun = begun_from(request, load_local(now.folder, request.round), now.facts.name, layout.size)
    _, result = trained(replace(now, request=replace(request, adapter=begun.adapter)))
    local = LocalAdapter(read_adapter(now.session.model), begun.reference)
    if request.silent:
        save_local(now.folder, request.round, local)
    return local.sent(layout, request.silent), result


def _trained_by_own(now: LocalRound) -> tuple[Vector, TrainResult]:
    """The same by the bank's own trainer (`fedfinlora.train.own_trainer`)."""
    facts, request = now.facts, now.request
    task = task_of(now.session, now.examples, now.config, facts.name, request.round, now.stretch)
    try:
        result = train_with(trainer_names.load(facts.trainer), facts.trainer.name, now.session, task)
    except UserError as error:
        log.error("%s", error, exc_info=not facts.deployed)  # the cause may quote rows
        raise BankError("trainer", str(error)) from error
    log.info("%s: round %d by %s, %.1f s", facts.name, request.round, facts.trainer.name, result.wall_s)
    return read_adapter(now.session.model) - request.adapter, result


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
