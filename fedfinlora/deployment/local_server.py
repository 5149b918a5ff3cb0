"""A small read-only HTTP server for metrics and the status page: loopback by default, no files, no state."""

from __future__ import annotations

import ipaddress
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import urlsplit

from fedfinlora.errors import UserError

log = logging.getLogger("fedfinlora.watch")
LOOPBACK = "127.0.0.1"
REQUEST_S = 10.0
"""Who connects must say what they want within so many seconds."""
PLAIN = "text/plain; charset=utf-8"
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
NOTHING = "default-src 'none'; frame-ancestors 'none'"


@dataclass(frozen=True)
class Response:
    body: str
    content_type: str = PLAIN
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Security-Policy": NOTHING})


Pages = Mapping[str, Callable[[str], Response]]
"""Path -> what makes its answer from the query string."""


def serve(pages: Pages, port: int, listen: str = LOOPBACK) -> ThreadingHTTPServer:
    """Answer in threads of their own until `close`. UserError where the port cannot be had; 0 takes a free one."""

    class Handler(_Handler):
        answers = pages
        trusts_any_host = not _is_loopback(listen)

    try:
        server = _Server((listen, port), Handler)
    except OSError as error:
        raise UserError(
            f"--metrics-port {port} cannot be had on {listen} ({error.strerror}). Choose another, or 0 for none."
        ) from error
    # By default it looks every half second whether it should end, and `close` waits for that.
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="watch", daemon=True).start()
    return server


def close(server: ThreadingHTTPServer | None) -> None:
    if server is not None:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    answers: ClassVar[Pages] = {}
    trusts_any_host = False
    timeout = REQUEST_S
    server_version, sys_version = "fedfinlora", ""

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        if not self.trusts_any_host and not _is_loopback(self.headers.get("Host", "")):
            # A page in the operator's browser could have its own name point here and read the answer.
            self._send(Response("Ask by an address of this machine, such as 127.0.0.1.\n", status=403))
            return
        make = self.answers.get(asked.path)
        if make is None:
            self._send(Response(f"There is nothing here but {', '.join(self.answers)}.\n", status=404))
            return
        try:
            answer = make(asked.query)
        except (
            Exception
        ) as error:  # what is on disk may be damaged: the page must not end with it, nor show more than the kind
            log.exception("no answer to %s", asked.path)
            answer = Response(f"No answer: {type(error).__name__}. See the log.\n", status=500)
        self._send(answer)

    do_HEAD = do_GET

    def __getattr__(self, name: str) -> Callable[[], None]:
        """Every other method is refused."""
        if name.startswith("do_"):
            return lambda: self._send(Response("This server is read-only.\n", status=405), {"Allow": "GET, HEAD"})
        raise AttributeError(name)

    def _send(self, answer: Response, more: Mapping[str, str] | None = None) -> None:
        body = answer.body.encode("utf-8", "replace")
        self.send_response(answer.status)
        sized = {"Content-Type": answer.content_type, "Content-Length": str(len(body)), "Connection": "close"}
        for name, value in {**HEADERS, **answer.headers, **sized, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A line for each scrape would drown the log."""


def _is_loopback(host: str) -> bool:
    """Whether a listening address or a Host header is this machine's loopback.

    >>> [_is_loopback(host) for host in ("127.0.0.1:9464", "localhost", "[::1]:80", "0.0.0.0", "evil.example:9464", "")]
    [True, True, True, False, False, False]
    """
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
