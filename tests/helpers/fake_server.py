"""An OpenAI-compatible server on loopback that answers, or misbehaves, as a test wants it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
Behaviour = Callable[["Handler", dict[str, Any]], None]
"""Answers one request, given its JSON."""


class Server(ThreadingHTTPServer):
    """Behaviours in `script` answer the first requests, one each; `behaviour` answers all others."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Behaviour] = []
        self.behaviour: Behaviour = fine
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        """(path, JSON, headers with lower-case names)."""
        self.models: list[dict[str, Any]] = [{"id": name, "created": 1} for name in ("some/model", "some-model")]
        """What /models says."""
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.now, self.most_at_once = 0, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up in these tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.requests.append(
                (self.path, body, {name.lower(): value for name, value in self.headers.items()})
            )
            behaviour = self.server.script.pop(0) if self.server.script else self.server.behaviour
            self.server.now += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.now)
        try:
            behaviour(self, body)
        finally:
            with self.server.lock:
                self.server.now -= 1

    def do_GET(self) -> None:
        self.reply(200, {"data": self.server.models})

    def reply(self, status: int, content: Any = b"", **headers: str) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""


def prompt_of(body: dict[str, Any]) -> str:
    return str(body["prompt"]) if "prompt" in body else str(body["messages"][0]["content"])


def answer_body(body: dict[str, Any], text: str | None = None) -> dict[str, Any]:
    """A reply in the form that was asked for; without `text` it says the prompt backwards."""
    text = prompt_of(body)[::-1] if text is None else text
    choice = {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
    return {
        "model": "dated-2026-01-01",
        "choices": [{"index": 0, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2},
    }


def fine(handler: Handler, body: dict[str, Any]) -> None:
    handler.reply(200, answer_body(body))


def says(text: str) -> Behaviour:
    return lambda handler, body: handler.reply(200, answer_body(body, text))


def sends(status: int, content: Any = b"", **headers: str) -> Behaviour:
    return lambda handler, body: handler.reply(status, content, **headers)


def refuses(status: int, message: str, **fields: Any) -> Behaviour:
    return sends(status, {"error": {"message": message, **fields}})


def fails_for(bad: str, behaviour: Behaviour) -> Behaviour:
    return lambda handler, body: (behaviour if prompt_of(body) == bad else fine)(handler, body)


@contextmanager
def serving() -> Iterator[Server]:
    """A server while the block lasts."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
