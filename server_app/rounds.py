"""Our own round loop on Flower's Grid.

Why not `Strategy.start()`: it cannot resume, waits for ever for missing nodes, samples with the global generator, and
one malformed reply ends the run (docs/adr/0002-own-round-loop.md).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Error, Message

from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import MOMENT_RULES, REPORTED_WEIGHTS
from fedfinlora.errors import UserError
from fedfinlora.logs import about
from fedfinlora.model.adapter import Layout, norm
from fedfinlora.model.parts import DistanceOnly, Part, sent_part
from fedfinlora.provenance.deltas import keep_delta
from fedfinlora.provenance.evidence import RoundEvidence, ServerKeys
from fedfinlora.provenance.lines import Attempt
from fedfinlora.run.checkpoint import adapter_checksum
from fedfinlora.run.events import a_second
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.run.records import BankEntry, BankPrivacy, BankTimings, RoundLine, RoundTimings
from fedfinlora.train.own_columns import foreign_rank, with_frozen_ranks
from fedfinlora.wire.messages import Figures, RejectedReply, Reply, TrainRequest, pack_requests, unpack_reply
from fedfinlora.wire.reasons import SAFE_REASONS
from server_app.average_loss import average_loss, is_measured
from server_app.drift import note_lost, plan_of, unmoved
from server_app.exchange import INVALID_FAB, MESSAGE_UNAVAILABLE, NODE_UNAVAILABLE, PROCESS_DIED, MessageGrid, exchange
from server_app.factor_length import factor_length
from server_app.replies import StoredDeltas, replies_of
from server_app.strategies.strategy import ServerState, Strategy, take_step
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
class RoundResult:
    """A finished round: the next state and the line of rounds.jsonl."""

    state: ServerState
    line: RoundLine
    """Still without its scores."""
    evidence: Attempt
    """The round's line of provenance.jsonl."""


OnDrawn = Callable[[Sequence[str]], None]
OnBank = Callable[[BankEntry, BankTimings], None]


@dataclass(frozen=True)
class _Asked:
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


def run_round(
    grid: MessageGrid,
    banks: Mapping[str, int],
    rule: Strategy,
    state: ServerState,
    config: Config,
    layout: Layout,
    run_id: str,
    folder: Path,
    on_bank: OnBank | None = None,
    expected_s: Mapping[str, float] | None = None,
    on_drawn: OnDrawn | None = None,
    witness: Witness | None = None,
    keys: ServerKeys | None = None,
    code_sha256: str = "",
) -> RoundResult:
    """Send the adapter, gather and check the deltas, and take the server's step.

    The deltas rest in `folder` until all have come. `keys` sign what is asked, `code_sha256` (of the app bundle) among
    it, and check who answered. `expected_s` is how long each bank took last time, in seconds; `witness` knows how far
    the banks' privacy ledgers had come. Raises UserError when fewer than strategy.quorum replies are usable
    (`rule.quorum`); `state` is then unchanged and the run can be resumed.
    """
    started = time.monotonic()
    number = state.round + 1
    strategy = config.strategy
    drawn = rule.sampled(sorted(banks), config.seed, number)
    if on_drawn is not None:
        on_drawn(drawn)
    heads = witness.heads(drawn) if witness else {}
    request = TrainRequest(config, run_id, number, layout.id, source_fingerprint(), state.adapter, heads)
    request = replace(request, second_moments=rule.second_moments(state))
    # The slowest first: where fewer workers than banks share a machine, none then waits long for a last big bank.
    queue = sorted(drawn, key=lambda name: (-(expected_s or {}).get(name, 0.0), name))
    names = {banks[name]: name for name in queue}
    plan = plan_of(folder.parent, number, config) if strategy.sync == "drift" else None
    evidence = RoundEvidence(keys or ServerKeys(), run_id, number, adapter_checksum(state.adapter), code_sha256)
    packed = plan.packed(request, queue) if plan else pack_requests(request, queue)
    evidence.ask(packed)
    requests = {banks[name]: content for name, content in packed.items()}
    arriving = exchange(grid, requests, "train", strategy.deadline_s, str(number))
    part = plan.part(layout) if plan else sent_part(strategy.name, layout, number)
    is_silent = plan is not None and not plan.averaged
    with StoredDeltas(folder, 1 if is_silent else layout.size) as deltas:
        asked = _Asked(request, layout, part, witness, evidence, deltas)
        replies: dict[str, Reply] = {}
        entries: dict[str, BankEntry] = {}
        timings: dict[str, BankTimings] = {}
        for node, message in arriving:
            name = names[node]
            reply, entry, timing = asked.taken_in(message, name, folder.parent)
            del message  # nor held while the next is fetched
            if reply is not None:
                replies[name] = reply
            bytes_down = plan.bytes_down(name, state.adapter) if plan else state.adapter.nbytes
            entries[name] = replace(entry, bytes_down=bytes_down)
            timings[name] = replace(timing, reply_s=time.monotonic() - started)
            if on_bank is not None:
                on_bank(entries[name], timings[name])
        collected = time.monotonic()
        if plan:
            note_lost(folder, number, entries.values())
        if len(replies) < rule.quorum:
            reasons = "; ".join(f"{name}: {entries[name].reason}" for name in sorted(entries) if name not in replies)
            raise UserError(
                f"Round {number}: {len(replies)} of {len(drawn)} replies are usable, "
                f"strategy.quorum={strategy.quorum}. {reasons}"
            )
        ordered = [replies[name] for name in sorted(replies)]
        weights = rule.weights(ordered)
        read = partial(deltas.read, sorted(replies))
        following = unmoved(state) if is_silent else take_step(rule, state, replies_of(ordered, weights, layout, read))
        if config.peft.frozen_rank and config.privacy.mode == "bank":
            kept = with_frozen_ranks(following.adapter, state.adapter, layout, config)
            step = norm(kept.astype(np.float64) - state.adapter)  # without the noise on the ranks that stay
            following = replace(following, adapter=kept, step_norm=step)
        average, factors, stepped = None, None, time.monotonic()
        if not is_silent and weights is not None:
            ranks = strategy.declared_ranks()
            if strategy.measure_average and is_measured(number, config.num_server_rounds):
                average = average_loss(state.adapter, following.step_norm, ordered, weights, layout, deltas.read, ranks)
            factors = factor_length(state.adapter, sorted(replies), layout, deltas.one, ranks)
        average_s = time.monotonic() - stepped if average else 0.0
    line = replace(
        line_of(number, [entries[name] for name in sorted(entries)], ordered, weights is None),
        update_norm=following.step_norm,
        average=average,
        factors=factors,
        timings=RoundTimings(
            total_s=time.monotonic() - started,
            train_s=collected - started,
            aggregate_s=time.monotonic() - collected,
            average_s=average_s,
            banks=dict(sorted(timings.items())),
        ),
    )
    line = replace(line, sync=plan.line(line, state.adapter)) if plan else line
    weighed = None if weights is None else dict(zip(sorted(replies), weights, strict=True))
    return RoundResult(following, line, evidence.line(adapter_checksum(following.adapter), weighed))


def line_of(number: int, entries: Sequence[BankEntry], replies: Sequence[Reply], is_private: bool) -> RoundLine:
    """The line of rounds.jsonl that follows from its replies, both by name. `is_private`: the mean has the server's
    noise.
    """
    return RoundLine(
        round=number,
        noise_alone=is_private and not replies,
        banks=tuple(entries),
        train_loss=_weighted(replies, "train_loss", "answer_tokens"),
        holdout_loss=_weighted(replies, "holdout_loss", "holdout_rows"),
        bytes_up=sum(entry.bytes_up for entry in entries),
        bytes_down=sum(entry.bytes_down for entry in entries),
    )


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


def _weighted(replies: Any, value: str, weight: str) -> float | None:
    """Mean of a figure over the replies that have it, weighted by another figure."""
    pairs = [
        (getattr(reply.figures, value), getattr(reply.figures, weight))
        for reply in sorted(replies, key=lambda reply: reply.bank)
        if math.isfinite(getattr(reply.figures, value)) and getattr(reply.figures, weight) > 0
    ]
    total = sum(count for _, count in pairs)
    return sum(number * count for number, count in pairs) / total if total else None
