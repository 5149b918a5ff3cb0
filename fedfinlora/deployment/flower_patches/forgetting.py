"""Requests that a killed SuperNode took with it expire when its successor is let in.

The SuperLink would wait for their replies as long as the successor is connected. No thread upstream was found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedfinlora.deployment.flower_patches.offered_again import unanswered


def forgetting(activate_node: Callable[..., bool]) -> Callable[..., bool]:
    """Flower's way to let a node in, by which the requests expire that its former process took along and never
    answered: no process works on them any more.
    """
    from flwr.supercore.state.schema.linkstate_models import MessageIns
    from sqlalchemy import update

    def activated(state: Any, node_id: int, heartbeat_interval: float) -> bool:
        let_in = activate_node(state, node_id, heartbeat_interval)
        if let_in:
            with state.session() as session:
                session.execute(update(MessageIns).where(*unanswered(node_id)).values(ttl=0.0))
        return let_in

    return activated
