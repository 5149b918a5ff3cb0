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
from typing import Any, NamedTuple

import numpy as np

from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import Layout, Vector, norm
from fedfinlora.model.parts import sent_part
from fedfinlora.provenance.evidence import RoundEvidence, ServerKeys
from fedfinlora.provenance.lines import Attempt
from fedfinlora.run.checkpoint import adapter_checksum
from fedfinlora.run.origin import source_fingerprint
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
from server_app.drift import note_lost, plan_of, unmoved
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


OnDrawn = Callable[[Sequence[str]], None]
OnBank = Callable[[BankEntry, BankTimings], None]


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
        asked = Asked(request, layout, part, witness, evidence, deltas)
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
        _check_quorum(number, replies, entries, rule.quorum, strategy.quorum)
        ordered = [replies[name] for name in sorted(replies)]
        weights = rule.weights(ordered)
        if is_silent:
            following = unmoved(state)
        else:
            aggregate = replies_of(ordered, weights, layout, partial(deltas.read, sorted(replies)))
            following = _stepped(rule, state, aggregate, layout, config)
        measured = _Measured()
        if not is_silent and weights is not None:
            measured = _measured(number, state.adapter, following.step_norm, ordered, weights, layout, deltas, config)
    line = replace(
        line_of(number, [entries[name] for name in sorted(entries)], ordered, weights is None),
        update_norm=following.step_norm,
        average=measured.average,
        factors=measured.factors,
        timings=RoundTimings(
            total_s=time.monotonic() - started,
            train_s=collected - started,
            aggregate_s=time.monotonic() - collected,
            average_s=measured.average_s,
            banks=dict(sorted(timings.items())),
        ),
    )
    line = replace(line, sync=plan.line(line, state.adapter)) if plan else line
    weighed = None if weights is None else dict(zip(sorted(replies), weights, strict=True))
    return RoundResult(following, line, evidence.line(adapter_checksum(following.adapter), weighed))


def _check_quorum(
    number: int, replies: Mapping[str, Reply], entries: Mapping[str, BankEntry], needed: int, configured: int
) -> None:
    """UserError, with what was wrong at each bank, where fewer replies than the rule needs are usable."""
    if len(replies) >= needed:
        return
    reasons = "; ".join(f"{name}: {entries[name].reason}" for name in sorted(entries) if name not in replies)
    raise UserError(
        f"Round {number}: {len(replies)} of {len(entries)} replies are usable, strategy.quorum={configured}. {reasons}"
    )


def _stepped(rule: Strategy, state: ServerState, replies: Replies, layout: Layout, config: Config) -> ServerState:
    """The state after the server's step. Under privacy=bank its noise does not move the ranks that stay."""
    following = take_step(rule, state, replies)
    if not (config.peft.frozen_rank and config.privacy.mode == "bank"):
        return following
    kept = with_frozen_ranks(following.adapter, state.adapter, layout, config)
    return replace(following, adapter=kept, step_norm=norm(kept.astype(np.float64) - state.adapter))


class _Measured(NamedTuple):
    """What the server's average lost, and how the banks write their products, where it is measured."""

    average: AverageLoss | None = None
    factors: FactorLength | None = None
    average_s: float = 0.0


def _measured(
    number: int,
    adapter: Vector,
    step_norm: float,
    replies: Sequence[Reply],
    weights: Sequence[float],
    layout: Layout,
    deltas: StoredDeltas,
    config: Config,
) -> _Measured:
    """`replies` and `weights` are by bank's name; `adapter` is the one that the banks got, (size,) float32, and
    `step_norm` the length of the server's step.
    """
    began, average, ranks = time.monotonic(), None, config.strategy.declared_ranks()
    if config.strategy.measure_average and is_measured(number, config.num_server_rounds):
        average = average_loss(adapter, step_norm, replies, weights, layout, deltas.read, ranks)
    factors = factor_length(adapter, [reply.bank for reply in replies], layout, deltas.one, ranks)
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
