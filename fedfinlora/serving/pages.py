"""Keep web pages out of `serve`, which has no password: any page in a browser can reach a port of its machine.

A browser says in `Origin` which page asks, and in `Host` by which name it found the server. A page may ask only where
it lies on this machine itself (a local chat client); a foreign name that was made to point here (DNS rebinding) is no
name of this server. Programs send no `Origin`.
"""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

LOCAL_PAGES = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
"""Origins whose pages may read answers."""


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, which nothing else can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_of(address: str) -> str:
    """The host in `host:port`, `[address]:port` or a URL; "" where there is none."""
    try:
        return urlsplit(address if "//" in address else f"//{address}").hostname or ""
    except ValueError:
        return ""


class LocalPagesOnly:
    """ASGI middleware: 403 for a page from elsewhere and, on loopback, for another name than this machine's."""

    def __init__(self, app: Any, only_loopback: bool) -> None:
        self._app = app
        self._only_loopback = only_loopback

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 403 or hand the request on."""
        from starlette.responses import JSONResponse

        refused = self._refusal(scope) if scope["type"] == "http" else ""
        error = {"message": refused, "type": "invalid_request_error", "code": 403}
        answer = JSONResponse({"error": error}, 403) if refused else self._app
        await answer(scope, receive, send)

    def _refusal(self, scope: Any) -> str:
        from starlette.datastructures import Headers

        headers = Headers(scope=scope)
        origin, name = headers.get("origin"), host_of(headers.get("host", ""))
        if origin is not None and not is_loopback(host_of(origin)):
            return f"Web pages of {origin[:80]!r} may not ask this server: it has no password."
        if self._only_loopback and not is_loopback(name):
            return f"This server is not {name[:80]!r}. Ask it as 127.0.0.1."
        return ""
