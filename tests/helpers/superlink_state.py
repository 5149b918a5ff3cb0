"""The state of Flower's SuperLink with one node and its requests, and messages as it stores them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from flwr.app import Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager


def message(run: int, source: int, destination: int, answers: str = "", content: RecordDict | None = None) -> Message:
    """A message, empty unless something is given, as Flower's SuperLink stores it. Its id is made from its content and
    the time.
    """
    metadata = Metadata(
        run_id=run, message_id="", src_node_id=source, dst_node_id=destination, reply_to_message_id=answers,
        group_id="", created_at=time.time(),
        ttl=30.0 if answers else 60.0, message_type="train",
    )  # fmt: skip
    made = make_message(metadata=metadata, content=content or RecordDict())
    made.metadata.__dict__["_message_id"] = made.object_id
    return made


class Asked:
    """A SuperLink's state with one connected node, which was sent three requests, has taken along the first two, and
    answered the second.
    """

    def __init__(self, place: Path) -> None:
        database = f"sqlite:///{place / 'state.db'}"
        self.state: Any = LinkStateFactory(database, NoOpFederationManager(), ObjectStoreFactory(database)).state()
        self.run = self.state.create_run("", "", "", {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP)
        self.node = self.state.create_node("", "", b"key", 60.0)
        assert self.state.activate_node(self.node, 60.0)
        requests = [message(self.run, SUPERLINK_NODE_ID, self.node) for _ in range(3)]
        for each in requests:
            assert self.state.store_message_ins(each)
            self.state.object_store.preregister(self.run, get_object_tree(each))
            for name, part in get_all_nested_objects(each).items():
                self.state.object_store.put(name, part.deflate())
        self.lost, self.answered, self.waiting = (each.metadata.message_id for each in requests)
        assert [self.takes(type(self.state).get_message_ins) for _ in range(2)] == [[self.lost], [self.answered]]
        self.reply = message(self.run, self.node, SUPERLINK_NODE_ID, self.answered)
        assert self.state.store_message_res(self.reply)

    def takes(self, get_message_ins: Any) -> list[str]:
        """The request that the node is handed."""
        return [each.metadata.message_id for each in get_message_ins(self.state, self.node, 1)]

    def hears(self, request: str) -> Any:
        """The answer to a request; None while it is waited for."""
        return next(iter(self.state.get_message_res({request}, self.run)), None)
