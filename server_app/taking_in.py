"""Taking in what the banks answer in a round: each reply is checked, its delta laid aside, and its entry written.

A reply that must not be averaged is a rejection with a code and a reason, and costs the round nothing else.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flwr.app import Error, Message

from fedfinlora.config.strategy import MOMENT_RULES, REPORTED_WEIGHTS
from fedfinlora.errors import UserError
from fedfinlora.logs import about
from fedfinlora.model.adapter import Layout
from fedfinlora.model.parts import DistanceOnly, Part
from fedfinlora.provenance.deltas import keep_delta
from fedfinlora.provenance.evidence import RoundEvidence
from fedfinlora.run.events import a_second
from fedfinlora.run.records import BankEntry, BankPrivacy, BankTimings
from fedfinlora.train.own_columns import foreign_rank
from fedfinlora.wire.messages import Figures, RejectedReply, Reply, TrainRequest, unpack_reply
from fedfinlora.wire.reasons import SAFE_REASONS
from server_app.exchange import INVALID_FAB, MESSAGE_UNAVAILABLE, NODE_UNAVAILABLE, PROCESS_DIED
from server_app.replies import StoredDeltas
from server_app.witness import Witness

log = logging.getLogger("fedfinlora.server")
NOT_HERE = np.zeros(0, np.float32)
"""In the place of a delta that lies on the disk."""
UNREADABLE = 1000
"""Code of the error in the place of a reply that was not accepted (`server_app.guarded_grid`); Flower's end below 10.
"""

AWAY = {
    NODE_UNAVAILABLE: "The bank is not connected.",
    MESSAGE_UNAVAILABLE: "The bank has started again and lost what it was asked.",
}


@dataclass(frozen=True)
class Asked:
    """What the banks were asked in a round, and where their deltas rest."""

    request: TrainRequest
    layout: Layout
    part: Part | None
    """What a reply holds of an update; None = all."""
    witness: Witness | None
    evidence: RoundEvidence
    deltas: StoredDeltas

    def taken_in(self, message: Message | None, name: str, run: Path) -> tuple[Reply | None, BankEntry, BankTimings]:
        """(the checked reply, whose delta lies in `deltas` now, or None; the bank's entry in the round's line; its
        timings). With strategy.keep_deltas the delta is kept in the folder `run`.
        """
        number = self.request.round
        try:
            reply = self._accepted(message, name)
        except RejectedReply as rejection:
            self.evidence.outcome(name, rejection.code)
            with about(bank=name):
                log.warning("round %d: %s rejected (%s): %s", number, name, rejection.code, rejection)
            return None, BankEntry(name, _status_of(rejection), rejection.code, str(rejection)), BankTimings()
        if self.witness and reply.ledger:
            self.witness.keep(name, reply.ledger)
        self.deltas.keep(name, reply.delta)
        assert message is not None
        for record in message.content.array_records.values():
            record.clear()  # Flower's records hold each other: else these bytes stay until the garbage is collected
        entry = accepted_entry(name, reply)
        self.evidence.outcome(name, entry.code)
        if self.request.config.strategy.keep_deltas:
            own = self.deltas.one(name, slice(0, self.layout.size))
            keep_delta(run, number, name, self.part.of(own) if self.part else own)
        return replace(reply, delta=NOT_HERE), entry, timing_of(reply.figures)

    def _accepted(self, message: Message | None, name: str) -> Reply:
        """RejectedReply where it must not be averaged."""
        config, part = self.request.config, self.part
        strategy = config.strategy
        if message is None:
            raise RejectedReply("late", f"No reply within strategy.deadline_s={strategy.deadline_s:g} s.")
        if message.has_error():
            raise _fault_of(message.error, name, is_simulated=self.evidence.keys.banks is None)
        self.evidence.check(name, message.content)
        needs_rows, private = strategy.weighting == "rows", config.privacy.in_the_bank
        clip_norm = config.train.clip_norm if strategy.name in MOMENT_RULES else None
        reply = unpack_reply(
            message.content, self.layout, strategy.max_update_norm, private, needs_rows, part, clip_norm
        )
        if reply.bank != name:
            raise RejectedReply("malformed", "The reply names another bank.")
        if isinstance(part, DistanceOnly) and reply.delta[0] < 0:
            raise RejectedReply("malformed", "The distance in the place of an update is below 0.")
        if strategy.weighting in REPORTED_WEIGHTS and not getattr(reply.figures, strategy.weighting):
            raise RejectedReply("no-rows", f"The bank does not report its {strategy.weighting}, which it would weigh.")
        if part is None and (fault := foreign_rank(reply.delta, self.request.adapter, self.layout, config, name)):
            raise RejectedReply("rank", fault)
        if self.witness and reply.ledger:
            self.witness.check(name, reply.ledger, self.request.ledger_heads.get(name))
        return reply


def timing_of(figures: Figures) -> BankTimings:
    """What a reply says of its own times."""
    return BankTimings(
        train_s=figures.train_s, load_s=figures.load_s, tokens_per_s=a_second(figures.tokens, figures.train_s)
    )


def _fault_of(error: Error, name: str, is_simulated: bool) -> Exception:
    """What an error of Flower's in the place of a reply is to the round."""
    if error.code == UNREADABLE:
        return RejectedReply("unreadable", str(error.reason))
    if error.code in AWAY:
        return RejectedReply("away", AWAY[error.code])
    if error.code == INVALID_FAB:
        return RejectedReply("policy-code", SAFE_REASONS["policy-code"], said_by_bank=True)
    if error.code == PROCESS_DIED and is_simulated:
        # Flower hands the dead process out again in each later round: the run would end without the banks that draw it.
        return UserError(
            f"The process that simulated {name} has died, most likely for lack of memory. Resume from the last "
            "finished round with fewer processes at a time: python -m fedfinlora simulate resume=RUN workers=1"
        )
    return RejectedReply("crashed", f"The bank's process failed (Flower error {error.code}).")


def _status_of(rejection: RejectedReply) -> str:
    if rejection.code == "late":
        return "late"
    return "error" if rejection.said_by_bank or rejection.code in ("crashed", "away") else "rejected"


def accepted_entry(name: str, reply: Reply) -> BankEntry:
    """The entry of a bank whose reply is in the aggregate."""
    figures = reply.figures
    measured = math.isfinite(figures.holdout_loss)
    return BankEntry(
        bank=name,
        status="ok",
        rows=figures.rows,
        skipped_rows=figures.skipped_rows,
        steps=figures.steps,
        tokens=figures.tokens,
        answer_tokens=figures.answer_tokens,
        train_loss=finite(figures.train_loss),
        holdout_loss=finite(figures.holdout_loss),
        holdout_rows=figures.holdout_rows if measured else 0,
        delta_norm=reply.delta_norm,
        bytes_up=reply.sent_bytes or reply.delta.nbytes,
        privacy=_privacy_of(figures),
        ledger=reply.ledger,
        policy_sha256=reply.policy_sha256,
        withheld=reply.withheld,
    )


def _privacy_of(figures: Figures) -> BankPrivacy | None:
    """What a private reply has spent; None where there is no privacy."""
    if not math.isfinite(figures.delta):
        return None
    return BankPrivacy(finite(figures.epsilon_planned), finite(figures.epsilon_spent), figures.delta)


def finite(value: float) -> float | None:
    """The value; None for one that JSON cannot hold."""
    return value if math.isfinite(value) else None
