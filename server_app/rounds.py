"""Our own round loop on Flower's Grid.

Why not `Strategy.start()`: it cannot resume, waits for ever for missing nodes, samples with the global generator, and
one malformed reply ends the run (docs/adr/0002-own-round-loop.md).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import Layout, norm
from fedfinlora.model.parts import sent_part
from fedfinlora.provenance.evidence import RoundEvidence, ServerKeys
from fedfinlora.provenance.lines import Attempt
from fedfinlora.run.checkpoint import adapter_checksum
from fedfinlora.run.events import BanksDrawn, bank_done
from fedfinlora.run.opening import OpenRun
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.run.progress import EventWriter
from fedfinlora.run.records import (
    AverageLoss,
    BankEntry,
    BankTimings,
    FactorLength,
    RoundLine,
    RoundTimings,
)
from fedfinlora.train.own_columns import with_frozen_ranks
from fedfinlora.wire.messages import Reply, TrainRequest, pack_requests
from server_app.average_loss import average_loss, is_measured
from server_app.drift import RoundPlan, note_lost, plan_of, unmoved
from server_app.exchange import MessageGrid, exchange
from server_app.factor_length import factor_length
from server_app.replies import Replies, StoredDeltas, replies_of
from server_app.strategies.strategy import ServerState, Strategy, take_step
from server_app.taking_in import Asked
from server_app.witness import Witness

log = logging.getLogger("fedfinlora.server")


@dataclass(frozen=True)
class RoundResult:
    """A finished round: the next state and the line of rounds.jsonl."""

    state: ServerState
    line: RoundLine
    """Still without its scores."""
    evidence: Attempt
    """The round's line of provenance.jsonl."""


@dataclass(frozen=True)
class Federation:
    """What stays the same in all rounds of a run: the way to the banks, the rule, and who signs."""

    grid: MessageGrid
    run: OpenRun
    rule: Strategy
    layout: Layout
    witness: Witness
    """Knows how far the banks' privacy ledgers had come."""
    keys: ServerKeys
    """They sign what is asked, and check who answered."""
    code_sha256: str
    """Of the app bundle; signed with each request."""
    events: EventWriter
    """For who is asked, and for each reply as it comes."""

    @property
    def state_folder(self) -> Path:
        """Where the deltas of a round rest until all have come."""
        return self.run.folder / "state"


class _Gathered(NamedTuple):
    """What came back in a round, by bank."""

    replies: dict[str, Reply]
    """The usable ones, their deltas on the disk."""
    entries: dict[str, BankEntry]
    timings: dict[str, BankTimings]


class _Measured(NamedTuple):
    """What the server's average lost, and how the banks write their products, where it is measured."""

    average: AverageLoss | None = None
    factors: FactorLength | None = None
    average_s: float = 0.0


class _Step(NamedTuple):
    """What the server made of the replies."""

    state: ServerState
    weights: Sequence[float] | None
    """Of the replies by bank's name; None where the server's noise hides who replied."""
    measured: _Measured


def run_round(
    federation: Federation, banks: Mapping[str, int], state: ServerState, expected_s: Mapping[str, float]
) -> RoundResult:
    """Send the adapter to those of `banks` (name -> node) that are drawn, gather and check their deltas, and take the
    server's step.

    `expected_s` is how long each bank took last time, in seconds. Raises UserError when fewer than strategy.quorum
    replies are usable (`rule.quorum`); `state` is then unchanged and the run can be resumed.
    """
    started = time.monotonic()
    run, rule, layout, config = federation.run, federation.rule, federation.layout, federation.run.config
    number, keys = state.round + 1, federation.keys
    drawn = rule.sampled(sorted(banks), config.seed, number)
    federation.events.write(BanksDrawn(round=number, banks=tuple(drawn)))
    # The slowest first: where fewer workers than banks share a machine, none then waits long for a last big bank.
    queue = sorted(drawn, key=lambda name: (-expected_s.get(name, 0.0), name))
    heads, moments = federation.witness.heads(drawn), rule.second_moments(state)
    request = TrainRequest(config, run.run_id, number, layout.id, source_fingerprint(), state.adapter, heads)
    request = replace(request, second_moments=moments)
    evidence = RoundEvidence(keys, run.run_id, number, adapter_checksum(state.adapter), federation.code_sha256)
    plan = plan_of(run.folder, number, config) if config.strategy.sync == "drift" else None
    part = plan.part(layout) if plan else sent_part(config.strategy.name, layout, number)
    is_silent = plan is not None and not plan.averaged
    with StoredDeltas(federation.state_folder, 1 if is_silent else layout.size) as deltas:
        asked = Asked(request, layout, part, federation.witness, evidence, deltas)
        gathered = _gathered(federation, asked, plan, {name: banks[name] for name in queue}, started)
        collected = time.monotonic()
        if plan:
            note_lost(federation.state_folder, number, gathered.entries.values())
        _check_quorum(number, gathered, rule.quorum, config.strategy.quorum)
        replies = [gathered.replies[name] for name in sorted(gathered.replies)]
        step = _step(federation, state, replies, deltas, is_silent)
    line = replace(
        line_of(number, [gathered.entries[name] for name in sorted(gathered.entries)], replies, step.weights is None),
        update_norm=step.state.step_norm,
        average=step.measured.average,
        factors=step.measured.factors,
        timings=RoundTimings(
            total_s=time.monotonic() - started,
            train_s=collected - started,
            aggregate_s=time.monotonic() - collected,
            average_s=step.measured.average_s,
            banks=dict(sorted(gathered.timings.items())),
        ),
    )
    line = replace(line, sync=plan.line(line, state.adapter)) if plan else line
    names = [reply.bank for reply in replies]
    weighed = None if step.weights is None else dict(zip(names, step.weights, strict=True))
    return RoundResult(step.state, line, evidence.line(adapter_checksum(step.state.adapter), weighed))


def _gathered(
    federation: Federation, asked: Asked, plan: RoundPlan | None, nodes: Mapping[str, int], started: float
) -> _Gathered:
    """Ask the banks of `nodes` (name -> node) in their order, and take in what they answer until the deadline.
    `started`: the round's beginning on the monotonic clock, in seconds.
    """
    request, names = asked.request, list(nodes)
    packed = plan.packed(request, names) if plan else pack_requests(request, names)
    asked.evidence.ask(packed)
    requests = {nodes[name]: content for name, content in packed.items()}
    name_of = {node: name for name, node in nodes.items()}
    found = _Gathered({}, {}, {})
    deadline_s = request.config.strategy.deadline_s
    for node, message in exchange(federation.grid, requests, "train", deadline_s, str(request.round)):
        name = name_of[node]
        reply, entry, timing = asked.taken_in(message, name, federation.run.folder)
        del message  # nor held while the next is fetched
        if reply is not None:
            found.replies[name] = reply
        bytes_down = plan.bytes_down(name, request.adapter) if plan else request.adapter.nbytes
        found.entries[name] = replace(entry, bytes_down=bytes_down)
        found.timings[name] = replace(timing, reply_s=time.monotonic() - started)
        federation.events.write(bank_done(request.round, found.entries[name], found.timings[name]))
    return found


def _check_quorum(number: int, gathered: _Gathered, needed: int, configured: int) -> None:
    """UserError, with what was wrong at each bank, where fewer replies than the rule needs are usable."""
    replies, entries = gathered.replies, gathered.entries
    if len(replies) >= needed:
        return
    reasons = "; ".join(f"{name}: {entries[name].reason}" for name in sorted(entries) if name not in replies)
    raise UserError(
        f"Round {number}: {len(replies)} of {len(entries)} replies are usable, strategy.quorum={configured}. {reasons}"
    )


def _step(
    federation: Federation, state: ServerState, replies: Sequence[Reply], deltas: StoredDeltas, is_silent: bool
) -> _Step:
    """The server's step on the replies, which are by bank's name; none where a round `is_silent`."""
    weights = federation.rule.weights(replies)
    if is_silent:
        return _Step(unmoved(state), weights, _Measured())
    names = [reply.bank for reply in replies]
    aggregate = replies_of(replies, weights, federation.layout, partial(deltas.read, names))
    following = _stepped(federation.rule, state, aggregate, federation.layout, federation.run.config)
    if weights is None:
        return _Step(following, None, _Measured())
    return _Step(following, weights, _measured(federation, state, following.step_norm, replies, weights, deltas))


def _stepped(rule: Strategy, state: ServerState, replies: Replies, layout: Layout, config: Config) -> ServerState:
    """The state after the server's step. Under privacy=bank its noise does not move the ranks that stay."""
    following = take_step(rule, state, replies)
    if not (config.peft.frozen_rank and config.privacy.mode == "bank"):
        return following
    kept = with_frozen_ranks(following.adapter, state.adapter, layout, config)
    return replace(following, adapter=kept, step_norm=norm(kept.astype(np.float64) - state.adapter))


def _measured(
    federation: Federation,
    state: ServerState,
    step_norm: float,
    replies: Sequence[Reply],
    weights: Sequence[float],
    deltas: StoredDeltas,
) -> _Measured:
    """`replies` and `weights` are by bank's name, `state` is the one that the banks got, and `step_norm` the length of
    the server's step.
    """
    began, average, config, layout = time.monotonic(), None, federation.run.config, federation.layout
    ranks = config.strategy.declared_ranks()
    if config.strategy.measure_average and is_measured(state.round + 1, config.num_server_rounds):
        average = average_loss(state.adapter, step_norm, replies, weights, layout, deltas.read, ranks)
    factors = factor_length(state.adapter, [reply.bank for reply in replies], layout, deltas.one, ranks)
    return _Measured(average, factors, time.monotonic() - began if average else 0.0)


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


def _weighted(replies: Any, value: str, weight: str) -> float | None:
    """Mean of a figure over the replies that have it, weighted by another figure."""
    pairs = [
        (getattr(reply.figures, value), getattr(reply.figures, weight))
        for reply in sorted(replies, key=lambda reply: reply.bank)
        if math.isfinite(getattr(reply.figures, value)) and getattr(reply.figures, weight) > 0
    ]
    total = sum(count for _, count in pairs)
    return sum(number * count for number, count in pairs) / total if total else None
