"""A way to the coordinator on which a test reads along, and what must not be found on it.

The tap ends the bank's TLS with a certificate of the consortium's own authority, as only the coordinator could, speaks
TLS on to the SuperLink with the bank's own key, which only the bank has, and keeps what passes in plain bytes, each
direction of each connection for itself.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import ssl
import sys
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_ssh_private_key
from flwr.app import Message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedfinlora.deployment.certificates import issue_server
from fedfinlora.deployment.reach import CERTIFICATE, TLS_KEY

HTTP = ["http/1.1"]
"""What Flower's client offers in its TLS greeting."""
PIECE = 12
"""Characters of a row that would give it away."""


@dataclass(frozen=True)
class Request:
    """One HTTP request of a bank."""

    path: str
    head: bytes
    body: bytes
    """Without the coding in which it travelled."""


class Tap:
    """Listens on `port` and passes on to the SuperLink at `to`; the coordinator's folder lends the authority."""

    def __init__(self, to: int, coordinator: Path, folder: Path) -> None:
        folder.mkdir()
        for name in ("ca.key", "ca.crt"):
            shutil.copy(coordinator / name, folder)
        issue_server(folder, ["127.0.0.1"], 10)
        self._near = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._near.load_cert_chain(folder / "server.crt", folder / "server.key")
        self._far = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        for context in (self._near, self._far):
            context.set_alpn_protocols(HTTP)
        self._to = to
        self._sent: list[bytearray] = []
        self._loop = asyncio.new_event_loop()
        listening = asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._near)
        self._server = self._loop.run_until_complete(listening)
        self.port = int(self._server.sockets[0].getsockname()[1])
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def speaks_as(self, bank: Path) -> None:
        """Show the SuperLink the certificate of the bank in this folder."""
        self._far.load_cert_chain(bank / CERTIFICATE, bank / TLS_KEY)

    def close(self) -> None:
        """Take no new connection."""
        self._loop.call_soon_threadsafe(self._server.close)

    def sent(self) -> list[bytes]:
        """What came from the bank so far, for each connection, and the bodies that came in another coding."""
        streams = [bytes(one) for one in self._sent]
        return streams + [request.body for one in streams for request in requests_in(one) if request.body not in one]

    def requests(self) -> list[Request]:
        """The bank's requests that are here as a whole."""
        return [request for one in self._sent for request in requests_in(bytes(one))]

    async def _serve(self, near_reader: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to, ssl=self._far)
        except OSError:
            near_writer.close()
            return
        sent = bytearray()
        self._sent.append(sent)
        await asyncio.gather(_carry(near_reader, far_writer, sent), _carry(far_reader, near_writer, bytearray()))


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
    try:
        while data := await reader.read(2**16):
            kept += data
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


def requests_in(stream: bytes) -> Iterator[Request]:
    """The HTTP/1.1 requests of one connection, those that end in it."""
    place = 0
    while (end := stream.find(b"\r\n\r\n", place)) >= 0:
        head = stream[place:end]
        first, *lines = head.decode("ascii").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        assert "transfer-encoding" not in headers, "this reader knows announced lengths only"
        place = end + 4 + int(headers.get("content-length", 0))
        if place <= len(stream):
            yield Request(
                first.split()[1], head, _decoded(stream[end + 4 : place], headers.get("content-encoding", "identity"))
            )


def _decoded(body: bytes, coding: str) -> bytes:
    if coding in ("gzip", "deflate"):
        return zlib.decompress(body, wbits=47)
    assert coding == "identity", f"this reader does not know {coding}"
    return body


def pushed(requests: list[Request]) -> list[Message]:
    """The messages that a bank has pushed as a whole, oldest first, put together by Flower's own readers. Each object
    that it has pushed must belong to one; of some, all may not have come.
    """
    heads, trees, contents = [], [], {}
    for request in requests:
        if request.path == "/v1/fleet/push-messages":
            pushes = PushMessagesRequest.FromString(request.body)
            heads += pushes.messages_list
            trees += pushes.message_object_trees
        if request.path == "/v1/fleet/push-object":
            push = PushObjectRequest.FromString(request.body)
            contents[push.object_id] = push.object_content
    assert set(contents) <= {part.object_id for tree in trees for part in iterate_object_tree(tree)}
    found = []
    for head, tree in zip(heads, trees, strict=True):
        if not {part.object_id for part in iterate_object_tree(tree)} <= set(contents):
            continue
        message: Any = inflate_object_from_contents(head.metadata.message_id, contents, keep_object_contents=True)
        assert isinstance(message, Message)
        found.append(message)
    return sorted(found, key=lambda message: message.metadata.created_at)


def secrets_of(bank: Path, rows: Path) -> dict[str, list[bytes]]:
    """What must not leave a bank with the folder `bank` and these rows: what it is -> its spellings.

    Rows as lines and in pieces of PIECE characters; the private half of its key as OpenSSH, PEM and DER have it and by
    itself; paths.
    """
    lines = [line for file in rows.rglob("*.jsonl") for line in file.read_text("utf-8").splitlines()]
    texts = [json.loads(line)["context"] for line in lines]
    pieces = {text[start : start + PIECE] for text in texts for start in range(0, len(text) - PIECE + 1, PIECE // 2)}
    assert pieces
    key: Any = load_ssh_private_key((bank / "node.key").read_bytes(), None)
    number = key.private_numbers().private_value.to_bytes(key.key_size // 8, "big")
    forms = [
        key.private_bytes(Encoding.DER, form, NoEncryption())
        for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL)
    ]
    assert all(number in form for form in forms)
    in_base64 = [base64.b64encode(number[skip:])[: (len(number) - skip) // 3 * 4] for skip in range(3)]
    return {
        "rows": [piece.encode() for piece in (*lines, *pieces)],
        "key": [number, number.hex().encode(), *in_base64,
        *(line for name in ("node.key", TLS_KEY) for line in (bank / name).read_bytes().splitlines()[1:-1])],
        "paths": [str(path).encode() for path in (bank, rows, Path(sys.prefix), Path(__file__).parents[2],
            rows.parent)],
    }  # fmt: skip


def found_in(streams: list[bytes], secrets: dict[str, list[bytes]]) -> set[str]:
    """Which kinds of secrets are in any of the streams."""
    return {
        kind for kind, spellings in secrets.items() if any(each in stream for each in spellings for stream in streams)
    }


def words_in(requests: list[Request], words: list[str]) -> set[str]:
    """Which of the words stand by themselves in what a bank has sent; a machine may be called "vm", so an array's
    numbers and signatures do not count.
    """
    objects = [PushObjectRequest.FromString(each.body) for each in requests if each.path == "/v1/fleet/push-object"]
    others = [each.body for each in requests if each.path != "/v1/fleet/push-object"]
    records = [
        each.object_content for each in objects if not each.object_content.startswith(ArrayChunk.__qualname__.encode())
    ]
    text = b"\n".join([*(each.head for each in requests), *others, *records])
    return {word for word in words if re.search(rb"(?<![\w+/=])" + re.escape(word.encode()) + rb"(?![\w+/=])", text)}
