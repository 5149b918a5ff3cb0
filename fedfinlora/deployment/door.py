"""The SuperLink's two listeners: the public door, which is for banks alone, and the inner one, which is for the
coordinator's own user.

Flower serves its three interfaces at one address. Here the public address serves what a SuperNode needs of the Fleet
interface, and /health; everything else is 404 there. Whoever connects must show a certificate of the consortium's
authority for an enrolled bank, and sign his requests, as Flower wants it, with the key of that very certificate. This
is looked up at each request, so that a revoked bank is out at its next one. The inner address, on loopback, serves
everything to processes of the user who runs the SuperLink (`fedfinlora.deployment.own_user`).

Connections are few and cheap: one without a certificate lives for HANDSHAKE_S at most, a network has the newest
MOST_GREETED of them, a bank MOST_OF_A_BANK, and one that asks nothing is closed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import ipaddress
import logging
import resource
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fedfinlora.deployment.certificates import CA_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY, common_name, openssh
from fedfinlora.wire.messages import BANK_NAME

log = logging.getLogger("fedfinlora.door")

HEALTH = "/health"
FLEET = "/v1/fleet/"
OPEN_PATHS = frozenset(
    {HEALTH}
    | {
        f"{FLEET}{name}"
        for name in (
            "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "get-run",
            "get-fab", "push-object", "pull-object",
            "confirm-message-received",
        )
    }
)  # fmt: skip
"""What the public listener serves. Banks are registered by the coordinator, so that not all of the Fleet interface is
needed.
"""

HANDSHAKE_S = 10.0
"""Seconds in which a connection must show its certificate: ten packets there and back on the worst lines."""
HEAD_S = 20.0
"""Seconds in which the head of a request must come. A SuperNode connects when it has something to ask."""
BODY_S = 300.0
"""Seconds in which the body of a request must come: a piece of 512 KiB needs 140 at 0.03 Mbit/s, far below what Flower
waits for.
"""
MOST_HEAD_BYTES = 2**16
"""Of a request's address and headers; a SuperNode's have 1 KiB."""
MOST_OPEN = 4096
"""Connections to the public listener. A bank has up to four at a time: 1,000 banks."""
MOST_GREETED = 32
"""Connections of one network that have not shown their certificate yet, the newest; a bank has at most four."""
MOST_GREETED_IN_ALL = 512
MOST_OF_A_BANK = 16
"""Open connections of one bank: four are in use, and a cut line may leave some behind."""
MOST_INNER = 1024
"""Connections to the inner listener: two for each task of each run."""
MOST_FILES = 65536
"""Open files that the process asks the system for."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Peer:
    """What the certificate of a connection says."""

    name: str
    key: bytes
    """Public, in OpenSSH's form."""
    header: bytes
    """The same as Flower's clients send it, decoded."""
    ends: datetime


def peer_of(certificate: bytes) -> Peer:
    """The peer that shows this certificate (DER), which TLS has verified."""
    found = x509.load_der_x509_certificate(certificate)
    key: Any = found.public_key()
    flowers = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return Peer(common_name(found), openssh(key), flowers, found.not_valid_after_utc)


class Door:
    """The ASGI application of the public listener: `app` for enrolled banks, who are looked up in `enrolled` (NAME.pub)
    at each request.
    """

    def __init__(self, app: Any, enrolled: Path) -> None:
        self._app, self._enrolled = app, enrolled
        self.open: Counter[str] = Counter()
        """Bank -> its open connections."""

    async def serve(self, peer: Peer, scope: Scope, receive: Receive, send: Send) -> None:
        """One request on a connection of `peer`'s."""
        if not self.knows(peer):
            await _refuse(
                send, 401, (f"The coordinator does not know the certificate of {peer.name!a:.80}, or has revoked it.")
            )
        elif scope["path"] not in OPEN_PATHS:
            await _refuse(send, 404, "Not Found")
        elif scope["path"] != HEALTH and _signed_by(scope) != peer.header:
            await _refuse(send, 401, "The request is not signed with the key of the connection's certificate.")
        else:
            await self._app(scope, receive, send)

    def knows(self, peer: Peer) -> bool:
        """Whether a bank of this name is enrolled now, with this key, and its certificate has not ended."""
        if not BANK_NAME.fullmatch(peer.name) or peer.ends <= datetime.now(UTC):
            return False
        try:
            return (self._enrolled / f"{peer.name}.pub").read_bytes().split()[:2] == peer.key.split()[:2]
        except OSError:
            return False


def _signed_by(scope: Scope) -> bytes:
    """The public key that a request names in Flower's header; b"" where it names none, or several."""
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER

    name = FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode()
    found = [value for key, value in scope["headers"] if key == name]
    try:
        return base64.b64decode(found[0], validate=True) if len(found) == 1 else b""
    except (binascii.Error, ValueError):
        return b""


async def _refuse(send: Send, status: int, words: str) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": words.encode("ascii", "replace")})


class Visit(HttpToolsProtocol):
    """One connection at the public door."""

    def __init__(self, door: Door, **settings: Any) -> None:
        super().__init__(**settings)
        self._door = door
        self._peer: Peer | None = None
        self._due: asyncio.TimerHandle | None = None
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        try:
            self._peer = peer_of(transport.get_extra_info("ssl_object").getpeercert(True))
        except (ValueError, TypeError, AttributeError) as error:
            log.warning("a certificate cannot be read (%s)", type(error).__name__)
            transport.abort()
            return
        self._door.open[self._peer.name] += 1
        if self._door.open[self._peer.name] > MOST_OF_A_BANK:
            log.warning(
                "%s has more than %d open connections; a new one is closed", ascii(self._peer.name), MOST_OF_A_BANK
            )
            transport.abort()
            return
        self.app = partial(self._door.serve, self._peer)
        self._expect(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        if self._peer is not None:
            self._door.open[self._peer.name] -= 1
            self._door.open += Counter()  # drop those at zero
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._due is None and (self.cycle is None or self.cycle.response_complete):
            self._expect(HEAD_S)
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._counts(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._counts(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._expect(BODY_S)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._expect(None)
        super().on_message_complete()

    def _counts(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > MOST_HEAD_BYTES:
            self.transport.abort()

    def _expect(self, seconds: float | None) -> None:
        """Close the connection unless this is called again within so many seconds."""
        if self._due is not None:
            self._due.cancel()
        self._due = self.loop.call_later(seconds, self.transport.abort) if seconds else None


def network_of(address: str) -> str:
    """Whose connections are counted together: an IPv4 address, or the 64 bits of an IPv6 address that a customer is
    given whole.

    >>> network_of("192.0.2.7"), network_of("2001:db8::7"), network_of("::ffff:192.0.2.7")
    ('192.0.2.7', '2001:db8::', '192.0.2.7')
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or ipaddress.IPv6Network((found, 64), strict=False).network_address)


class Listener(uvicorn.Server):
    """uvicorn's server, but for how it takes connections: `admits` sees each, in a thread, before a byte is read, and
    so many may be greeted and open at once.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        admits: Callable[[socket.socket], bool] | None = None,
        most_open: int = MOST_INNER,
        protocol: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(config)
        self._admits, self._most_open, self._protocol = admits, most_open, protocol
        self._greeted: dict[asyncio.Task[None], str] = {}
        """Each TLS handshake -> the network that it is with, the oldest first."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, with our own way to take connections."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            self.should_exit = True
            return
        host, port = self.config.host, self.config.port
        try:
            [family, *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            listening = socket.create_server((host, port), family=family, backlog=self.config.backlog)
        except OSError as error:
            logging.getLogger("uvicorn.error").error("%s port %d: %s", host, port, error)
            await self.lifespan.shutdown()
            sys.exit(1)
        listening.setblocking(False)
        self.servers: list[Any] = [
            _Accepting(listening, asyncio.get_running_loop().create_task(self._accept(listening)))
        ]
        self._log_started_message([listening])
        self.started = True

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except OSError as error:  # the caller has left, or no file is left
                log.warning("a connection was not taken: %s", error)
                await asyncio.sleep(0.1)
                continue
            try:
                taken = len(self.server_state.connections) + len(self._greeted) < self._most_open
                if taken and self._admits is not None:  # in a thread: it may have to read a long table
                    taken = await loop.run_in_executor(None, self._admits, connection)
            except OSError:
                taken = False
            if not taken:
                connection.close()
                continue
            network = network_of(str(address[0]))
            self._makes_room(network)
            task = loop.create_task(self._greet(connection))
            self._greeted[task] = network
            task.add_done_callback(lambda done: self._greeted.pop(done, None))

    def _makes_room(self, network: str) -> None:
        """End the oldest handshakes where there are too many: who has a certificate shows it at once, and who is silent
        gives way.
        """
        own = [task for task, other in self._greeted.items() if other == network]
        ending = own[: max(0, len(own) - MOST_GREETED + 1)]
        if len(self._greeted) - len(ending) >= MOST_GREETED_IN_ALL:
            ending.append(next(task for task in self._greeted if task not in ending))
        for task in ending:
            self._greeted.pop(task)
            task.cancel()

    async def _greet(self, connection: socket.socket) -> None:
        """The TLS handshake, after which the connection is its protocol's."""
        loop = asyncio.get_running_loop()
        limit = HANDSHAKE_S if self.config.ssl else None
        try:
            await loop.connect_accepted_socket(self._made, connection, ssl=self.config.ssl, ssl_handshake_timeout=limit)
        except (
            OSError,
            ValueError,
            asyncio.CancelledError,
        ):  # ssl.SSLError, a lost connection and a timeout among them
            connection.close()

    def _made(self) -> Any:
        make: Callable[..., Any] = self._protocol or self.config.http_protocol_class
        return make(
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=asyncio.get_running_loop(),
        )


class _Accepting:
    """What uvicorn closes when it ends."""

    def __init__(self, listening: socket.socket, task: asyncio.Task[None]) -> None:
        self._listening, self._task = listening, task

    def close(self) -> None:
        self._task.cancel()
        self._listening.close()

    async def wait_closed(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


class _Inner(Listener):
    """The inner listener, which hears the signals; `outer` ends with it."""

    outer: uvicorn.Server

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self.outer.should_exit, self.outer.force_exit = self.should_exit, self.force_exit


class _Outer(Listener):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(
    inner: uvicorn.Config, app: Any, home: Path, host: str, port: int, admits: Callable[[socket.socket], bool]
) -> None:
    """Run both listeners until one ends: `inner`, whose connections `admits` looks at, and the public one of the
    coordinator in `home`, which serves `app`.
    """
    raise_file_limit()
    door = Door(app, home / "enrolled")
    context = public_context(home)
    config = uvicorn.Config(
        cast(Any, door), host=host, port=port, interface="asgi3", lifespan="off", ws="none", proxy_headers=False,
            server_header=False, log_config=None,
        access_log=False,
        # a line for each request would make superlink.log grow with every question whether there is something to do
        ssl_context_factory=lambda _config, _default: context,
    )  # fmt: skip
    most_open = min(MOST_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
    outer = _Outer(config, most_open=most_open, protocol=partial(Visit, door))
    within = _Inner(inner, admits)
    within.outer = outer

    async def both() -> None:
        servers = [asyncio.ensure_future(within.serve()), asyncio.ensure_future(outer.serve())]
        await asyncio.wait(servers, return_when=asyncio.FIRST_COMPLETED)
        within.should_exit = outer.should_exit = True
        await asyncio.gather(*servers)

    asyncio.run(both())


def public_context(home: Path) -> ssl.SSLContext:
    """TLS 1.3 with the server's certificate, for clients with a certificate of the consortium's authority. No session
    is resumed: each connection shows it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.load_cert_chain(home / SERVER_CERTIFICATE, home / SERVER_KEY)
    context.load_verify_locations(home / CA_CERTIFICATE)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["http/1.1"])
    return context


def raise_file_limit() -> None:
    """Let the process have as many open files as the system allows it, up to MOST_FILES."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
