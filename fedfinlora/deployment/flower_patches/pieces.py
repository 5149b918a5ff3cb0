"""Small pieces of an array, so that it passes a slow line.

Flower's pieces have 5 MiB, two at a time, and it waits 30 seconds for the answer to one: on a line of 1 Mbit/s they
never arrive, and are sent again without end. Upstream: chunks came with flwrlabs/flower pull request 5552; a thread on
their size on slow lines was not found.
"""

from __future__ import annotations

PIECE_BYTES = 2**19
"""Bytes of a piece of an array. Two at a time take 8.4 seconds at 1 Mbit/s. Each costs the SuperLink about 10 ms, so
smaller ones would hold up fast lines.
"""
PIECES = {"FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(PIECE_BYTES)}
"""What must be in the environment before Flower is imported."""
