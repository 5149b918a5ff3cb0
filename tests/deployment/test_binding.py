"""A node acts at the SuperLink in its own name only: Flower's own handlers and database, with and without our
wrappers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi import HTTPException
from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.superlink.servicer.fleet import fleet_handlers
from superlink_state import Asked, message

from fedfinlora.deployment.binding import MOST_SESSIONS, bound_confirm, bound_pull, bound_push, bound_put
from fedfinlora.wire.limits import SLACK_BYTES

SUPERLINK = 1
push = bound_push(fleet_handlers.push_messages)
confirm = bound_confirm(fleet_handlers.confirm_message_received)
pull = bound_pull(fleet_handlers.pull_object)
put = bound_put(fleet_handlers.push_object)


class Two:
    """A SuperLink's state with north, which was sent three requests, and east, which was sent none; the run is
    running.
    """

    def __init__(self, place: Path) -> None:
        self.asked = Asked(place)
        self.state, self.run, self.north = self.asked.state, self.asked.run, self.asked.node
        self.east = self.state.create_node("", "", b"other key", 60.0)

    def reply(self, sender: int, answers: str) -> Any:
        return message(self.run, sender, SUPERLINK, answers)

    def push(self, node: int, reply: Any, handler: Any = push) -> Any:
        heads, trees = [message_to_proto(reply)], [get_object_tree(reply)]
        asked = PushMessagesRequest(node=Node(node_id=node), messages_list=heads, message_object_trees=trees)
        return handler(request=asked, state=self.state)

    def head(self, node: int, **more: str) -> dict[str, Any]:
        return {"node": Node(node_id=node), "run_id": self.run, **more}


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Two:
    monkeypatch.setattr(fleet_handlers, "check_abort", lambda *_: None)  # the run of this state was never started
    return Two(tmp_path)


def refused(call: Any, *words: Any, **more: Any) -> str:
    with pytest.raises(HTTPException) as error:
        call(*words, **more)
    assert error.value.status_code == 403
    return str(error.value.detail)


def test_a_node_cannot_reply_for_another_even_if_it_knows_the_request(two: Two) -> None:
    forged = two.reply(two.north, two.asked.waiting)
    assert "names another node" in refused(two.push, two.east, forged)
    assert two.asked.hears(two.asked.waiting) is None
    assert two.push(two.east, forged, fleet_handlers.push_messages).objects_to_push, (
        "if Flower refuses it, this code can go"
    )


def test_a_node_does_not_answer_another_nodes_request_in_its_own_name(two: Two) -> None:
    assert not two.push(two.east, two.reply(two.east, two.asked.waiting)).objects_to_push
    assert two.asked.hears(two.asked.waiting) is None


def test_what_answers_nothing_is_not_taken(two: Two) -> None:
    assert "answers no request" in refused(two.push, two.east, two.reply(two.east, ""))


@pytest.mark.parametrize("count", [0, 2])
def test_a_push_has_one_message(two: Two, count: int) -> None:
    reply = two.reply(two.north, two.asked.waiting)
    heads, trees = [message_to_proto(reply)] * count, [get_object_tree(reply)] * count
    asked = PushMessagesRequest(node=Node(node_id=two.north), messages_list=heads, message_object_trees=trees)
    assert "one message" in refused(push, request=asked, state=two.state)


def test_a_node_deletes_no_request_of_another(two: Two) -> None:
    store = two.state.object_store
    theirs = ConfirmMessageReceivedRequest(**two.head(two.east, message_object_id=two.asked.waiting))
    assert "not sent to this node" in refused(confirm, request=theirs, state=two.state, store=store)
    assert store.get(two.asked.waiting)
    own = ConfirmMessageReceivedRequest(**two.head(two.north, message_object_id=two.asked.waiting))
    confirm(request=own, state=two.state, store=store)
    assert store.get(two.asked.waiting) is None


def test_a_node_pulls_the_parts_of_its_own_requests_only(two: Two) -> None:
    own = PullObjectRequest(**two.head(two.north, object_id=two.asked.waiting))
    assert pull(request=own, state=two.state).object_available
    theirs = PullObjectRequest(**two.head(two.east, object_id=two.asked.waiting))
    assert "no message to this node" in refused(pull, request=theirs, state=two.state)
    assert fleet_handlers.pull_object(request=theirs, state=two.state).object_available, "if not, this code can go"


def test_a_node_does_not_pull_what_another_has_answered(two: Two) -> None:
    reply = two.reply(two.north, two.asked.waiting)
    answer, parts = two.push(two.north, reply), get_all_nested_objects(reply)
    assert answer.objects_to_push
    for name in answer.objects_to_push:
        head, content = two.head(two.north, object_id=name), parts[name].deflate()
        assert put(
            request=PushObjectRequest(**head, session_id=answer.session_id, object_content=content), state=two.state
        ).stored
    theirs = PullObjectRequest(**two.head(two.east, object_id=reply.object_id))
    assert "no message to this node" in refused(pull, request=theirs, state=two.state)


def test_a_flood_of_bogus_answers_does_not_end_another_nodes_upload(two: Two) -> None:
    """Neither answers to nothing, which are not remembered, nor many sessions of one node, which push out its own older
    ones.
    """
    reply = two.reply(two.north, two.asked.waiting)
    answer, parts = two.push(two.north, reply), get_all_nested_objects(reply)
    for _ in range(MOST_SESSIONS + 10):
        two.push(two.east, two.reply(two.east, "nothing that was ever asked"))
    name = answer.objects_to_push[0]
    head, content = two.head(two.north, object_id=name), parts[name].deflate()
    assert put(
        request=PushObjectRequest(**head, session_id=answer.session_id, object_content=content), state=two.state
    ).stored
    bogus = two.push(two.east, two.reply(two.east, "nothing that was ever asked")).session_id
    own = PushObjectRequest(**two.head(two.east, object_id=name), session_id=bogus, object_content=content)
    assert "no message of this node" in refused(put, request=own, state=two.state)


def test_a_node_pushes_the_parts_of_its_own_replies_only(two: Two) -> None:
    reply = two.reply(two.north, two.asked.waiting)
    session = two.push(two.north, reply).session_id
    for given in (session, ""):
        theirs = PushObjectRequest(
            **two.head(two.east, object_id=reply.object_id), session_id=given, object_content=reply.deflate()
        )
        assert "no message of this node" in refused(put, request=theirs, state=two.state)


def sessions(two: Two) -> int:
    """Rows of push sessions in Flower's database."""
    from flwr.supercore.state.schema.corestate_models import ObjectPushSession
    from sqlalchemy import func, select

    with two.state.session() as session:
        return int(session.scalar(select(func.count()).select_from(ObjectPushSession)))


def test_pushes_that_answer_nothing_leave_no_row_in_flowers_database(two: Two) -> None:
    """Replies without a request, and the second and third to one request."""
    two.push(two.east, two.reply(two.east, "nothing"), fleet_handlers.push_messages)
    assert sessions(two) == 1, "if Flower leaves none, this code can go"
    for _ in range(20):
        two.push(two.east, two.reply(two.east, "nothing that was ever asked"))
    assert sessions(two) == 1
    assert two.push(two.north, two.reply(two.north, two.asked.waiting)).objects_to_push
    for _ in range(20):
        two.push(two.north, two.reply(two.north, two.asked.waiting))
    assert sessions(two) == 2


def large_reply(two: Two, size_bytes: int) -> Any:
    """North's reply with so many bytes, in parts of 512 KiB."""
    parts = {f"part-{number}": ConfigRecord({"a": bytes([number]) * 2**19}) for number in range(size_bytes // 2**19)}
    return message(two.run, two.north, SUPERLINK, two.asked.waiting, RecordDict(parts))


@pytest.mark.parametrize("confirms", [True, False])
def test_reply_parts_are_limited_to_the_request_size_and_a_mebibyte(two: Two, confirms: bool) -> None:
    """So a bank does not fill the SuperLink's disk; another's reply is accepted in the meantime and afterwards."""
    if confirms:
        two_asked = ConfirmMessageReceivedRequest(**two.head(two.north, message_object_id=two.asked.waiting))
        confirm(request=two_asked, state=two.state, store=two.state.object_store)
    reply = large_reply(two, 2**23)
    answer, parts = two.push(two.north, reply), get_all_nested_objects(reply)
    taken, refusals = 0, []
    for name in answer.objects_to_push:
        content = parts[name].deflate()
        asked = PushObjectRequest(
            **two.head(two.north, object_id=name), session_id=answer.session_id, object_content=content
        )
        try:
            taken += len(content) * put(request=asked, state=two.state).stored
            put(request=asked, state=two.state)  # once more, as after a lost answer: it counts once
        except HTTPException as error:
            refusals.append(str(error.detail))
    assert SLACK_BYTES // 2 <= taken < 2 * SLACK_BYTES
    assert refusals
    assert all("The reply has more than" in each for each in refusals)


def test_a_reply_in_a_great_many_pieces_is_refused(two: Two) -> None:
    records = {f"record-{number}": ConfigRecord({"a": number}) for number in range(200)}
    reply = message(two.run, two.north, SUPERLINK, two.asked.waiting, RecordDict(records))
    assert "too many pieces" in refused(two.push, two.north, reply)
