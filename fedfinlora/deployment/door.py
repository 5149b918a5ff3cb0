"""The SuperLink's two listeners: the public door, for banks alone, and the inner one, for the coordinator's own user.

Flower serves its three interfaces at one address. Here the public address serves what a SuperNode needs of the Fleet
interface, and /health. Who connects must show a certificate of the consortium's authority for an enrolled bank, and
sign requests with its key. This is looked up at each request, so a revoked bank is out at its next one. The inner
address, on loopback, serves everything to processes of the user who runs the SuperLink
(`fedfinlora.deployment.own_user`).

Connections are few and cheap: one without a certificate lives for HANDSHAKE_S at most, a network has the newest
MOST_GREETED of them, a bank MOST_OF_A_BANK, and one that asks nothing is closed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fedfinlora.deployment.certificates import common_name, openssh
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

HEAD_S = 20.0
"""Seconds in which the head of a request must come. A SuperNode connects when it has something to ask."""
BODY_S = 300.0
"""Seconds in which the body of a request must come: a piece of 512 KiB needs 140 at 0.03 Mbit/s."""
MOST_HEAD_BYTES = 2**16
"""Of a request's address and headers; a SuperNode's have 1 KiB."""
MOST_OF_A_BANK = 16
"""Open connections of one bank: four are in use, and a cut line may leave some behind."""

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
    """The ASGI application of the public listener: `app` for the banks in `enrolled` (NAME.pub)."""

    def __init__(self, app: Any, enrolled: Path) -> None:
        self._app, self._enrolled = app, enrolled
        self.open: Counter[str] = Counter()
        """Bank -> its open connections."""

    async def serve(self, peer: Peer, scope: Scope, receive: Receive, send: Send) -> None:
        """One request on a connection of `peer`'s."""
        if not self.knows(peer):
            await _refuse(
                send, 401, f"The coordinator does not know the certificate of {peer.name!a:.80}, or has revoked it."
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
