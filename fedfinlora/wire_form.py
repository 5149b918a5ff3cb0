"""The names that a request and a reply may have, and how long their texts may be: checked before any of it is kept.

Run folder and bank keep what was signed, word for word. Whatever has no name here, or is longer, is refused, so that no one fills another's disk
or files with it. What the values must be is checked by `fedfinlora.wire`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr.app import RecordDict

HASH = 64
"""Hex digits of SHA-256."""
LONGEST_RUN_NAME = 200
"""Bytes: it becomes the name of a folder."""
REQUEST_TEXTS: Mapping[str, int] = {
    "config": 2**17, "run": LONGEST_RUN_NAME, "layout-id": HASH, "source-sha256": HASH, "ledger-heads": 2**16, "attempt": HASH, "bank": HASH,
    "code-sha256": HASH, "signature": 512, "certificate": 2**14,
}  # fmt: skip
"""Text in a request's head -> its bytes at most. A configuration has 4 KB, and 80 bytes more a bank with declared sizes."""
REPLY_TEXTS: Mapping[str, int] = {
    "status": 16, "bank": HASH, "layout-id": HASH, "policy-sha256": HASH, "ledger-hash": HASH, "code": HASH, "reason": 200,
    "run": LONGEST_RUN_NAME, "attempt": HASH, "request": HASH, "signature": 512,
}  # fmt: skip
REQUEST_NUMBERS = ("round",)
REPLY_NUMBERS = ("round", "ledger-number")


def request_fault(content: RecordDict) -> str:
    """What a request has that none may have, in words that quote nothing of it; "" where it has nothing of the kind."""
    return _fault(content, {"request", "adapter"}, "request", REQUEST_TEXTS, REQUEST_NUMBERS)


def reply_fault(content: RecordDict, figures: Collection[str]) -> str:
    """The same of a reply, whose `figures` may have these names."""
    fault = _fault(content, {"reply", "delta", "figures"}, "reply", REPLY_TEXTS, REPLY_NUMBERS)
    if fault or "figures" not in content.metric_records:
        return fault
    for name, value in dict(content.metric_records["figures"]).items():
        if name not in figures:
            return "a figure has an unknown name"
        if not isinstance(value, int | float):
            return f"{name} is not a single number"
    return ""


def _fault(content: RecordDict, records: set[str], head: str, texts: Mapping[str, int], numbers: Collection[str]) -> str:
    if set(content.keys()) - records:
        return "a record has an unknown name"
    for name, value in dict(content.config_records.get(head, {})).items():
        if name in texts:
            if not _is_text(value, texts[name]):
                return f"{name} is not a text of {texts[name]:,} bytes or fewer"
        elif name not in numbers:
            return "a value of its head has an unknown name"
        elif not isinstance(value, int | float):
            return f"{name} is not a single number"
    return ""


def _is_text(value: Any, most_bytes: int) -> bool:
    return isinstance(value, str) and len(value) <= most_bytes and len(value.encode("utf-8", "surrogatepass")) <= most_bytes
