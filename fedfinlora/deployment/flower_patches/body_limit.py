"""A limit on request bodies, which the SuperLink would read into memory at any size.

One over MOST_BYTES is refused with status 413 before it is read. Flower sends an array in pieces, one request each, and
an app bundle has 10 MiB at most, so no regular request is as large. No thread upstream was found.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

MOST_BYTES = 16 * 2**20

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
