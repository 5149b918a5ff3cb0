"""A Grid without Flower's processes: it hands each message to the real ClientApp in this process and keeps all that
crosses.

Messages and replies pass through Flower's own serialization, so a bank gets what the network would bring. Hooks change,
drop, repeat or hold back replies; everything is played in the order in which the grid is asked for it, without threads
or sleeping.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity

from client_app.app import app
from fedfinlora.wire.vectors import ARRAY_KEY, from_array, to_array

SERVER_NODE = 1
RUN_ID = 1

Tamper = Callable[[str, Message, Message], "Message | Sequence[Message] | None"]
"""(bank, message, reply) -> what arrives in the reply's place: one message, several, or None for silence."""


def simulated_banks(count: int, state: Path) -> dict[int, dict[str, Any]]:
    """Node id -> node config of `count` banks as Flower's simulation has them, with their states below `state`.

    Node ids do not follow the banks' names, as in Flower.
    """
    return {
        100 - index: {"partition-id": index, "num-partitions": count, "state-dir": str(state)} for index in range(count)
    }


@dataclass
class FakeGrid:
    """Serves `nodes`. `answer_order` sorts the names of the banks whose replies are fetched together."""

    nodes: Mapping[int, Mapping[str, Any]]
    tamper: Tamper | None = None
    answer_order: Callable[[list[str]], list[str]] = sorted
    messages: list[Message] = field(default_factory=list, repr=False)
    """Everything that the server sent, in order."""
    arrived: list[Message] = field(default_factory=list, repr=False)
    """Everything that came back, in order."""
    crossed: list[bytes] = field(default_factory=list, repr=False)
    """The serialized form of both."""

    def __post_init__(self) -> None:
        TaskIdentity.node_id, TaskIdentity.run_id, TaskIdentity.task_id = SERVER_NODE, RUN_ID, 1
        self._contexts = {
            node: Context(RUN_ID, node, dict(config), RecordDict(), {}) for node, config in self.nodes.items()
        }
        self._waiting: dict[str, Message] = {}
        self._numbers = itertools.count(1)

    def bank_of(self, node: int) -> str:
        """The name that a node's bank gives itself."""
        config = self.nodes[node]
        return str(config.get("bank", f"bank-{config.get('partition-id', 0)}"))

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"message-{next(self._numbers)}"
            self.messages.append(message)
            self._waiting[message.metadata.message_id] = self._through_the_wire(message)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Let the banks work on what they were sent, and fetch their replies. Silence lasts for ever."""
        due = {
            message_id: self._waiting.pop(message_id) for message_id in list(message_ids) if message_id in self._waiting
        }
        by_bank = {self.bank_of(message.metadata.dst_node_id): message for message in due.values()}
        by_key = by_bank if len(by_bank) == len(due) else dict(due)
        fetched: list[Message] = []
        for key in self.answer_order(list(by_key)):
            message = by_key[key]
            reply = self._call(message)
            if self.tamper is not None:
                answer = self.tamper(self.bank_of(message.metadata.dst_node_id), message, reply)
                replies = [] if answer is None else [answer] if isinstance(answer, Message) else list(answer)
            else:
                replies = [reply]
            fetched += [self._through_the_wire(each) for each in replies]
        self.arrived += [
            message_from_proto(message_to_proto(message)) for message in fetched
        ]  # the server empties its own
        return fetched

    def trained(self) -> list[tuple[int, str]]:
        """(round, bank) of each train message that the server sent."""
        return [
            (int(message.metadata.group_id), self.bank_of(message.metadata.dst_node_id))
            for message in self.messages
            if message.metadata.message_type == "train"
        ]

    def _call(self, message: Message) -> Message:
        """As Flower does it: what the app raises comes back as an error with its text."""
        node = message.metadata.dst_node_id
        identity, TaskIdentity.node_id = TaskIdentity.node_id, node
        try:
            return app(message, self._contexts[node])
        except Exception as error:
            return Message(
                Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(error).__name__}: {error}"), reply_to=message
            )
        finally:
            TaskIdentity.node_id = identity

    def _through_the_wire(self, message: Message) -> Message:
        content = message_to_proto(message).SerializeToString()
        self.crossed.append(content)
        return message_from_proto(ProtoMessage.FromString(content))


def only(
    bank: str, change: Callable[[Message, Message], Message | Sequence[Message] | None], message_type: str = "train"
) -> Tamper:
    """Change the replies of one bank to messages of one type, and of no other bank."""

    def tamper(name: str, message: Message, reply: Message) -> Message | Sequence[Message] | None:
        return change(message, reply) if name == bank and message.metadata.message_type == message_type else reply

    return tamper


def with_delta(reply: Message, make: Callable[[np.ndarray], Any]) -> RecordDict:
    """The content of a reply with another delta: `make` gets the true one and returns an array, or a whole Flower
    Array.
    """
    content = reply.content
    sent = content.array_records["delta"][ARRAY_KEY]
    made = make(from_array(sent, sent.shape[0]))
    content.array_records["delta"] = ArrayRecord({ARRAY_KEY: made if isinstance(made, Array) else to_array(made)})
    return content


def with_figures(reply: Message, **values: Any) -> RecordDict:
    """The content of a reply with other figures; None takes one away."""
    content = reply.content
    record = content.metric_records["figures"]
    for key, value in values.items():
        if value is None:
            del record[key]
        else:
            record[key] = value
    return content


def with_head(reply: Message, **values: Any) -> RecordDict:
    """The content of a reply with another head, keys with "_" for "-"."""
    content = reply.content
    content.config_records["reply"] = ConfigRecord(
        dict(content.config_records["reply"]) | {key.replace("_", "-"): value for key, value in values.items()}
    )
    return content
