"""A request that was lost on its way is handed out again until the bank confirms it.

For the SuperLink a request that it has handed out is delivered, and it waits for the reply even if the request never
arrived. No thread upstream was found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MOST_KNOWN = 4096
"""Requests whose offers are counted, the newest."""
MOST_OFFERS = 10
"""One that a bank can never take, as of a run that has ended, blocks its next one for so long."""


def offered_again(get_message_ins: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """Flower's way to hand a node its requests; one that the node has not confirmed before it asks for the next comes
    again, MOST_OFFERS times at most.

    A SuperNode asks for nothing while it fetches a request, and the SuperLink keeps the request's objects until it has
    confirmed them.
    """
    from flwr.supercore.state.schema.linkstate_models import MessageIns
    from sqlalchemy import select, update

    offers: dict[str, int] = {}

    def handed_out(state: Any, node_id: int, limit: int | None, **chosen: Any) -> list[Any]:
        with state.session() as session:
            for request in session.scalars(select(MessageIns.message_id).where(*unanswered(node_id))).all():
                if offers.get(request, 0) < MOST_OFFERS and state.object_store.get(request):
                    offers[request] = offers.pop(request, 0) + 1
                    if len(offers) > MOST_KNOWN:
                        del offers[next(iter(offers))]
                    session.execute(update(MessageIns).where(MessageIns.message_id == request).values(delivered_at=""))
        return get_message_ins(state, node_id, limit, **chosen)

    return handed_out


def unanswered(node_id: int) -> tuple[Any, ...]:
    """Conditions on a request in the SuperLink's database: handed out to the node, and without an answer."""
    from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
    from flwr.supercore.utils import uint64_to_int64
    from sqlalchemy import select

    answers = select(MessageRes.message_id).where(MessageRes.reply_to_message_id == MessageIns.message_id)
    return MessageIns.dst_node_id == uint64_to_int64(node_id), MessageIns.delivered_at != "", ~answers.exists()
