"""How large a bank's reply may be, and of how many pieces: SuperLink and server take no more.

A reply may have as many bytes as its request and SLACK_BYTES more.
"""

from __future__ import annotations

SLACK_BYTES = 2**20
"""What a reply may have beyond its request: its head, figures, and Flower's own framing."""
MOST_SMALL_OBJECTS = 64
"""Flower cuts a message into objects: a handful, and one for each piece of an array."""
SMALLEST_PIECE_BYTES = 2**18
"""Of a piece of an array, at least, but for the last."""


def bytes_allowed(request_bytes: int) -> int:
    """Of the reply to a request of so many bytes.

    >>> bytes_allowed(0) == SLACK_BYTES
    True
    """
    return request_bytes + SLACK_BYTES


def objects_allowed(reply_bytes: int) -> int:
    """Into how many objects a reply of so many bytes may be cut.

    >>> objects_allowed(2**20)
    68
    """
    return MOST_SMALL_OBJECTS + reply_bytes // SMALLEST_PIECE_BYTES
