"""What fedfinlora.deployment.flower changes of Flower's programs, part by part; tests/deployment/test_faults.py has the
whole.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.superlink.federation import NoOpFederationManager
from superlink_state import Asked

from fedfinlora.deployment.flower_patches.body_limit import Limited
from fedfinlora.deployment.flower_patches.forgetting import forgetting
from fedfinlora.deployment.flower_patches.offered_again import MOST_OFFERS, offered_again
from fedfinlora.deployment.flower_patches.patient import is_lost_link, patient
from fedfinlora.deployment.flower_patches.returning import returning
from fedfinlora.deployment.flower_patches.stored_again import stored_again
from fedfinlora.deployment.reach import clock_trouble
from server_app.exchange import MESSAGE_UNAVAILABLE


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


def test_a_piece_whose_answer_was_lost_is_accepted_again(tmp_path: Path) -> None:
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
    """Lets a node in when no node with its key is in."""

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


def test_a_killed_node_takes_its_own_place_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_requests_that_an_ended_process_took_are_not_waited_for(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    state, node = asked.state, asked.node
    ours = forgetting(type(state).activate_node)
    assert not ours(state, node, 60.0), "it is still connected"
    assert state.deactivate_node(node)
    assert state.activate_node(node, 60.0)
    assert asked.hears(asked.lost) is None  # if not, this code can go
    assert state.deactivate_node(node)
    assert ours(state, node, 60.0)
    assert asked.hears(asked.lost).error.code == MESSAGE_UNAVAILABLE
    assert asked.hears(asked.answered).metadata.message_id == asked.reply.metadata.message_id
    assert asked.hears(asked.waiting) is None
    assert asked.takes(type(state).get_message_ins) == [asked.waiting]


def test_a_request_is_handed_out_until_the_node_confirms_it(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    flowers = type(asked.state).get_message_ins
    ours = offered_again(flowers)
    assert asked.takes(flowers) == [asked.waiting]  # if it is the lost one, this code can go
    assert [asked.takes(ours) for _ in range(2)] == [[asked.lost], [asked.lost]]
    asked.state.object_store.delete(asked.lost)  # as when the node has it
    assert [asked.takes(ours) for _ in range(MOST_OFFERS)] == [[asked.waiting]] * MOST_OFFERS
    assert asked.takes(ours) == [], "not for ever"
