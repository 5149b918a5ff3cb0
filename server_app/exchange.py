"""Asking the banks: who is connected, and messages with their replies as they come."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

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
        elif not _is_rank(rank := head.get("rank", 1)):
            refusals.append(f"{name}: its rank is no whole number from 1 to {MOST_RANKS}")
        else:
            banks[name] = node
            if ranks is not None and "rank" in head:
                ranks[name] = rank
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
