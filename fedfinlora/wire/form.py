"""The names that a request and a reply may have, and the form and length of their texts.

Checked before any of it is kept: no one fills another's disk or writes text of its own into another's files. What the
values must be is checked by `fedfinlora.wire.messages`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr.app import RecordDict

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""How a bank may be called."""
LONGEST_RUN_NAME = 200
"""Bytes: it becomes the name of a folder."""


@dataclass(frozen=True)
class Text:
    """What a text of a head may be."""

    most_bytes: int
    form: re.Pattern[str]


ANY = re.compile(".*", re.DOTALL)
NAME = Text(64, PLAIN_NAME)
HASH = Text(64, re.compile("[0-9a-f]*"))
"""Hex digits; SHA-256 has 64."""
SIGNATURE = Text(512, re.compile("[A-Za-z0-9+/=]*"))
"""Base64."""
MEANS = Text(2**14, re.compile("[A-Za-z0-9+/=]*"))
"""Base64 of one float32 for each tensor of an adapter, up to 3,072 of them."""
REQUEST_TEXTS: Mapping[str, Text] = {
    "config": Text(2**17, ANY), "run": Text(LONGEST_RUN_NAME, ANY), "layout-id": HASH, "source-sha256": HASH,
        "ledger-heads": Text(2**12, ANY), "second-moments": MEANS,
    "attempt": HASH, "bank": NAME, "code-sha256": HASH, "signature": SIGNATURE, "certificate": Text(2**12, ANY),
}  # fmt: skip
"""Text in a request's head. A configuration has 4 KB, and 80 bytes more a bank with declared sizes; a certificate has
900 bytes, a ledger's head 170.
"""
REPLY_TEXTS: Mapping[str, Text] = {
    "status": Text(5, re.compile("ok|error")), "bank": NAME, "layout-id": HASH, "policy-sha256": HASH,
        "ledger-hash": HASH, "second-moments": MEANS,
    "code": Text(64, re.compile("[a-z_-]*")), "run": Text(LONGEST_RUN_NAME, ANY), "attempt": HASH, "request": HASH,
        "signature": SIGNATURE,
}  # fmt: skip
"""Text in a reply's head. `fedfinlora.wire.messages` refuses a code that `fedfinlora.wire.reasons` does not have,
`provenance.chain` the name of another run.
"""
REQUEST_NUMBERS = ("round", "silent")
REPLY_NUMBERS = ("round", "ledger-number")


def request_fault(content: RecordDict) -> str:
    """What a request has that none may have, in words that quote nothing of it."""
    return _fault(content, {"request", "adapter"}, "request", REQUEST_TEXTS, REQUEST_NUMBERS)


def reply_fault(content: RecordDict, figures: Collection[str]) -> str:
    """The same of a reply with these names of `figures`."""
    fault = _fault(content, {"reply", "delta", "figures"}, "reply", REPLY_TEXTS, REPLY_NUMBERS)
    if fault or "figures" not in content.metric_records:
        return fault
    for name, value in dict(content.metric_records["figures"]).items():
        if name not in figures:
            return "a figure has an unknown name"
        if not isinstance(value, int | float):
            return f"{name} is not a single number"
    return ""


def _fault(
    content: RecordDict, records: set[str], head: str, texts: Mapping[str, Text], numbers: Collection[str]
) -> str:
    if set(content.keys()) - records:
        return "a record has an unknown name"
    for name, value in dict(content.config_records.get(head, {})).items():
        if name in texts:
            if not _is_text(value, texts[name].most_bytes):
                return f"{name} is not a text of {texts[name].most_bytes:,} bytes or fewer"
            if not texts[name].form.fullmatch(str(value)):
                return f"{name} is not written as it should be"
        elif name not in numbers:
            return "a value of its head has an unknown name"
        elif not isinstance(value, int | float):
            return f"{name} is not a single number"
    return ""


def _is_text(value: Any, most_bytes: int) -> bool:
    return (
        isinstance(value, str)
        and len(value) <= most_bytes
        and len(value.encode("utf-8", "surrogatepass")) <= most_bytes
    )
