"""Flower's Grid as the server should see banks that it does not trust: a reply is fetched piece by piece, and none may
be larger than what it answers.

Flower's own `pull_messages` fetches all replies whole, waits inside the call for pieces on their way (for minutes where
a bank never sends them), and ends the run where one of them is no message. Here pieces are taken as they come, within
`fedfinlora.wire.limits`; what cannot be a reply becomes Flower's error with our code UNREADABLE and one of the reasons
below, and the rest of it is not fetched. The text of an error that a bank sends is dropped.
"""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_object_children_ids_from_object_content,
    get_object_type_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.superlink.grid.http_grid import HttpGrid

from fedfinlora.errors import UserError
from fedfinlora.wire.limits import bytes_allowed, objects_allowed
from server_app.exchange import MessageGrid
from server_app.taking_in import UNREADABLE

log = logging.getLogger("fedfinlora.server")
TOO_MANY_PIECES = "The reply is cut into too many pieces."
NOT_WHOLE = "The reply was not sent as a whole."
TOO_LARGE = "The reply is larger than a reply to this request may be."
GARBLED = "The reply cannot be read."
NO_REPLY = "What came is no reply."
BANKS_CODES = range(1, 9)
"""Flower's errors that a bank may send (`flwr.common.constant.ErrorCode`). 0 is a simulation's own, for a process that
has died; UNREADABLE is ours.
"""
MUCH = 2**22
"""Bytes that are worth a tenth of a second to have back."""


def guarded(grid: Any) -> MessageGrid:
    """The grid to use: GuardedGrid in a deployment; a simulation's own, whose banks are processes of ours."""
    return GuardedGrid(grid) if isinstance(grid, HttpGrid) else grid


@dataclass
class Coming:
    """A reply of which not everything is here."""

    message_id: str
    missing: list[str]
    """Ids of the objects still to fetch."""
    bytes_left: int
    contents: dict[str, bytes] = field(default_factory=dict)


class GuardedGrid:
    """A MessageGrid around Flower's HTTP grid."""

    def __init__(self, grid: HttpGrid) -> None:
        self._grid = grid
        self._allowed: dict[str, int] = {}
        """Message id -> bytes that its reply may have."""
        self._coming: dict[str, Coming] = {}

    def get_node_ids(self) -> Any:
        with _said_plainly():
            return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Any:
        messages = list(messages)
        with _said_plainly():
            ids = list(self._grid.push_messages(messages))
        sizes = [_array_bytes(message) for message in messages]
        self._allowed = {str(each): bytes_allowed(size) for each, size in zip(ids, sizes, strict=False)}
        del messages
        if max(sizes, default=0) >= MUCH:
            gc.collect()  # Flower's records of what was sent hold each other, and would stay until the last reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The first reply that is here as a whole; the others wait for the next call."""
        ids = list(message_ids)
        with _said_plainly():
            self._take_heads([each for each in ids if each not in self._coming])
            for each in ids:
                reply = self._continue(each) if each in self._coming else None
                if reply is not None:
                    del self._coming[each]
                    return [reply]
        return []

    def _take_heads(self, message_ids: list[str]) -> None:
        """See which replies have begun to come, and of which objects they are made."""
        if not message_ids:
            return
        found = self._grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        for head, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            objects = list(dict.fromkeys(str(part.object_id) for part in iterate_object_tree(tree)))
            answers = str(head.metadata.reply_to_message_id)
            allowed = self._allowed.get(answers, bytes_allowed(0))
            self._coming[answers] = Coming(str(head.metadata.message_id), objects, allowed)

    def _continue(self, answers: str) -> Message | None:
        """Fetch what is there of a reply to message `answers`; None while something is on its way."""
        coming, allowed = self._coming[answers], self._allowed.get(answers, bytes_allowed(0))
        if len(coming.missing) + len(coming.contents) > objects_allowed(allowed):
            return unreadable(answers, TOO_MANY_PIECES)
        client, node, run = self._grid._runtime_client, self._grid.node, self._grid.run.run_id
        while coming.missing:
            found = client.PullObject(PullObjectRequest(node=node, run_id=run, object_id=coming.missing[-1]))
            if not found.object_found:
                return unreadable(answers, NOT_WHOLE)
            if not found.object_available:
                return None
            coming.bytes_left -= len(found.object_content)
            if coming.bytes_left < 0:
                return unreadable(answers, TOO_LARGE)
            coming.contents[coming.missing.pop()] = found.object_content
        client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=coming.message_id)
        )
        try:
            message = put_together(coming)
        except Exception as error:  # a bank's bytes may raise anything in Flower's readers
            log.warning("a reply cannot be read (%s)", type(error).__name__)
            return unreadable(answers, GARBLED)
        return as_reply(message, answers)


def put_together(coming: Coming) -> Any:
    """Flower's object from the contents of all its parts. Raises any error of Flower's readers.

    One array after the other: Flower keeps each part until the object that it began with is done, which for a message
    is all of its numbers twice.
    """
    contents = coming.contents
    arrays = [each for each, content in contents.items() if get_object_type_from_object_content(content) == "Array"]
    pieces = {each: get_object_children_ids_from_object_content(contents[each]) for each in arrays}
    uses = Counter(piece for found in pieces.values() for piece in found)  # Flower stores equal pieces once
    done = {}
    for each in arrays:
        done[each] = inflate_object_from_contents(each, contents, keep_object_contents=True)
        uses.subtract(pieces[each])
        for piece in [each, *(piece for piece in pieces[each] if not uses[piece])]:
            del contents[piece]
    return inflate_object_from_contents(coming.message_id, contents, objects=done)


def as_reply(message: Any, answers: str) -> Message:
    """What a bank sent, as the server may see it: a reply, an error without its text, or UNREADABLE for anything
    else.
    """
    if not isinstance(message, Message) or message.metadata.reply_to_message_id != answers:
        return unreadable(answers, NO_REPLY)
    if not message.has_error():
        return message
    code = message.error.code
    return _error(answers, code, "") if code in BANKS_CODES else unreadable(answers, NO_REPLY)


def unreadable(answers: str, reason: str) -> Message:
    """In the place of a reply that was not accepted."""
    return _error(answers, UNREADABLE, reason)


def _error(answers: str, code: int, reason: str) -> Message:
    metadata = Metadata(
        run_id=0, message_id="", src_node_id=0, dst_node_id=0, reply_to_message_id=answers, group_id="",
        created_at=0.0, ttl=0.0,
        message_type="system",
    )  # fmt: skip
    return make_message(metadata=metadata, error=Error(code, reason))


@contextmanager
def _said_plainly() -> Iterator[None]:
    """A SuperLink that answers with an error ends the run with one line."""
    try:
        yield
    except httpx.HTTPError as error:
        raise UserError(f"The SuperLink does not answer as it should ({error}); see its superlink.log.") from error


def _array_bytes(message: Message) -> int:
    return sum(len(array.data) for record in message.content.array_records.values() for array in record.values())
