"""An enrolled bank that does not run our code: it speaks Flower's Fleet interface itself and answers what it likes.

A bank runs the app bundle that it is sent, so a hostile one is another program. This one says hello as it should and
hands each request to train to `answer`, which may send any content, any number of times, or raw objects that are no
message at all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import InflatableObject, get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supernode import fleet_http_connection
from flwr.supernode.fleet_http_connection import http_request_response

from fedfinlora.deployment.flower_patches.presenting import presenting
from fedfinlora.provenance.evidence import answer_signed, request_statement
from fedfinlora.provenance.signatures import Signer
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.wire.messages import Figures, TrainRequest, pack_reply, unpack_request

fleet_http_connection.FleetHttpClient = presenting(fleet_http_connection.FleetHttpClient)  # type: ignore[misc]
"""A hostile bank has a certificate too."""

LOOK_S = 1.0
"""Between two looks for a message; each costs a SuperLink on a slow machine 20 ms."""
Answer = Callable[["HostileBank", Message, TrainRequest], None]
FIGURES = Figures(
    rows=8, steps=2, tokens=100, answer_tokens=30, train_loss=5.0, holdout_rows=0, holdout_loss=float("nan"),
    train_s=0.1, load_s=0.0,
    bank_rows=36, skipped_rows=0, epsilon_planned=1.0, epsilon_spent=0.5, delta=1e-5,
)  # fmt: skip


class HostileBank:
    """Runs in a thread until `ends`; an error in it is raised there. `folder` holds its node.key, ca.crt and accepted
    certificate. `deaf` makes it lose the first request to train on its way, as a broken link does.
    """

    def __init__(self, name: str, folder: Path, port: int, answer: Answer, deaf: bool = False) -> None:
        self.name, self.answer, self._deaf = name, answer, deaf
        self._ending = threading.Event()
        self._error: BaseException | None = None
        self._key: Any = load_ssh_private_key((folder / "node.key").read_bytes(), None)
        self._way = http_request_response(
            f"127.0.0.1:{port}", False, str(folder / "ca.crt"), (self._key, self._key.public_key())
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ends(self) -> None:
        self._ending.set()
        self._thread.join(timeout=30)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with self._way as (_, receive, self._send, _, _, self._pull, self._push, confirm):
                while not self._ending.wait(LOOK_S):
                    received = receive()
                    if received is None:
                        continue
                    head, tree = received
                    if self._deaf and head.metadata.message_type == "train":
                        self._deaf = False
                        continue
                    run = head.metadata.run_id
                    message = pull_and_inflate_object_from_tree(
                        tree,
                        lambda each, run=run: self._pull(run, each),
                        lambda each, run=run: confirm(run, each),
                        return_type=Message,
                    )
                    message.metadata.__dict__["_message_id"] = head.metadata.message_id
                    if message.metadata.message_type == "query":
                        hello = {"status": "ok", "bank": self.name, "source-sha256": source_fingerprint()}
                        self.sends(message, RecordDict({"reply": ConfigRecord(hello)}))
                    else:
                        self.answer(self, message, unpack_request(message.content))
        except BaseException as error:
            self._error = error

    def content(
        self, request: TrainRequest, delta: np.ndarray | None = None, figures: Figures = FIGURES, **head: Any
    ) -> RecordDict:
        """A reply's content as an honest bank would make it, but for what is given; `ledger` is a head of its privacy
        ledger.
        """
        delta = np.full(request.adapter.size, 1e-4, np.float32) if delta is None else delta
        said: dict[str, Any] = {"bank": self.name, "layout_id": request.layout_id, **head}
        return pack_reply(said["bank"], said["layout_id"], delta, figures, ledger=said.get("ledger"))

    def sends(self, message: Message, content: RecordDict, whole: bool = True, key: Any = None) -> bool:
        """Answer a message, signed with the bank's own key as an honest answer is, or with another `key`. `whole` False
        announces everything and sends nothing. Returns whether the SuperLink wanted it.
        """
        if message.metadata.message_type == "train":
            answer_signed(content, request_statement(message.content), Signer(key or self._key))
        reply = Message(content, reply_to=message)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        return self.pushes(reply, get_object_tree(reply), get_all_nested_objects(reply) if whole else {})

    def pushes(self, head: Message, tree: ObjectTree, objects: Mapping[str, InflatableObject]) -> bool:
        wanted, session = self._send(head, tree, 0.1)
        for each in wanted:
            if each in objects:
                self._push(head.metadata.run_id, session, each, objects[each].deflate())
        return bool(wanted)
