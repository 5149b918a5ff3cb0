"""What `coordinator start` and `bank start` serve while they run."""

from __future__ import annotations

from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from fedfinlora.deployment.local_server import LOOPBACK, Response, serve


class Listen(NamedTuple):
    """Where to serve it."""

    port: int = 0
    """0 = nowhere."""
    address: str = LOOPBACK


def watch_coordinator(
    home: Path, title: str, healthy: Callable[[], bool], listen: Listen
) -> ThreadingHTTPServer | None:
    """Serve an aggregator's pages. UserError where the port cannot be had."""
    if not listen.port:
        return None
    from fedfinlora.deployment import status_page
    from fedfinlora.deployment.metrics import CoordinatorMetrics, page

    pages = {
        "/": lambda query: status_page.answer(home, title, query),
        "/metrics": lambda _: page(CoordinatorMetrics(home)),
        "/healthz": lambda _: _health(healthy(), "the SuperLink answers"),
    }
    server = serve(pages, *listen)
    print(f"status page http://{listen.address}:{server.server_port}/, metrics /metrics, health /healthz", flush=True)
    return server


def watch_bank(home: Path, name: str, healthy: Callable[[], bool], listen: Listen) -> ThreadingHTTPServer | None:
    """Serve a bank's own pages. UserError where the port cannot be had."""
    if not listen.port:
        return None
    from fedfinlora.deployment.metrics import BankMetrics, page

    pages = {
        "/metrics": lambda _: page(BankMetrics(home, name)),
        "/healthz": lambda _: _health(healthy(), "the SuperNode runs"),
    }
    server = serve(pages, *listen)
    print(f"metrics http://{listen.address}:{server.server_port}/metrics, health /healthz", flush=True)
    return server


def _health(well: bool, words: str) -> Response:
    return Response(f"{words}\n" if well else f"not true: {words}\n", status=200 if well else 503)
