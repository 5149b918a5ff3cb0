"""A piece that is sent twice is stored, not refused.

A piece whose answer was lost is sent again, to a SuperLink that says that it does not want it, and then the SuperNode
throws its reply away. Here what is there already counts as stored. No thread upstream was found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def stored_again(store_object: Callable[..., bool]) -> Callable[..., bool]:
    """Flower's way to store an object of a message, to which one that is stored already is no failure: its sender may
    not have heard of it.
    """

    def stored(state: Any, run_id: int, session_id: str, object_id: str, content: bytes) -> bool:
        return (
            store_object(state, run_id, session_id, object_id, content) or state.object_store.get(object_id) == content
        )

    return stored
