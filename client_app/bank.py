"""One bank's part of a round: its rows, its optimiser's memory, the local training, the delta.

Flower may start a new process for each message or serve several banks from one, so the process holds only caches:
Adam's moments are on the bank's own disk, by round, and a repeated round starts from the same ones.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from client_app.admission import AdmittedRows, admit, admit_rows, check_source
from client_app.facts import BankFacts
from client_app.local_rounds import is_resumed
from client_app.local_training import trained, trained_since_average
from client_app.memories import LocalRound
from client_app.prepared_rows import BankRows
from client_app.privacy_plan import NAMES, book_round, delta_of, make_plan
from client_app.published import published
from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import MOMENT_RULES
from fedfinlora.errors import UserError
from fedfinlora.logs import about
from fedfinlora.model.adapter import Layout, Vector, write_adapter
from fedfinlora.model.block_means import NO_MEANS, block_means, fault_in
from fedfinlora.model.loading import Session, get_session
from fedfinlora.model.rank_limit import check_rank
from fedfinlora.privacy.accounting import Steps
from fedfinlora.privacy.history import Event, record
from fedfinlora.privacy.ledger import Booked, Head
from fedfinlora.train.gradient_step import PLAIN
from fedfinlora.train.loop import mean_loss
from fedfinlora.train.memory import give_back_heap
from fedfinlora.wire.messages import ALWAYS_SENT, BankError, Figures, TrainRequest

log = logging.getLogger("fedfinlora.bank")


class RoundReply(NamedTuple):
    """What leaves a bank after a round."""

    delta: Vector
    """Local adapter minus global one, float32: (layout.size,), or the part that the round sends."""
    layout_id: str
    figures: Figures
    ledger: Head | None
    """Of the bank's ledger with this round's line; None where the round was not booked."""
    second_moments: Vector = NO_MEANS
    """strategy=fedadamw_local: (tensors,) float32."""


def train_round(request: TrainRequest, facts: BankFacts) -> RoundReply:
    """Train the received global adapter on this bank's rows.

    A bank with a policy writes each request and what became of it into its history. In a private round everything that
    goes wrong once the request was accepted is the same BankError: which it was may depend on the rows.
    """
    with about(run=request.run, round=request.round, bank=facts.name):
        try:
            return _noted_round(request, facts)
        finally:
            give_back_heap()


def _noted_round(request: TrainRequest, facts: BankFacts) -> RoundReply:
    """The round and its history."""
    common: dict[str, Any] = {
        "privacy": request.config.privacy.mode,
        "policy_sha256": facts.policy_sha256,
        "bytes_received": request.adapter.nbytes,
    }

    def note(outcome: str, **values: Any) -> None:
        if facts.policy is None:
            return
        try:
            record(facts.history_file, Event(request.run, request.round, outcome, **common, **values))
        except UserError as error:
            raise BankError("disk", str(error)) from error

    try:
        admit(request, facts)
        note("begun")
        done = _train_round(request, facts, lambda spending: note("booked", **spending))
    except BankError as error:
        refused = error.code.startswith("policy-") or error.code == "privacy"
        note("refused" if refused else "failed", code=error.code, detail=str(error))
        raise
    except BaseException as error:
        note("failed", code="internal", detail=type(error).__name__)
        raise
    leave = (*ALWAYS_SENT, *facts.reveal)
    figures = done.reply.figures
    reported = tuple(
        name for name, value in asdict(figures).items() if name in leave and value and not math.isnan(value)
    )
    note(
        "sent", rows=done.rows, steps=figures.steps, bytes_sent=done.reply.delta.nbytes, figures=reported,
        **done.spending
    )  # fmt: skip
    return done.reply


def note_unusable(facts: BankFacts, run: str, error: BankError) -> None:
    """Write a request that is none, refused before it could be read, into the history of a bank with a policy; `run` is
    Flower's number.
    """
    if facts.policy is None:
        return
    event = Event(run, 0, "refused", code=error.code, detail=str(error), policy_sha256=facts.policy_sha256)
    try:
        record(facts.history_file, event)
    except UserError as unwritable:  # it stays refused
        log.error("%s", unwritable)


class _Done(NamedTuple):
    """A round that was trained."""

    reply: RoundReply
    rows: int
    """Rows trained on, also where the metrics do not say it."""
    spending: Mapping[str, Any]
    """What was booked, as fields of an Event."""


def _train_round(request: TrainRequest, facts: BankFacts, on_booked: Callable[[Mapping[str, Any]], None]) -> _Done:
    """The round itself."""
    check_source(request)
    config = request.config
    started = time.monotonic()
    try:
        check_rank(config.model, config.peft)
        session = get_session(config)
    except UserError as error:
        raise BankError("model", str(error)) from error
    fits = request.adapter.shape == (session.layout.size,) or is_resumed(request)
    if request.layout_id != session.layout.id or not fits:
        raise BankError("layout", f"layout {request.layout_id} received, {session.layout.id} here")
    _check_moments(request, session.layout)
    load_s = time.monotonic() - started
    with one_code(config):
        round_here = _private_round if config.privacy.in_the_bank else _open_round
        return round_here(request, facts, session, load_s, on_booked)


def _check_moments(request: TrainRequest, layout: Layout) -> None:
    """BankError where the request's second moments are not of this adapter and rule."""
    means, config = request.second_moments, request.config
    if not means.size:
        return
    if config.strategy.name not in MOMENT_RULES:
        raise BankError("moments", f"second moments received, and strategy={config.strategy.name} has none")
    if fault := fault_in(means, layout, config.train.clip_norm):
        raise BankError("moments", f"the received second moments: {fault}")


@contextlib.contextmanager
def one_code(config: Config) -> Iterator[None]:
    """Every error of a private round is the same BankError: which one it was may depend on the rows.
    Rules of the policy alone keep their names.
    """
    try:
        yield
    except BankError as error:
        if not config.privacy.in_the_bank or error.code.startswith("policy-"):
            raise
        raise BankError("privacy", f"{error.code}: {error}", error.rule) from error
    except Exception as error:
        if not config.privacy.in_the_bank:
            raise
        log.exception("unexpected error")
        raise BankError("privacy", f"internal: {type(error).__name__}") from error


def book_open(request: TrainRequest, facts: BankFacts, admitted: AdmittedRows) -> tuple[Steps, Booked]:
    """Book a round whose delta leaves without noise of the bank's own, as infinite: (its steps, what was booked)."""
    steps = Steps(1.0, 0.0, admitted.stretch.steps)
    try:
        return steps, book_round(
            request, facts, admitted.rows, steps, delta_of(request.config, facts, admitted.rows.declared)
        )
    except UserError as error:
        raise BankError("privacy", str(error)) from error


def _open_round(
    request: TrainRequest,
    facts: BankFacts,
    session: Session,
    load_s: float,
    on_booked: Callable[[Mapping[str, Any]], None],
) -> _Done:
    """A round whose delta leaves without noise of the bank's own; a deployed bank books it as infinite."""
    config = request.config
    rows, stretch = admitted = admit_rows(request, facts, session.tokenizer)
    spending: dict[str, Any] = {}
    head = None
    if facts.deployed:
        without_noise, booked = book_open(request, facts, admitted)
        head, spending = booked.head, _spending(config, without_noise, "example", booked)
        on_booked(spending)
    holdout_loss = _holdout_loss(request, rows, session)
    by_drift = config.strategy.sync == "drift"
    train = trained_since_average if by_drift else trained
    delta, result = train(LocalRound(request, facts, session, rows.train, stretch, PLAIN))
    figures = Figures(
        rows=result.rows,
        steps=result.steps,
        tokens=result.tokens,
        answer_tokens=result.answer_tokens,
        train_loss=result.loss,
        holdout_rows=len(rows.holdout),
        holdout_loss=holdout_loss,
        train_s=result.wall_s,
        load_s=load_s,
        bank_rows=len(rows.train),
        skipped_rows=rows.skipped,
    )
    if facts.deployed:
        figures = published(figures, facts.min_rows, config.strategy.weighting)
    means = NO_MEANS
    if config.strategy.name in MOMENT_RULES:
        means = block_means(result.optimizer.second_moment, session.layout)
    return _Done(RoundReply(delta, session.layout.id, figures, head, means), result.rows, spending)


def _private_round(
    request: TrainRequest,
    facts: BankFacts,
    session: Session,
    load_s: float,
    on_booked: Callable[[Mapping[str, Any]], None],
) -> _Done:
    """A round under privacy=example or dp_lora: planned with declared sizes, booked, then trained."""
    config = request.config
    rows, stretch = admit_rows(request, facts, session.tokenizer)
    plan = make_plan(request, facts, rows, stretch, session)
    spending = _spending(config, plan.steps, config.privacy.unit, plan.booked)
    if facts.reproducible_noise:
        spending["noise_multiplier"] = 0.0
    on_booked(spending)
    delta, result = trained(LocalRound(request, facts, session, plan.examples, stretch, plan.mechanism))
    if not delta.any():
        raise BankError("privacy", "the private steps did not move the adapter")
    figures = Figures.withheld(result.steps, load_s, plan.epsilon_planned, plan.booked.epsilon_reported, plan.delta)
    return _Done(RoundReply(delta, session.layout.id, figures, plan.booked.head), result.rows, spending)


def _spending(config: Config, steps: Steps, unit: str, booked: Booked) -> dict[str, Any]:
    """What was booked, as the history has it."""
    return {
        "unit": unit, "mechanism": NAMES[config.privacy.mode], "sampling_rate": steps.sampling_rate,
        "noise_multiplier": steps.noise_multiplier, "noise_steps": steps.count,
        "ledger_number": booked.head.number, "ledger_hash": booked.head.hash, "left_out": booked.left_out,
        "epsilon_spent": booked.epsilon if math.isfinite(booked.epsilon) else None,
    }  # fmt: skip


def _holdout_loss(request: TrainRequest, rows: BankRows, session: Session) -> float:
    """Loss of the received global adapter on the held-out rows, inside the train message: no second down-link. NaN
    where none was received.
    """
    if is_resumed(request) or not rows.holdout or (request.round - 1) % request.config.train.holdout_every:
        return float("nan")
    write_adapter(session.model, request.adapter)
    return mean_loss(session.model, rows.holdout, request.config.train)
