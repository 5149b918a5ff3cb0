"""The head of a bank's privacy ledger: what leaves the bank of it, so that the server is a witness of how far it had
come."""

from __future__ import annotations

import re
from dataclasses import dataclass

SHA256 = re.compile("[0-9a-f]{64}")
MOST_LINES = 2**53
"""Numbers up to here survive JSON."""


@dataclass(frozen=True)
class Head:
    """Number and hash of a ledger's last line. ValueError for values that no ledger has.

    >>> Head(-1, "0" * 64)
    Traceback (most recent call last):
    ...
    ValueError: a ledger's head has a number from 0 and a hash of 64 hexadecimal digits
    """

    number: int
    """How many lines the ledger has."""
    hash: str
    """SHA-256 of the last line, 64 hexadecimal digits; it covers all lines before."""

    def __post_init__(self) -> None:
        is_number = isinstance(self.number, int) and not isinstance(self.number, bool) and 0 <= self.number < MOST_LINES
        if not (is_number and isinstance(self.hash, str) and SHA256.fullmatch(self.hash)):
            raise ValueError("a ledger's head has a number from 0 and a hash of 64 hexadecimal digits")
