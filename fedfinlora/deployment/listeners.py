"""The SuperLink's two listeners: how connections are accepted, and how many at once (`fedfinlora.deployment.door`)."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import resource
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import uvicorn

from fedfinlora.deployment.certificates import CA_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY
from fedfinlora.deployment.door import Door, Visit, log

HANDSHAKE_S = 10.0
"""Seconds in which a connection must show its certificate: ten packets there and back on the worst lines."""
MOST_OPEN = 4096
"""Connections to the public listener. A bank has up to four at a time: 1,000 banks."""
MOST_GREETED = 32
"""Connections of one network that have not shown their certificate yet, the newest; a bank has at most four."""
MOST_GREETED_IN_ALL = 512
MOST_INNER = 1024
"""Connections to the inner listener: two for each task of each run."""
MOST_FILES = 65536
"""Open files that the process asks the system for."""


def network_of(address: str) -> str:
    """Whose connections are counted together: an IPv4 address, or the 64 bits of an IPv6 address that a customer is
    given.

    >>> network_of("192.0.2.7"), network_of("2001:db8::7"), network_of("::ffff:192.0.2.7")
    ('192.0.2.7', '2001:db8::', '192.0.2.7')
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or ipaddress.IPv6Network((found, 64), strict=False).network_address)


class Listener(uvicorn.Server):
    """uvicorn's server, but for how it takes connections: `admits` sees each, in a thread, before a byte is read."""

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
        """End the oldest handshakes where there are too many: who has a certificate shows it at once."""
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
    """Run both listeners until one ends: `inner`, and the public one of the coordinator in `home` for `app`."""
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
    """TLS 1.3, for clients with a certificate of the consortium's authority. No session is resumed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.load_cert_chain(home / SERVER_CERTIFICATE, home / SERVER_KEY)
    context.load_verify_locations(home / CA_CERTIFICATE)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["http/1.1"])
    return context


def raise_file_limit() -> None:
    """Let the process have as many open files as the system allows, up to MOST_FILES."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
