"""Our own round loop on Flower's Grid: seeded sampling, quorum and deadline, one rejected bank at a time, checkpoints,
resume.

Why not `Strategy.start()`: it cannot resume, waits for ever for missing nodes, samples with the global generator, and
one malformed reply ends the run (docs/adr/0002-own-round-loop.md).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import REPORTED_WEIGHTS, StrategyConfig
from fedfinlora.errors import UserError, plural
from fedfinlora.logs import about
from fedfinlora.model.adapter import Layout
from fedfinlora.model.parts import Part, sent_part
from fedfinlora.provenance.deltas import keep_delta
from fedfinlora.provenance.evidence import RoundEvidence, ServerKeys
from fedfinlora.provenance.lines import Attempt
from fedfinlora.run.checkpoint import adapter_checksum
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.run.records import BankEntry, BankPrivacy, BankTimings, RoundLine, RoundTimings
from fedfinlora.train.own_columns import foreign_rank
from fedfinlora.wire.messages import BANK_NAME, Figures, RejectedReply, Reply, TrainRequest, pack_requests, unpack_reply
from fedfinlora.wire.reasons import SAFE_REASONS, reason_of
from server_app.average_loss import average_loss, is_measured
from server_app.replies import StoredDeltas, replies_of
from server_app.strategies.strategy import ServerState, Strategy, take_step
from server_app.witness import Witness

log = logging.getLogger("fedfinlora.server")
POLL_S = 0.05
ASKING_PART = 4
"""Of five seconds in which nothing came at most one is spent with asking for it."""
SHORTEST_S = 1e-6
NOT_HERE = np.zeros(0, np.float32)
"""In the place of a delta that lies on the disk."""
UNREADABLE = 1000
"""Code of the error in the place of a reply that was not accepted (`server_app.guarded_grid`); Flower's end below 10.
"""
PROCESS_DIED, MESSAGE_UNAVAILABLE, NODE_UNAVAILABLE, INVALID_FAB = 0, 3, 5, 7
"""Flower's codes where a simulated bank's process has died, where a request has expired, as it does when its bank
starts again (`fedfinlora.deployment.flower`), where a bank has gone, and where its gate has refused the app bundle
(`fedfinlora.deployment.gate`).
"""


class MessageGrid(Protocol):
    """The part of `flwr.serverapp.Grid` that is used here."""

    def get_node_ids(self) -> Any: ...
    def push_messages(self, messages: Any) -> Any: ...
    def pull_messages(self, message_ids: Any) -> Any: ...


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


def roster(
    grid: MessageGrid, strategy: StrategyConfig, expected: int, enrolled: Mapping[int, str] | None = None
) -> dict[str, int]:
    """Bank name -> node id of every connected bank, sorted by name.

    Waits up to strategy.wait_s for `expected` banks. With `enrolled`, the name under which each node's key was
    enrolled, a bank with another name is rejected; one whose gate refuses the server's code has no other
    name, and is asked again in each round, as after any refusal by its policy. Raises UserError when too few are there,
    two share a name, or fewer than strategy.quorum run the server's code.
    """
    wanted = max(1, expected)
    deadline = time.monotonic() + strategy.wait_s
    while len(nodes := sorted(grid.get_node_ids())) < wanted:
        if time.monotonic() > deadline:
            raise UserError(
                f"{len(nodes)} of {plural(wanted, 'bank')} are connected after {strategy.wait_s:g} s. "
                "Start the missing banks, or lower strategy.min_banks, or raise strategy.wait_s."
            )
        time.sleep(POLL_S)
    hello = RecordDict({"request": ConfigRecord({"hello": "fedfinlora"})})
    banks: dict[str, int] = {}
    refusals: list[str] = []
    gates: list[str] = []
    """Of banks whose gate refuses."""
    for node, reply in exchange(grid, dict.fromkeys(nodes, hello), "query", strategy.wait_s):
        if (
            enrolled
            and node in enrolled
            and reply is not None
            and reply.has_error()
            and reply.error.code == INVALID_FAB
        ):
            banks[enrolled[node]] = node
            gates.append(f"{enrolled[node]}: {SAFE_REASONS['policy-code']}")
            continue
        if reply is None or reply.has_error():
            refusals.append(f"node {node} did not answer")
            continue
        head: dict[str, Any] = dict(reply.content.config_records.get("reply", ConfigRecord({})))
        name = str(head.get("bank", node))
        if not BANK_NAME.fullmatch(name):
            refusals.append(f"node {node}: its name is not a plain one")
        elif (
            enrolled is not None and enrolled.get(node) != name
        ):  # which is not written down: it is a text of the bank's own
            refusals.append(
                f"{enrolled.get(node, f'node {node}')}: it gives another name than its key was enrolled under"
            )
        elif head.get("status") != "ok":
            refusals.append(f"{name}: {reason_of(str(head.get('code')))}")
        elif head.get("source-sha256") != source_fingerprint():
            refusals.append(f"{name}: runs another version of the code")
        elif name in banks:
            raise UserError(
                f'Two connected banks are called {name!r}. Give each its own name in its node config: bank="…".'
            )
        else:
            banks[name] = node
    if strategy.weighting == "declared":
        undeclared = sorted(set(banks) - set(strategy.declared_sizes()))
        if undeclared:
            raise UserError(f"strategy.sizes does not name {', '.join(undeclared)}. Add each as BANK:ROWS.")
    for refusal in refusals:
        log.warning("rejected: %s", refusal)
    for refusal in gates:
        log.warning("asked again in each round: %s", refusal)
    needed = max(wanted, strategy.quorum)
    if len(banks) < needed or len(banks) - len(gates) < strategy.quorum:
        raise UserError(
            f"{len(banks) - len(gates)} usable banks, {needed} are needed (strategy.min_banks, strategy.quorum). "
            f"{'; '.join([*refusals, *gates])}"
        )
    return dict(sorted(banks.items()))


def exchange(
    grid: MessageGrid, contents: dict[int, RecordDict], message_type: str, deadline_s: float, group: str = ""
) -> Iterator[tuple[int, Message | None]]:
    """Send each node its content and give (node, reply) as they come; None for those still silent at the deadline (0 =
    none).

    `contents` is emptied. What has come by the deadline is accepted, however long that takes.
    """
    started = time.monotonic()
    nodes = list(contents)
    ids = list(
        grid.push_messages([Message(content, node, message_type, group_id=group) for node, content in contents.items()])
    )
    contents.clear()  # the grid has them; here they would only take memory until the last reply
    waiting = {str(message_id): node for message_id, node in zip(ids, nodes, strict=False)}
    while waiting:
        asked_at = time.monotonic()
        replies = list(grid.pull_messages(list(waiting)))[::-1]
        if not replies:
            if deadline_s and asked_at - started > deadline_s:
                break
            # With many banks asking takes longer, and is done the less often.
            time.sleep(max(POLL_S, ASKING_PART * (time.monotonic() - asked_at)))
        while replies:  # none is held longer than it is worked on
            reply = replies.pop()
            node = waiting.pop(str(reply.metadata.reply_to_message_id), None)
            if node is not None:  # a second answer to a message, or one without a request, is ignored
                yield node, reply
            del reply
    for node in [*waiting.values(), *nodes[len(ids) :]]:
        yield node, None


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
    # The slowest first: where fewer workers than banks share a machine, none then waits long for a last big bank.
    queue = sorted(drawn, key=lambda name: (-(expected_s or {}).get(name, 0.0), name))
    names = {banks[name]: name for name in queue}
    bytes_down = state.adapter.nbytes
    evidence = RoundEvidence(keys or ServerKeys(), run_id, number, adapter_checksum(state.adapter), code_sha256)
    packed = pack_requests(request, queue)
    evidence.ask(packed)
    requests = {banks[name]: content for name, content in packed.items()}
    arriving = exchange(grid, requests, "train", strategy.deadline_s, str(number))
    replies: dict[str, Reply] = {}
    entries: dict[str, BankEntry] = {}
    bank_timings: dict[str, BankTimings] = {}
    part = sent_part(strategy.name, layout, number)
    with StoredDeltas(folder, layout.size) as deltas:
        for node, message in arriving:
            name = names[node]
            reply, entry, timing = _taken_in(message, name, request, layout, part, witness, deltas, evidence)
            evidence.outcome(name, entry.code)
            if reply is not None and strategy.keep_deltas:
                kept = next(iter(deltas.read([name], slice(0, layout.size))))
                keep_delta(folder.parent, number, name, part.of(kept) if part else kept)
            del message  # nor held while the next is fetched
            if reply is not None:
                replies[name] = reply
            else:
                with about(bank=name):
                    log.warning("round %d: %s rejected (%s): %s", number, name, entry.code, entry.reason)
            entries[name] = replace(entry, bytes_down=bytes_down)
            bank_timings[name] = replace(timing, reply_s=time.monotonic() - started)
            if on_bank is not None:
                on_bank(entries[name], bank_timings[name])
        collected = time.monotonic()
        if len(replies) < rule.quorum:
            reasons = "; ".join(f"{name}: {entries[name].reason}" for name in sorted(entries) if name not in replies)
            raise UserError(
                f"Round {number}: {len(replies)} of {len(drawn)} replies are usable, "
                f"strategy.quorum={strategy.quorum}. {reasons}"
            )
        ordered = [replies[name] for name in sorted(replies)]
        weights = rule.weights(ordered)
        following = take_step(rule, state, replies_of(ordered, weights, layout, partial(deltas.read, sorted(replies))))
        average = None
        if strategy.measure_average and weights is not None and is_measured(number, config.num_server_rounds):
            average = average_loss(state.adapter, following.step_norm, ordered, weights, layout, deltas.read)
    line = replace(
        line_of(number, [entries[name] for name in sorted(entries)], ordered, weights is None),
        update_norm=following.step_norm,
        average=average,
        timings=RoundTimings(
            total_s=time.monotonic() - started,
            train_s=collected - started,
            aggregate_s=time.monotonic() - collected,
            banks=dict(sorted(bank_timings.items())),
        ),
    )
    weighed = None if weights is None else dict(zip(sorted(replies), weights, strict=True))
    return RoundResult(following, line, evidence.line(adapter_checksum(following.adapter), weighed))


def line_of(number: int, entries: Sequence[BankEntry], replies: Sequence[Reply], is_private: bool) -> RoundLine:
    """What a round's line of rounds.jsonl says that follows from its replies, both by name. `is_private`: the mean has
    the server's noise.
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


def _taken_in(
    message: Message | None,
    name: str,
    request: TrainRequest,
    layout: Layout,
    part: Part | None,
    witness: Witness | None,
    deltas: StoredDeltas,
    evidence: RoundEvidence,
) -> tuple[Reply | None, BankEntry, BankTimings]:
    """(the checked reply, whose delta lies in `deltas` now, or None; the bank's entry in the round's line; its
    timings).
    """
    try:
        reply = _check(message, name, layout, part, request.config, evidence)
        if fault := foreign_rank(reply.delta, request.adapter, layout, request.config, name):
            raise RejectedReply("rank", fault)
        if witness and reply.ledger:
            witness.check(name, reply.ledger, request.ledger_heads.get(name))
    except RejectedReply as rejection:
        return None, BankEntry(name, _status_of(rejection), rejection.code, str(rejection)), BankTimings()
    if witness and reply.ledger:
        witness.keep(name, reply.ledger)
    deltas.keep(name, reply.delta)
    assert message is not None
    for record in message.content.array_records.values():
        record.clear()  # Flower's records hold each other: else these bytes stay until the garbage is collected
    return replace(reply, delta=NOT_HERE), accepted_entry(name, reply), timing_of(reply.figures)


def timing_of(figures: Figures) -> BankTimings:
    """What a reply says of its own times."""
    return BankTimings(
        train_s=figures.train_s, load_s=figures.load_s, tokens_per_s=a_second(figures.tokens, figures.train_s)
    )


def a_second(count: float, seconds: float) -> float:
    """So many a second; 0 for a time too short to measure, with which a reply could make the speed infinite."""
    return count / seconds if seconds >= SHORTEST_S else 0.0


def _check(
    message: Message | None, name: str, layout: Layout, part: Part | None, config: Config, evidence: RoundEvidence
) -> Reply:
    strategy = config.strategy
    if message is None:
        raise RejectedReply("late", f"No reply within strategy.deadline_s={strategy.deadline_s:g} s.")
    if message.has_error() and message.error.code == UNREADABLE:
        raise RejectedReply("unreadable", str(message.error.reason))
    if message.has_error() and message.error.code == NODE_UNAVAILABLE:
        raise RejectedReply("away", "The bank is not connected.")
    if message.has_error() and message.error.code == MESSAGE_UNAVAILABLE:
        raise RejectedReply("away", "The bank has started again and lost what it was asked.")
    if message.has_error() and message.error.code == INVALID_FAB:
        raise RejectedReply("policy-code", SAFE_REASONS["policy-code"], said_by_bank=True)
    if message.has_error() and message.error.code == PROCESS_DIED and evidence.keys.banks is None:
        # Flower hands the dead process out again in each later round, and the run would end without the banks that draw
        # it.
        raise UserError(
            f"The process that simulated {name} has died, most likely for lack of memory. Resume from the last "
            "finished round with fewer processes at a time: python -m fedfinlora simulate resume=RUN workers=1"
        )
    if message.has_error():
        raise RejectedReply("crashed", f"The bank's process failed (Flower error {message.error.code}).")
    evidence.check(name, message.content)
    needs_rows, private = strategy.weighting == "rows", config.privacy.in_the_bank
    reply = unpack_reply(message.content, layout, strategy.max_update_norm, private, needs_rows, part)
    if reply.bank != name:
        raise RejectedReply("malformed", "The reply names another bank.")
    if strategy.weighting in REPORTED_WEIGHTS and not getattr(reply.figures, strategy.weighting):
        raise RejectedReply("no-rows", f"The bank does not report its {strategy.weighting}, which it would weigh.")
    return reply


def _status_of(rejection: RejectedReply) -> str:
    if rejection.code == "late":
        return "late"
    return "error" if rejection.said_by_bank or rejection.code in ("crashed", "away") else "rejected"


def accepted_entry(name: str, reply: Reply) -> BankEntry:
    """The entry of a bank whose reply is in the aggregate. A figure that is not finite was not measured."""
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
    """Mean of a figure over the replies that have it, weighted by another figure; None when no reply has it."""
    pairs = [
        (getattr(reply.figures, value), getattr(reply.figures, weight))
        for reply in sorted(replies, key=lambda reply: reply.bank)
        if math.isfinite(getattr(reply.figures, value)) and getattr(reply.figures, weight) > 0
    ]
    total = sum(count for _, count in pairs)
    return sum(number * count for number, count in pairs) / total if total else None
