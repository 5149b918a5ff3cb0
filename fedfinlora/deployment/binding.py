"""Wrappers of Flower's Fleet handlers, by which a node acts at the SuperLink in its own name only.

Flower (1.41) checks that `request.node`'s key has signed the request, and the public door that this is the key of the
connection. But the message in a push names its sender itself, and whoever knows an object's id may push, pull or
confirm it. Here a node pushes only its own replies to requests that it was sent, and handles only the parts of its own
messages; all else is refused with status 403.

The SuperLink's database says whose a request is until it is answered. A reply's sender is remembered here from its head
on: Flower forgets it while the parts are still on their way.

A reply is taken up to the size of `fedfinlora.wire.limits`. Of a push that Flower takes nothing from, no session stays
in its database.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from fedfinlora.wire.limits import bytes_allowed, objects_allowed

Handler = Callable[..., Any]
MOST_MESSAGES = 32
"""Messages of a node that are looked through, the newest: it works on one of each run."""
MOST_KNOWN = 4096
"""Messages and sessions that are remembered: a request and a reply of each bank."""
_known_parts: dict[str, frozenset[str]] = {}
"""Message id -> the ids of its objects."""
MOST_SESSIONS = 64
"""Sessions of a node that are remembered, its newest: it answers one request of each run, and tries again after a lost
answer.
"""
_sessions: dict[int, deque[tuple[str, str]]] = {}
"""Node -> (session, request) in which it pushes the parts of its replies. A run ends with the SuperLink, and its
sessions with it.
"""
_allowed: dict[str, int] = {}
"""Request -> bytes that the parts of its reply may have."""
_put: dict[str, dict[str, int]] = {}
"""Request -> the parts of its reply that were taken, with their bytes; one that comes again counts once."""
_answering: dict[int, deque[str]] = {}
"""Node -> the requests that it has answered last, which may be gone when it sends the same answer again."""


def bound_push(push_messages: Handler) -> Handler:
    """Takes one reply, whose sender is the node itself."""

    def pushed(request: Any, state: Any) -> Any:
        heads = [message.metadata for message in request.messages_list]
        if len(heads) != 1 or len(request.message_object_trees) != 1:
            _refuse("A push has one message.")
        if heads[0].src_node_id != request.node.node_id:
            _refuse("The message names another node as its sender.")
        if not heads[0].reply_to_message_id:
            _refuse("The message answers no request.")
        node, asked = int(request.node.node_id), str(heads[0].reply_to_message_id)
        answering = _answering.setdefault(node, deque(maxlen=MOST_SESSIONS))
        own = asked in answering or asked in _requests_to(state, node)
        if own:
            _measure(state, asked)
        if _objects_in(request.message_object_trees[0]) > objects_allowed(_allowance(asked)):
            _refuse("The message is cut into too many pieces.")
        answer = push_messages(request=request, state=state)
        if own and answer.objects_to_push:  # parts of an answer to anything else are not taken
            if asked not in answering:
                answering.append(asked)
            _sessions.setdefault(node, deque(maxlen=MOST_SESSIONS)).append((str(answer.session_id), asked))
        else:
            _end_session(state, str(answer.session_id))
        return answer

    return pushed


def bound_confirm(confirm_message_received: Handler) -> Handler:
    """Takes a confirmation from the node to which the message was sent: what is confirmed is deleted."""

    def confirmed(request: Any, state: Any, store: Any) -> Any:
        if request.message_object_id not in _requests_to(state, request.node.node_id):
            _refuse("The message was not sent to this node.")
        _measure(state, str(request.message_object_id))
        return confirm_message_received(request=request, state=state, store=store)

    return confirmed


def bound_pull(pull_object: Handler) -> Handler:
    """Hands out the parts of requests to the node."""

    def pulled(request: Any, state: Any) -> Any:
        if not _is_part(state, request.object_id, _requests_to(state, request.node.node_id)):
            _refuse("The object belongs to no message to this node.")
        return pull_object(request=request, state=state)

    return pulled


def bound_put(push_object: Handler) -> Handler:
    """Takes the parts of a reply in the session that its head was given."""

    def put(request: Any, state: Any) -> Any:
        asked = dict(_sessions.get(int(request.node.node_id), ())).get(str(request.session_id))
        if asked is None:
            _refuse("The object belongs to no message of this node.")
        taken = _remembered(_put, asked, {})
        if sum(taken.values()) - taken.get(request.object_id, 0) + len(request.object_content) > _allowance(asked):
            _refuse(f"The reply has more than {_allowance(asked):,} bytes.")
        answer = push_object(request=request, state=state)
        if answer.stored:
            taken[str(request.object_id)] = len(request.object_content)
        return answer

    return put


def _measure(state: Any, message_id: str) -> None:
    from flwr.supercore.state.schema.objectstore_models import StoredObject
    from sqlalchemy import func, select

    parts = _parts(state.object_store, message_id)
    if message_id in _allowed or not parts:
        return
    with state.session() as session:
        size = session.scalar(
            select(func.sum(func.length(StoredObject.content))).where(StoredObject.object_id.in_(parts))
        )
    _remembered(_allowed, message_id, bytes_allowed(int(size or 0)))


def _allowance(message_id: str) -> int:
    return _allowed.get(message_id, bytes_allowed(0))


def _objects_in(tree: Any) -> int:
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

    return sum(1 for _ in iterate_object_tree(tree))


def _end_session(state: Any, session_id: str) -> None:
    """Flower keeps the row of a session as long as the run."""
    from flwr.supercore.state.schema.corestate_models import ObjectPushSession
    from sqlalchemy import delete

    with state.session() as session:
        session.execute(delete(ObjectPushSession).where(ObjectPushSession.session_id == session_id))


def _remembered(known: dict[str, Any], key: str, value: Any) -> Any:
    """The value under a key, which is set if need be; the oldest beyond MOST_KNOWN are forgotten."""
    while key not in known and len(known) >= MOST_KNOWN:
        known.pop(next(iter(known)), None)
    return known.setdefault(key, value)


def _refuse(why: str) -> NoReturn:
    from fastapi import HTTPException

    raise HTTPException(status_code=403, detail=why)


def _requests_to(state: Any, node_id: int) -> list[str]:
    from flwr.supercore.state.schema.linkstate_models import MessageIns
    from flwr.supercore.utils import uint64_to_int64
    from sqlalchemy import select

    found = select(MessageIns.message_id).where(MessageIns.dst_node_id == uint64_to_int64(node_id))
    with state.session() as session:
        newest = found.order_by(MessageIns.created_at.desc()).limit(MOST_MESSAGES)
        return [str(each) for each in session.scalars(newest).all()]


def _is_part(state: Any, object_id: str, message_ids: list[str]) -> bool:
    return any(object_id in _parts(state.object_store, message_id) for message_id in message_ids)


def _parts(store: Any, message_id: str) -> frozenset[str]:
    """Ids of all objects of a message; empty for one that is no longer stored."""
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
    from flwr.supercore.object_store import NoObjectInStoreError

    if message_id not in _known_parts:
        try:
            tree = store.get_object_tree(message_id)
        except NoObjectInStoreError:
            return frozenset()
        _remembered(_known_parts, message_id, frozenset(str(part.object_id) for part in iterate_object_tree(tree)))
    return _known_parts.get(message_id, frozenset())
