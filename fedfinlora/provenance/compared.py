"""Two values that should be equal, and what is said where they are not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLOSE = 1e-9
"""Relative: what two machines may differ by that add up the same numbers."""
MOST_SHOWN = 60
"""Characters of a value that is shown."""


@dataclass(frozen=True)
class Difference:
    """A value that is not what it should be."""

    where: Path | str
    """A file, or a line of one."""
    key: str
    found: Any
    expected: Any
    source: str
    """What gives the expected one, in words."""

    def __str__(self) -> str:
        return f"{self.key} is {shown(self.found)}, {self.source} gives {shown(self.expected)}"


def differences(expected: Any, found: Any, where: Path | str, source: str, key: str = "") -> Iterator[Difference]:
    """Each value of JSON that differs, by its dotted key; numbers may differ by a rounding.

    >>> [str(one) for one in differences({"a": {"b": 1.0}, "c": [1]}, {"a": {"b": 2.0}, "c": [1]}, "file", "the chain")]
    ['a.b is 2.0, the chain gives 1.0']
    """
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for name in [*expected, *(name for name in found if name not in expected)]:
            inner = f"{key}.{name}" if key else str(name)
            yield from differences(expected.get(name), found.get(name), where, source, inner)
    elif isinstance(expected, list | tuple) and isinstance(found, list | tuple) and len(expected) == len(found):
        for place, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, where, source, f"{key}[{place}]")
    elif not same(expected, found):
        yield Difference(where, key, found, expected, source)


def same(expected: Any, found: Any, tolerance: float = CLOSE) -> bool:
    """Whether two values are equal; two numbers, within a relative tolerance where one is no whole number."""
    if not _is_number(expected) or not _is_number(found) or (isinstance(expected, int) and isinstance(found, int)):
        return bool(expected == found) and isinstance(expected, bool) == isinstance(found, bool)
    return math.isclose(expected, found, rel_tol=tolerance, abs_tol=1e-15)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """At most MOST_SHOWN characters."""
    try:
        text = value if isinstance(value, str) and value else json.dumps(value, default=str, allow_nan=False)
    except ValueError:  # NaN or infinity
        text = repr(value)
    text = "absent" if value is None else text
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
