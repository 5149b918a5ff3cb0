"""Flower's Grid as the server should see banks that it does not trust: one reply at a time, none larger than what it answers.

Flower's own `pull_messages` fetches all objects of all replies before anybody can look at them, and raises where one of them is no message, which
loses the others with it. Here every reply is asked for alone. One that cannot be read, or is too large, comes back as Flower's error with
our code UNREADABLE; the rest of it is not fetched.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import httpx
from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message
from flwr.supercore.run import RunNotRunningException

from fedfinlora.errors import UserError
from server_app.rounds import UNREADABLE, MessageGrid

log = logging.getLogger("fedfinlora.server")
SLACK_BYTES = 2**20
"""What a reply may have beyond the arrays of the message that it answers: its head, figures and Flower's own framing."""


class TooLarge(Exception):
    """More was sent than a reply may have."""


class Meter:
    """Counts the bytes of objects that come from the SuperLink, by their announced length, before they are read."""

    def __init__(self) -> None:
        self.left = 0

    def __call__(self, response: httpx.Response) -> None:
        if not response.request.url.path.endswith("/pull-object"):
            return
        self.left -= int(response.headers.get("content-length", 0))
        if self.left < 0:
            raise TooLarge


class GuardedGrid:
    """A MessageGrid around Flower's. The size limit holds where Flower speaks HTTP, as in a deployment; a simulation's banks are our own."""

    def __init__(self, grid: MessageGrid) -> None:
        self._grid = grid
        self._allowed: dict[str, int] = {}
        self._meter: Meter | None = None

    def get_node_ids(self) -> Any:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Any:
        messages = list(messages)
        ids = list(self._grid.push_messages(messages))
        self._allowed |= {str(each): _array_bytes(message) + SLACK_BYTES for each, message in zip(ids, messages, strict=False)}
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there. How many may be in memory together is for the caller to decide, by what it asks for."""
        return [reply for message_id in message_ids for reply in self._pull(message_id)]

    def _pull(self, message_id: str) -> list[Message]:
        meter = self._metered()
        if meter:
            meter.left = self._allowed.get(message_id, SLACK_BYTES)
        try:
            return list(self._grid.pull_messages([message_id]))
        except TooLarge:
            return [unreadable(message_id, f"The reply has more than {self._allowed.get(message_id, SLACK_BYTES):,} bytes.")]
        except RunNotRunningException:
            raise
        except httpx.HTTPError as error:
            raise UserError(f"The SuperLink does not answer as it should ({error}); see superlink.log.") from error
        except Exception as error:
            return [unreadable(message_id, f"The reply cannot be read ({type(error).__name__}).")]
        finally:
            if meter:
                meter.left = 2**62

    def _metered(self) -> Meter | None:
        """The meter on Flower's HTTP connection; None where it has none."""
        if self._meter is None:
            connection = getattr(getattr(self._grid, "_runtime_client", None), "_client", None)
            if isinstance(connection, httpx.Client):
                self._meter = Meter()
                connection.event_hooks["response"].append(self._meter)
        return self._meter


def unreadable(message_id: str, reason: str) -> Message:
    """What stands for a reply that was not taken in."""
    log.warning("message %s: %s", message_id[:12], reason)
    metadata = Metadata(
        run_id=0, message_id="", src_node_id=0, dst_node_id=0, message_type="system", group_id="", ttl=0.0, created_at=0.0,
        reply_to_message_id=message_id,
    )  # fmt: skip
    return make_message(metadata=metadata, error=Error(UNREADABLE, reason))


def _array_bytes(message: Message) -> int:
    records = message.content.array_records.values()
    return sum(len(array.data) for record in records for array in record.values())
