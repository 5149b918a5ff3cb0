"""A Hugging Face hub on loopback that serves one small model under many names; the name says what goes wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama", "vocab_size": 64, "hidden_size": 8, "intermediate_size": 16, '
    b'"num_hidden_layers": 1, '
    b'"num_attention_heads": 1, "num_key_value_heads": 1}',
    "tokenizer_config.json": b"{}",
    "model.safetensors": b"x" * 4096,
}
PAGE = b"<!doctype html><html><head><title>Sign in</title></head><body>Company portal</body></html>"


class Hub(ThreadingHTTPServer):
    """`requests` keeps (method, path, authorization) of each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str, str]] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up in these tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests.append((self.command, self.path, self.headers.get("authorization", "")))
        parts = self.path.split("?")[0].strip("/").split("/")
        in_api = parts[0] == "api"
        names = [part for part in parts if part not in ("api", "models", "datasets")]
        fault = names[1] if len(names) > 1 else ""
        if fault in ERRORS:
            status, code, message, more = ERRORS[fault]
            self.reply(
                status, json.dumps({"error": message}).encode(), x_error_code=code, x_error_message=message, **more
            )
        elif fault == "page":
            self.reply(200, PAGE, content_type="text/html")
        elif fault == "slow":
            self.server.closing.wait(20)
            self.close_connection = True
        elif fault == "echo":
            self.reply(403, json.dumps({"error": f"bad token {self.headers.get('authorization')}"}).encode())
        elif in_api and "tree" in names:
            self.reply(200, json.dumps(tree()).encode(), content_type="application/json")
        elif in_api:
            self.reply(200, json.dumps(listing("/".join(names[:2]))).encode(), content_type="application/json")
        else:
            self.file(fault, parts[-1])

    def file(self, fault: str, name: str) -> None:
        content = FILES.get(name)
        if content is None:
            self.reply(404, b"", x_error_code="EntryNotFound", x_error_message="Entry not found")
            return
        about = {"x_repo_commit": COMMIT, "etag": f'"{sha256(content).hexdigest()}"', "accept_ranges": "bytes"}
        broken = self.command == "GET" and name == "model.safetensors"
        if broken and fault == "cut":
            self.head(200, len(content), **about)
            self.wfile.write(content[:100])
            self.close_connection = True
        elif broken and fault == "short":
            self.reply(200, content[:100], **about)
        else:
            self.reply(200, content, **about)

    def head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(length))
        self.end_headers()

    def reply(self, status: int, content: bytes, **headers: str) -> None:
        self.head(status, len(content), **headers)
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""


ERRORS: dict[str, tuple[int, str, str, dict[str, str]]] = {
    "gated": (401, "GatedRepo", "Access to model is restricted. You must have access to it and be authenticated.", {}),
    "gated403": (403, "GatedRepo", "Your request to access this model is awaiting a review.", {}),
    "missing": (404, "RepoNotFound", "Repository not found", {}),
    "unseen": (401, "", "Invalid username or password.", {}),
    "norevision": (404, "RevisionNotFound", "Revision not found", {}),
    "forbidden": (403, "", "Your token has no permission", {}),
    "busy": (429, "", "Too many requests", {"retry_after": "2"}),
    "broken": (500, "", "Internal Error - We're working hard to fix this as soon as possible!", {}),
    "down": (503, "", "Service Unavailable", {}),
}


def listing(repository: str) -> dict[str, Any]:
    """What /api/models/NAME says."""
    siblings = [
        {"rfilename": name, "size": len(content), "blobId": sha256(content).hexdigest()}
        for name, content in FILES.items()
    ]
    return {"id": repository, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "siblings": siblings}


def tree() -> list[dict[str, Any]]:
    """What /api/models/NAME/tree/COMMIT says."""
    return [
        {"type": "file", "path": name, "size": len(content), "oid": sha256(content).hexdigest()}
        for name, content in FILES.items()
    ]


@contextmanager
def serving_hub() -> Iterator[Hub]:
    """A hub while the block lasts."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        hub.shutdown()
        thread.join()
        hub.server_close()
