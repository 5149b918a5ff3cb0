"""What the fuzz ring draws, and for how long: `FUZZ_SECONDS=N` gives each test N seconds (`make fuzz`), else each has a
few.

Every test feeds the real reader and asks the same three things: no traceback, no hang, nothing silently lost.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

SECONDS = float(os.environ.get("FUZZ_SECONDS", "3"))
"""How long each test runs."""
BATCH = 50
"""Examples between two looks at the clock."""

TEXTS = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(categories=None, exclude_categories=[]), max_size=6),  # half characters too
    st.sampled_from(
        ["", " ", "\x00", "\ufeff", "NaN", "null", "-1", "1e999", "0" * 400, "../x", "a/b", "é" * 300, "<b>&\"'"]
    ),
)
NUMBERS = st.one_of(
    st.integers(-5, 5),
    st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**30]),
    st.floats(width=32),
    st.sampled_from([1e308, -0.0]),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=5,
)
"""Any JSON value, NaN and Infinity included."""


def for_a_while(strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> int:
    """Draw examples and check each until the time is up, three batches at least; other ones in every batch. Returns how
    many there were.

    Without FUZZ_SECONDS the seeds are fixed, so that a run in continuous integration finds what the last one found.
    """
    fixed = "FUZZ_SECONDS" not in os.environ
    began, count = time.monotonic(), 0
    batch = first = 0 if fixed else int(time.time())
    while time.monotonic() - began < SECONDS or batch < first + 3:
        batch += 1

        @settings(max_examples=BATCH, database=None, derandomize=False)
        @given(strategy)
        def one(drawn: Any) -> None:
            nonlocal count
            count += 1
            check(drawn)

        from hypothesis import seed

        seed(batch)(one)()
    return count


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """A JSON document with one or two of its places replaced, removed, doubled or put into a list."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(document))
        if not places:
            return draw(VALUES)
        holder, key = draw(st.sampled_from(places))
        way = draw(st.sampled_from(["replace", "replace", "remove", "nest", "add"]))
        if way == "remove":
            del holder[key]
        elif way == "nest":
            holder[key] = [holder[key]]
        elif way == "add" and isinstance(holder, dict):
            holder[draw(TEXTS)] = draw(VALUES)
        else:
            holder[key] = draw(VALUES)
    return document


def _places(value: Any) -> Any:
    """(holder, key) of everything inside a JSON document."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner)


def dumped(value: Any) -> bytes:
    """JSON as somebody else's program may write it: NaN as NaN, half characters escaped."""
    return json.dumps(value).encode("ascii")


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with a piece cut out, put in, or replaced; or other bytes altogether."""
    way = draw(st.sampled_from(["cut", "insert", "replace", "other", "empty"]))
    if way == "empty":
        return b""
    if way == "other":
        return draw(st.binary(max_size=60))
    begin = draw(st.integers(0, len(content)))
    end = draw(st.integers(begin, min(len(content), begin + 40)))
    piece = b"" if way == "cut" else draw(st.binary(min_size=1, max_size=8))
    return (
        content[:begin]
        if way == "cut" and draw(st.booleans())
        else content[:begin] + piece + content[end if way != "insert" else begin :]
    )
