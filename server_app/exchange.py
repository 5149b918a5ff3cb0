"""Asking the banks: who is connected, and messages with their replies as they come."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from flwr.app import ConfigRecord, Message, RecordDict

from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.errors import UserError, plural
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.wire.messages import BANK_NAME
from fedfinlora.wire.reasons import SAFE_REASONS, reason_of

log = logging.getLogger("fedfinlora.server")
POLL_S, LONGEST_POLL_S = 0.05, 1.0
WAITED_PART = 0.02
"""Between two questions for replies lies so much of the round's time so far: a reply is fetched at most 2 % of its
round late, and rounds of minutes do not keep the SuperLink busy.
"""
ASKING_PART = 4
"""Of five seconds in which nothing came at most one is spent with asking for it."""
PROCESS_DIED, MESSAGE_UNAVAILABLE, NODE_UNAVAILABLE, INVALID_FAB = 0, 3, 5, 7
"""Flower's codes where a simulated bank's process has died, where a request has expired, as it does when its bank
starts again (`fedfinlora.deployment.flower`), where a bank has gone, and where its gate has refused the app bundle
(`fedfinlora.deployment.gate`).
"""
MOST_RANKS = 65_536
"""That a bank may announce: more than any layer has."""


class MessageGrid(Protocol):
    """The part of `flwr.serverapp.Grid` that is used here."""

    def get_node_ids(self) -> Any: ...
    def push_messages(self, messages: Any) -> Any: ...
    def pull_messages(self, message_ids: Any) -> Any: ...


class Refusal(NamedTuple):
    """Why a connected node takes no part."""

    reason: str
    asked_again: str = ""
    """The enrolled name of a bank whose gate refuses the server's code: it is asked in each round."""


class Greeting(NamedTuple):
    """What a bank says of itself."""

    bank: str
    rank: int | None
    """None where it announces none."""


def roster(
    grid: MessageGrid,
    strategy: StrategyConfig,
    expected: int,
    enrolled: Mapping[int, str] | None = None,
    ranks: dict[str, int] | None = None,
) -> dict[str, int]:
    """Bank name -> node id of every connected bank, sorted by name.

    Waits up to strategy.wait_s for `expected` banks. With `enrolled`, the name under which each node's key was
    enrolled, a bank with another name is rejected; one whose gate refuses the server's code has no other name, and is
    asked again in each round. UserError when too few are there, two share a name, or fewer than strategy.quorum run the
    server's code.
    """
    wanted = max(1, expected)
    nodes = _connected(grid, wanted, strategy.wait_s)
    hello = RecordDict({"request": ConfigRecord({"hello": "fedfinlora"})})
    banks: dict[str, int] = {}
    refusals: list[Refusal] = []
    for node, reply in exchange(grid, dict.fromkeys(nodes, hello), "query", strategy.wait_s):
        greeting = _greeting(node, reply, enrolled)
        if isinstance(greeting, Refusal):
            refusals.append(greeting)
            if greeting.asked_again:
                banks[greeting.asked_again] = node
        elif greeting.bank in banks:
            raise UserError(
                f"Two connected banks are called {greeting.bank!r}. Give each its own name in its node config: "
                'bank="…".'
            )
        else:
            banks[greeting.bank] = node
            if ranks is not None and greeting.rank is not None:
                ranks[greeting.bank] = greeting.rank
    if strategy.weighting == "declared":
        undeclared = sorted(set(banks) - set(strategy.declared_sizes()))
        if undeclared:
            raise UserError(f"strategy.sizes does not name {', '.join(undeclared)}. Add each as BANK:ROWS.")
    refusals.sort(key=lambda refusal: bool(refusal.asked_again))
    for refusal in refusals:
        log.warning("%s: %s", "asked again in each round" if refusal.asked_again else "rejected", refusal.reason)
    needed = max(wanted, strategy.quorum)
    usable = len(banks) - sum(bool(refusal.asked_again) for refusal in refusals)
    if len(banks) < needed or usable < strategy.quorum:
        raise UserError(
            f"{usable} usable banks, {needed} are needed (strategy.min_banks, strategy.quorum). "
            f"{'; '.join(refusal.reason for refusal in refusals)}"
        )
    return dict(sorted(banks.items()))


def _connected(grid: MessageGrid, wanted: int, wait_s: float) -> list[int]:
    """The ids of all connected nodes, once so many are there. UserError where they are not after the wait."""
    deadline = time.monotonic() + wait_s
    while len(nodes := sorted(grid.get_node_ids())) < wanted:
        if time.monotonic() > deadline:
            raise UserError(
                f"{len(nodes)} of {plural(wanted, 'bank')} are connected after {wait_s:g} s. "
                "Start the missing banks, or lower strategy.min_banks, or raise strategy.wait_s."
            )
        time.sleep(POLL_S)
    return nodes


def _greeting(node: int, reply: Message | None, enrolled: Mapping[int, str] | None) -> Greeting | Refusal:
    """What a node answers to a hello. A name that is not its own is not repeated: it is a text of the bank's."""
    if reply is None or reply.has_error():
        if enrolled and node in enrolled and reply is not None and reply.error.code == INVALID_FAB:
            return Refusal(f"{enrolled[node]}: {SAFE_REASONS['policy-code']}", asked_again=enrolled[node])
        return Refusal(f"node {node} did not answer")
    head: dict[str, Any] = dict(reply.content.config_records.get("reply", ConfigRecord({})))
    name = str(head.get("bank", node))
    if not BANK_NAME.fullmatch(name):
        return Refusal(f"node {node}: its name is not a plain one")
    if enrolled is not None and enrolled.get(node) != name:
        return Refusal(f"{enrolled.get(node, f'node {node}')}: it gives another name than its key was enrolled under")
    if head.get("status") != "ok":
        return Refusal(f"{name}: {reason_of(str(head.get('code')))}")
    if head.get("source-sha256") != source_fingerprint():
        return Refusal(f"{name}: runs another version of the code")
    rank = head.get("rank")
    if rank is not None and not _is_rank(rank):
        return Refusal(f"{name}: its rank is no whole number from 1 to {MOST_RANKS}")
    return Greeting(name, rank)


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= MOST_RANKS


def exchange(
    grid: MessageGrid, contents: dict[int, RecordDict], message_type: str, deadline_s: float, group: str = ""
) -> Iterator[tuple[int, Message | None]]:
    """Send each node its content and give (node, reply) as they come; None for those still silent at the deadline (0 =
    none).

    `contents` is emptied. What has come by the deadline is accepted.
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
            now = time.monotonic()
            if deadline_s and asked_at - started >= deadline_s:
                break
            pause = min(max(POLL_S, WAITED_PART * (now - started)), LONGEST_POLL_S)
            # With many banks asking takes longer, and is done the less often; once more at the deadline.
            pause = max(pause, ASKING_PART * (now - asked_at))
            left_s = max(0.0, started + deadline_s - now)
            time.sleep(min(pause, left_s) if deadline_s else pause)
        while replies:  # none is held longer than it is worked on
            reply = replies.pop()
            node = waiting.pop(str(reply.metadata.reply_to_message_id), None)
            if node is not None:  # a second answer to a message, or one without a request, is ignored
                yield node, reply
            del reply
    for node in [*waiting.values(), *nodes[len(ids) :]]:
        yield node, None
