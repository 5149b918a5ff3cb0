"""What fedfinlora.deployment.flower changes of Flower's programs, part by part; tests/test_faults.py has the whole."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.superlink.federation import NoOpFederationManager

from fedfinlora.deployment.flower import Limited, forgetting, is_lost_link, patient, returning, stored_again
from fedfinlora.deployment.reach import clock_trouble
from server_app.rounds import MESSAGE_UNAVAILABLE


def asked(parts: list[bytes], headers: list[tuple[bytes, bytes]]) -> tuple[list[bytes], list[int]]:
    """(What the application behind a limit of 10 bytes got to read, the status that was sent)."""
    read: list[bytes] = []
    sent: list[int] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        for _ in parts:
            part = await receive()
            read.append(part.get("body", b"gone"))

    waiting = iter(parts)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": next(waiting), "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("status", 0))

    asyncio.run(Limited(application, 10)({"type": "http", "headers": headers}, receive, send))
    return read, sent


def test_a_body_within_the_limit_is_read() -> None:
    assert asked([b"12345", b"67890"], [(b"content-length", b"10")]) == ([b"12345", b"67890"], [])


@pytest.mark.parametrize("length", [b"11", b"-1", b"many"])
def test_a_body_that_announces_too_much_is_not_read(length: bytes) -> None:
    assert asked([b"1"], [(b"content-length", length)]) == ([], [413, 0])


def test_a_body_that_announces_nothing_ends_at_the_limit() -> None:
    assert asked([b"12345", b"67890", b"x"], []) == ([b"12345", b"67890", b"gone"], [])


LOST = (
    httpx.ReadError("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol (_ssl.c:1006)"),
    httpx.ConnectTimeout("_ssl.c:989: The handshake operation timed out"),
)
FINAL = (
    httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate in chain"),
    httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)"),
)


@pytest.mark.parametrize("error", LOST)
def test_a_dropped_connection_is_tried_again_where_flower_gives_up(error: Exception) -> None:
    assert is_lost_link(error)
    assert make_simple_http_retry_invoker().should_giveup(error)  # if not, this code can go
    assert not patient(make_simple_http_retry_invoker)().should_giveup(error)


@pytest.mark.parametrize("error", FINAL)
def test_a_peer_that_is_wrong_stays_final(error: Exception) -> None:
    assert patient(make_simple_http_retry_invoker)().should_giveup(error)


def test_a_piece_whose_answer_was_lost_is_taken_again_where_flower_refuses_it(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'state.db'}"
    state = LinkStateFactory(database, NoOpFederationManager(), ObjectStoreFactory(database)).state()
    ours = stored_again(type(state).store_object)
    piece, run = ConfigRecord({"a": 1}), 5
    session = state.start_session(run)
    state.preregister_object_tree(get_object_tree(RecordDict({"piece": piece})), session)
    assert ours(state, run, session, piece.object_id, piece.deflate())
    assert not state.store_object(run, session, piece.object_id, piece.deflate())  # if not, this code can go
    assert ours(state, run, session, piece.object_id, piece.deflate())
    assert not ours(state, run, session, piece.object_id, b"other bytes")
    assert not ours(state, run, session, ConfigRecord({"a": 2}).object_id, b"never announced")


class Client:
    """Lets a node in when nobody with its key is in."""

    def __init__(self, inside: int | None, own: int = 7) -> None:
        self.inside, self.own = inside, own

    def ActivateNode(self, request: Any) -> Any:
        if self.inside is not None:
            raise httpx.HTTPStatusError("in", request=httpx.Request("POST", "https://c"), response=httpx.Response(412))
        self.inside = self.own
        return type("Answer", (), {"node_id": self.own})

    def DeactivateNode(self, request: Any) -> None:
        if request.node_id != self.own:
            raise httpx.HTTPStatusError("no", request=httpx.Request("POST", "https://c"), response=httpx.Response(401))
        self.inside = None

    def PushMessages(self, request: Any) -> Any:
        return request


def test_how_long_a_bank_has_worked_does_not_leave_it() -> None:
    request = PushMessagesRequest(clientapp_runtime_list=[12.5])
    assert returning(Client)(inside=None).PushMessages(request) == PushMessagesRequest()


def test_a_killed_node_takes_its_own_place_and_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(httpx.HTTPStatusError, match="in"):
        returning(Client)(inside=7).ActivateNode(None)  # a stranger's folder has no node id
    returning(Client)(inside=None).ActivateNode(None)
    assert (tmp_path / "node.id").read_text() == "7"
    assert returning(Client)(inside=7).ActivateNode(None).node_id == 7
    with pytest.raises(httpx.HTTPStatusError, match="in"):
        returning(Client)(inside=8, own=8).ActivateNode(None)


@pytest.mark.parametrize(
    ("ahead_s", "said"), [(0, ""), (5, ""), (-300, ""), (60, "1.0 minutes ahead of"), (-360, "6.0 minutes behind")]
)
def test_a_clock_is_judged_as_flower_judges_it(ahead_s: float, said: str) -> None:
    assert said in clock_trouble(ahead_s)
    assert bool(clock_trouble(ahead_s)) == bool(said)


def message(name: str, run: int, source: int, destination: int, answers: str = "") -> Message:
    """An empty message as Flower's SuperLink stores it."""
    metadata = Metadata(
        run_id=run, message_id=name, src_node_id=source, dst_node_id=destination, reply_to_message_id=answers, group_id="", created_at=time.time(),
        ttl=60.0, message_type="train",
    )  # fmt: skip
    return make_message(metadata=metadata, content=RecordDict())


def asked_of(state: Any) -> tuple[int, int, list[str]]:
    """(Node, run, three requests), of which a connected node has taken along the first two and answered the second."""
    run = state.create_run("", "", "", {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP)
    node = state.create_node("", "", b"key", 60.0)
    assert state.activate_node(node, 60.0)
    for number in range(3):
        assert state.store_message_ins(message(f"request {number}", run, SUPERLINK_NODE_ID, node))
    for _ in range(2):
        [taken] = state.get_message_ins(node, 1)
    assert state.store_message_res(message("reply", run, node, SUPERLINK_NODE_ID, taken.metadata.message_id))
    return node, run, ["request 0", "request 1", "request 2"]


def test_what_a_former_process_took_along_and_did_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'state.db'}"
    state: Any = LinkStateFactory(database, NoOpFederationManager(), ObjectStoreFactory(database)).state()
    node, run, (taken, answered, waiting) = asked_of(state)
    ours = forgetting(type(state).activate_node)
    assert not ours(state, node, 60.0), "it is still connected"
    assert state.deactivate_node(node)
    assert state.activate_node(node, 60.0)
    assert state.get_message_res({taken}, run) == []  # if not, this code can go
    assert state.deactivate_node(node)
    assert ours(state, node, 60.0)
    [lost] = state.get_message_res({taken}, run)
    assert lost.error.code == MESSAGE_UNAVAILABLE
    [reply] = state.get_message_res({answered}, run)
    assert reply.metadata.message_id == "reply"
    assert state.get_message_res({waiting}, run) == []
    [left] = state.get_message_ins(node, None)
    assert left.metadata.message_id == waiting
