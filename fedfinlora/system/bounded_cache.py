"""A cache that is limited in bytes: what was not used for longest goes first. Safe to use from several threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class BoundedCache(Generic[Value]):
    """Values by key, of `most_bytes` together by their own sizes. The last one that was put in stays even where it
    alone is larger.

    | case | what happens |
    |---|---|
    | a key that is there | its old value is replaced, and no longer counts |
    | a value above `most_bytes` | it is kept, and all others go |
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._entries: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Value | None:
        """The value of a key, which counts as used; None where there is none."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: Hashable, value: Value, size_bytes: int) -> None:
        """Keep a value of about so many bytes, and let others go where it gets too much."""
        with self._lock:
            self._entries.pop(key, None)
            self._entries[key] = (value, size_bytes)
            while len(self._entries) > 1 and self._sum() > self.most_bytes:
                self._entries.popitem(last=False)

    def clear(self, unless: Callable[[Hashable], bool] = lambda key: False) -> None:
        """Forget all but the keys of which `unless` is true."""
        with self._lock:
            for key in [key for key in self._entries if not unless(key)]:
                del self._entries[key]

    @property
    def size_bytes(self) -> int:
        """Of all values together."""
        with self._lock:
            return self._sum()

    def __len__(self) -> int:
        return len(self._entries)

    def _sum(self) -> int:
        return sum(size for _, size in self._entries.values())
