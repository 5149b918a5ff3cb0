"""Start Flower's SuperLink or SuperNode with some of its habits changed: `python -P flower.py superlink|supernode
OPTIONS`.

Either ends with the process that started it, so that a killed `coordinator start` or `bank start` leaves nobody behind.

The SuperLink takes request bodies of any size into memory; here one over MOST_BYTES is refused with status 413 before
it is read. Flower sends an array in pieces, one request each, and an app bundle has 10 MiB at most, so nothing honest
is as large.

Flower's pieces have 5 MiB, two at a time, and it waits 30 seconds for the answer to one: on a line of 1 Mbit/s they
never arrive, and are sent again for ever. Here they have PIECE_BYTES. A piece whose answer was lost is sent again, to a
SuperLink (1.41) that says that it does not want it, whereupon the SuperNode throws its answer away; here what is there
already counts as taken (`stored_again`). A request that is lost on its way to the bank counts as handed out, and is
waited for; here it is handed out until the bank confirms it (`offered_again`). An answer that is cut off may go on
after as long a cut as its bank may be unheard.

The SuperNode (1.41) retries for ever when the link fails, except where the failure's text has "ssl" or "tls" in it:
then it throws its answer away, or ends. A connection that is dropped gives just such a text; here it is retried like
every other lost connection, and a certificate that does not verify stays final.

It also runs whatever app bundle it is sent. Here the bank's gate looks at each first (`fedfinlora.deployment.gate`);
the coordinator has one for the runs that it is asked to start. The SuperNode shows the bank's certificate, and its
loopback interface is closed to other users; the SuperLink listens twice (`fedfinlora.deployment.door`), and a node acts
there in its own name only (`fedfinlora.deployment.binding`).

A SuperNode that was killed counts as connected for another four minutes, and for so long its key is not let in. Here it
keeps its node id in the file node.id of its folder, and who starts in the same folder with the same key first ends what
the killed one left. What the killed one had been asked, the SuperLink (1.41) would wait for as long as its successor is
there; here letting a node in closes what an earlier process of it has taken and not answered (`forgetting`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

NODE_ID = Path("node.id")
MOST_BYTES = 16 * 2**20
PROMISED_S = 120
"""A SuperNode shows a sign of life every 20 seconds. The SuperLink gives a bank up after twice what the bank promises:
Flower's own 30 seconds make a link that is cut for a minute cost the bank its round.
"""
PIECE_BYTES = 2**19
"""Bytes of a piece of an array. Two at a time take 8.4 seconds at 1 Mbit/s. Each costs the SuperLink about 10 ms, so
smaller ones would hold up fast lines.
"""
MOST_KNOWN = 4096
"""Requests whose offers are counted, the newest."""
MOST_OFFERS = 10
"""Times that a request is handed out again. One that a bank can never take, as of a run that has ended, stands in the
way of its next one for so long.
"""
PIECES = {"FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(PIECE_BYTES)}
"""What must be in the environment before Flower is imported."""
LOST = ("eof", "timed out", "closed", "close_notify")
"""In the text of a TLS error: the connection went away. All others speak of the peer itself."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Limited:
    """An ASGI application that is spared large bodies."""

    def __init__(self, app: Any, most_bytes: int = MOST_BYTES) -> None:
        self._app, self._most_bytes = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self._most_bytes:
            await send({"type": "http.response.start", "status": 413, "headers": [(b"connection", b"close")]})
            await send({"type": "http.response.body", "body": b"The request is too large."})
            return
        taken = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal taken
            part = await receive()
            taken += len(part.get("body", b""))
            return part if taken <= self._most_bytes else {"type": "http.disconnect"}

        await self._app(scope, counted, send)


def stored_again(store_object: Callable[..., bool]) -> Callable[..., bool]:
    """Flower's way to store an object of a message, to which one that is stored already is no failure: its sender may
    not have heard of it.
    """

    def stored(state: Any, run_id: int, session_id: str, object_id: str, content: bytes) -> bool:
        return (
            store_object(state, run_id, session_id, object_id, content) or state.object_store.get(object_id) == content
        )

    return stored


def forgetting(activate_node: Callable[..., bool]) -> Callable[..., bool]:
    """Flower's way to let a node in, by which the requests expire that its former process took along and never
    answered: nobody works on them any more.
    """
    from flwr.supercore.state.schema.linkstate_models import MessageIns
    from sqlalchemy import update

    def activated(state: Any, node_id: int, heartbeat_interval: float) -> bool:
        let_in = activate_node(state, node_id, heartbeat_interval)
        if let_in:
            with state.session() as session:
                session.execute(update(MessageIns).where(*_unanswered(node_id)).values(ttl=0.0))
        return let_in

    return activated


def offered_again(get_message_ins: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """Flower's way to hand a node its requests, by which one comes again, MOST_OFFERS times at most, that the node has
    not confirmed before it asks for the next.

    A SuperNode asks for nothing while it fetches a request, and the SuperLink keeps the request's objects until it has
    confirmed them.
    """
    from flwr.supercore.state.schema.linkstate_models import MessageIns
    from sqlalchemy import select, update

    offers: dict[str, int] = {}

    def handed_out(state: Any, node_id: int, limit: int | None, **chosen: Any) -> list[Any]:
        with state.session() as session:
            for request in session.scalars(select(MessageIns.message_id).where(*_unanswered(node_id))).all():
                if offers.get(request, 0) < MOST_OFFERS and state.object_store.get(request):
                    offers[request] = offers.pop(request, 0) + 1
                    if len(offers) > MOST_KNOWN:
                        del offers[next(iter(offers))]
                    session.execute(update(MessageIns).where(MessageIns.message_id == request).values(delivered_at=""))
        return get_message_ins(state, node_id, limit, **chosen)

    return handed_out


def _unanswered(node_id: int) -> tuple[Any, ...]:
    """Conditions on a request in the SuperLink's database: handed out to the node, and without an answer."""
    from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
    from flwr.supercore.utils import uint64_to_int64
    from sqlalchemy import select

    answers = select(MessageRes.message_id).where(MessageRes.reply_to_message_id == MessageIns.message_id)
    return MessageIns.dst_node_id == uint64_to_int64(node_id), MessageIns.delivered_at != "", ~answers.exists()


def is_lost_link(error: Exception) -> bool:
    """Whether a connection was lost, which time may mend."""
    import httpx

    return isinstance(error, httpx.TransportError) and any(word in str(error).lower() for word in LOST)


def patient(make_invoker: Callable[[], Any]) -> Callable[[], Any]:
    """Flower's maker of retrying callers, whose callers do not give up on a lost link."""

    def made() -> Any:
        invoker = make_invoker()
        gives_up = invoker.should_giveup
        invoker.should_giveup = lambda error: not is_lost_link(error) and gives_up(error)
        return invoker

    return made


def returning(client_class: type[Any]) -> type[Any]:
    """Flower's client of the SuperLink, whose node may take the place of its own former self, and does not tell how
    long it has worked.

    Flower sends the seconds with each answer; a bank's policy may withhold them, and under example-level privacy its
    rows decide them.
    """
    import httpx
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest

    class Returning(client_class):  # type: ignore[misc]
        def ActivateNode(self, request: Any) -> Any:
            try:
                answer = super().ActivateNode(request)
            except httpx.HTTPStatusError as refusal:
                try:
                    self.DeactivateNode(DeactivateNodeRequest(node_id=int(NODE_ID.read_text())))
                    answer = super().ActivateNode(request)
                except (OSError, ValueError, httpx.HTTPError):
                    raise refusal from None
            with contextlib.suppress(OSError):
                NODE_ID.write_text(str(answer.node_id))
            return answer

        def PushMessages(self, request: Any) -> Any:
            request.ClearField("clientapp_runtime_list")
            return super().PushMessages(request)

    return Returning


def presenting(client_class: type[Any]) -> type[Any]:
    """Flower's client of the SuperLink, which shows a bank's certificate. The bank's folder is the present one, or that
    of ca.crt where its path is given.
    """

    class Presenting(client_class):  # type: ignore[misc]
        @classmethod
        def from_server_address(
            cls,
            server_address: str,
            insecure: bool,
            root_certificates: bytes | str | None,
            interceptors: Any,
            **more: Any,
        ) -> Any:
            from fedfinlora.deployment.reach import bank_context

            home = Path(root_certificates).parent if isinstance(root_certificates, str) else Path.cwd()
            return cls(f"https://{server_address}", interceptors=interceptors, verify=bank_context(home), **more)

    return Presenting


def superlink() -> None:
    """Flower's SuperLink at the public door and on loopback, behind `Limited`, with `stored_again`, `offered_again`,
    `forgetting`, nodes bound to their own messages, and a gate.
    """
    from importlib import import_module

    import uvicorn
    from flwr.superlink.cli.flower_superlink import flower_superlink

    _project_first()
    from fedfinlora.deployment import binding
    from fedfinlora.deployment.door import serve
    from fedfinlora.deployment.gate import installed_only
    from fedfinlora.deployment.own_user import is_own
    from fedfinlora.provenance.enrolled import PUBLIC

    for older in ("FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API"):
        os.environ.pop(older, None)  # they would open ports of their own
    sql_corestate: Any = import_module("flwr.supercore.corestate.sql_corestate")
    sql_corestate.SqlCoreState.store_object = stored_again(sql_corestate.SqlCoreState.store_object)
    sql_corestate.OBJECT_PUSH_SESSION_TTL_SECONDS = 2 * PROMISED_S
    sql_linkstate: Any = import_module("flwr.server.superlink.linkstate.sql_linkstate")
    sql_linkstate.SqlLinkState.activate_node = forgetting(sql_linkstate.SqlLinkState.activate_node)
    sql_linkstate.SqlLinkState.get_message_ins = offered_again(sql_linkstate.SqlLinkState.get_message_ins)
    fleet: Any = import_module("flwr.superlink.servicer.fleet.fleet_handlers")
    fleet.push_messages = binding.bound_push(fleet.push_messages)
    fleet.confirm_message_received = binding.bound_confirm(fleet.confirm_message_received)
    fleet.pull_object = binding.bound_pull(fleet.pull_object)
    fleet.push_object = binding.bound_put(fleet.push_object)
    control: Any = import_module("flwr.superlink.servicer.control.control_handlers")
    control.start_run = installed_only(control.start_run)
    host, _, port = os.environ[PUBLIC].rpartition(":")

    def run(app: Any, **settings: Any) -> None:
        limited = Limited(app)
        settings["access_log"] = False
        serve(uvicorn.Config(limited, **settings), limited, Path.cwd(), host, int(port), is_own)

    uvicorn.run = run
    flower_superlink()


def supernode() -> None:
    """Flower's SuperNode with `patient` calls to the SuperLink, `presenting` the bank's certificate, `returning` after
    it was killed, the bank's gate before what it is sent to run, and its own interface closed to other users.
    """
    from importlib import import_module

    import uvicorn
    from flwr.supernode.cli.flower_supernode import flower_supernode

    _project_first()
    from fedfinlora.deployment.door import Listener
    from fedfinlora.deployment.gate import Gate, gated
    from fedfinlora.deployment.own_user import is_own
    from fedfinlora.logs import show_logs

    show_logs()
    gate = Gate(Path.cwd())
    sys.argv += gate.begins()
    fleet_http_connection: Any = import_module("flwr.supernode.fleet_http_connection")
    fleet_http_connection.make_simple_http_retry_invoker = patient(fleet_http_connection.make_simple_http_retry_invoker)
    fleet_http_connection.HEARTBEAT_DEFAULT_INTERVAL = PROMISED_S
    client = presenting(fleet_http_connection.FleetHttpClient)
    fleet_http_connection.FleetHttpClient = gated(returning(client), gate)
    flowers: Any = uvicorn
    flowers.Server = lambda config: Listener(config, is_own)
    flower_supernode()


def _project_first() -> None:
    """Import the project next to this file, whatever else is installed."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


if __name__ == "__main__":
    os.environ.setdefault(
        "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", str(PIECE_BYTES)
    )  # before Flower is imported; also for what it starts
    from flwr.supercore.app_utils import start_parent_process_monitor

    program = {"superlink": superlink, "supernode": supernode}[sys.argv.pop(1)]
    sys.argv[0] = f"flower-{program.__name__}"
    start_parent_process_monitor(os.getppid())
    program()
