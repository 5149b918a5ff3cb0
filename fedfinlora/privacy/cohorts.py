"""Who took part in a round: keyed hashes of rows and customers, and the files that name them, each stored once.

A row is its prompt, a customer is its name, both normalised, so that order, white space, labels and file names do not
matter. A hash has 8 bytes: BLAKE2b under a secret key of the ledger, so that the files show no one which rows there
are. The highest bit is the kind: 0 for a row (or, in the server's ledger, a bank), 1 for a customer.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfinlora.files import write_bytes

Hashes = NDArray[np.uint64]
CUSTOMER_BIT = np.uint64(1 << 63)
LARGEST_DEPTH = 64
"""A cohort file may be a difference to a difference, so many deep: reading one costs at most that many files."""


@dataclass(frozen=True)
class Rows:
    """The rows that a round would use; in the server's ledger each "row" is the name of a bank."""

    prompts: tuple[str, ...]
    customers: tuple[str, ...] = ()
    """The issuer of each row, "" where it has none; () where nothing is known of customers."""

    def __post_init__(self) -> None:
        if self.customers and len(self.customers) != len(self.prompts):
            raise ValueError(f"{len(self.customers)} customers for {len(self.prompts)} rows")


@dataclass(frozen=True, eq=False)
class HashedRows:
    """The same, hashed."""

    rows: Hashes
    """(rows,)."""
    customers: Hashes
    """(rows,); 0 = none."""


class Cohort(NamedTuple):
    """The rows and customers of one line of the ledger."""

    hashes: Hashes
    """(members,), ascending."""
    weights: NDArray[np.int32]
    """(members,), at least 1. In a line by row: how many rows have this hash, or belong to this customer. In a line by
    customer: 1 for a customer; for a row 1 where it was its customer's only one, else 2, for it could turn the clipped
    sum of the others round."""

    @property
    def address(self) -> str:
        """SHA-256 of the content; the file's name."""
        return hashlib.sha256(self.hashes.astype("<u8").tobytes() + self.weights.astype("<i4").tobytes()).hexdigest()


def normalised(text: str) -> str:
    """NFKC without invisible format characters, every stretch of white space one space, none at the ends.

    >>> normalised("  Is the  \\u00a0 news\\n good\\u200b? ")
    'Is the news good?'
    """
    if not text.isascii():
        text = "".join(letter for letter in unicodedata.normalize("NFKC", text) if unicodedata.category(letter) != "Cf")
    return " ".join(text.split())


def customer_of(issuer: str) -> str:
    """How a customer is distinguished from others: the normalised name without regard to case; "" where there is none.

    >>> customer_of(" Ada\\u00a0 BANK "), customer_of("  ")
    ('ada bank', '')
    """
    return normalised(normalised(issuer).casefold())


@lru_cache(maxsize=4)
def hash_rows(rows: Rows, key: bytes) -> HashedRows:
    """Hash every row and every customer; kept for the last few data sets of the process."""
    clear = ~CUSTOMER_BIT
    hashed = _hashes((normalised(prompt) for prompt in rows.prompts), key, b"row") & clear
    if not rows.customers:
        return HashedRows(hashed, np.zeros(len(hashed), dtype=np.uint64))
    names = [customer_of(name) for name in rows.customers]
    has_one = np.array([bool(name) for name in names], dtype=bool)
    return HashedRows(hashed, np.where(has_one, _hashes(names, key, b"customer") | CUSTOMER_BIT, np.uint64(0)))


def _hashes(texts: Iterable[str], key: bytes, kind: bytes) -> Hashes:
    """(texts,): BLAKE2b of each under the key, another one for each kind."""
    begun = hashlib.blake2b(digest_size=8, key=key, person=kind)

    def digest(text: str) -> bytes:
        one = begun.copy()
        one.update(text.encode("utf-8", "surrogatepass"))
        return one.digest()

    return np.frombuffer(b"".join(map(digest, texts)), "<u8").astype(np.uint64)


def cohort_of(hashed: HashedRows, by_customer: bool, taking_part: NDArray[np.bool_]) -> Cohort:
    """The cohort of the rows that take part, (rows,) bool. Customers that are known are named in a line by row too."""
    rows, customers = hashed.rows[taking_part], hashed.customers[taking_part]
    names, place, sizes = np.unique(customers, return_inverse=True, return_counts=True)
    hashes, same, counts = np.unique(rows, return_inverse=True, return_counts=True)
    weights = counts.astype(np.int32)
    if by_customer:
        weights = np.ones(len(hashes), dtype=np.int32)
        np.maximum.at(weights, same, np.minimum(sizes[place], 2).astype(np.int32))
        sizes = np.ones_like(sizes)
    named = names != 0
    return Cohort(
        np.concatenate([hashes, names[named]]),
        np.concatenate([weights, sizes[named].astype(np.int32)]).astype(np.int32),
    )


class CohortError(Exception):
    """A cohort file that is missing or damaged."""


class CohortFiles:
    """A folder of cohorts. A file is whole, or says how it differs from another where that is smaller.

    First line: JSON {"base", "depth", "removed", "added"}; then the removed hashes and the added ones, 8 bytes each,
    and the added ones' weights, 4 bytes each, compressed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, Cohort] = {}

    def names(self) -> set[str]:
        """The addresses of all files."""
        return {entry.name for entry in self.folder.iterdir()} if self.folder.is_dir() else set()

    def write(self, cohort: Cohort, bases: Iterable[tuple[str, Cohort]]) -> None:
        """Write a file, as the smallest of: whole, or the difference to one of `bases` (address, cohort). UserError:
        the disk is full.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        smallest = _encoded(Cohort(_NO_HASHES, _NO_WEIGHTS), cohort, "", 0)
        for address, base in bases:
            depth = self._header(address)[0].depth + 1
            if depth <= LARGEST_DEPTH:
                smallest = min(smallest, _encoded(base, cohort, address, depth), key=len)
        write_bytes(self.folder / cohort.address, smallest)

    def read(self, address: str) -> Cohort:
        """One cohort, checked against its address. CohortError where that cannot be done."""
        if address in self._read:
            return self._read[address]
        header, content = self._header(address)
        try:
            base = self.read(header.base) if header.base else Cohort(_NO_HASHES, _NO_WEIGHTS)
            removed = np.frombuffer(content, "<u8", header.removed)
            added = np.frombuffer(content, "<u8", header.added, 8 * header.removed)
            weights = np.frombuffer(zlib.decompress(content[8 * (header.removed + header.added) :]), "<i4")
            kept = ~np.isin(base.hashes, removed, assume_unique=True)
            hashes = np.concatenate([base.hashes[kept], added])
            order = np.argsort(hashes, kind="stable")
            cohort = Cohort(hashes[order], np.concatenate([base.weights[kept], weights]).astype(np.int32)[order])
        except (ValueError, IndexError, zlib.error, RecursionError) as error:
            raise CohortError(f"cohort {address[:12]} is damaged") from error
        if cohort.address != address:
            raise CohortError(f"cohort {address[:12]} is damaged or was changed")
        if len(self._read) > LARGEST_DEPTH:
            self._read.clear()
        self._read[address] = cohort
        return cohort

    def _header(self, address: str) -> tuple[_Header, bytes]:
        try:
            first, _, content = (self.folder / address).read_bytes().partition(b"\n")
            header = json.loads(first)
            return _Header(
                str(header["base"]), int(header["depth"]), int(header["removed"]), int(header["added"])
            ), content
        except OSError as error:
            raise CohortError(f"cohort {address[:12]} cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise CohortError(f"cohort {address[:12]} is damaged") from error


class _Header(NamedTuple):
    base: str
    depth: int
    removed: int
    added: int


_NO_HASHES = np.array([], dtype=np.uint64)
_NO_WEIGHTS = np.array([], dtype=np.int32)


def _encoded(base: Cohort, cohort: Cohort, address: str, depth: int) -> bytes:
    """`cohort` as its difference to `base`; a member whose weight changed is removed and added."""
    places = np.searchsorted(base.hashes, cohort.hashes)
    within = places < len(base.hashes)
    same = np.zeros(len(cohort.hashes), dtype=bool)
    same[within] = (base.hashes[places[within]] == cohort.hashes[within]) & (
        base.weights[places[within]] == cohort.weights[within]
    )
    kept = np.zeros(len(base.hashes), dtype=bool)
    kept[places[same]] = True
    removed, added, weights = base.hashes[~kept], cohort.hashes[~same], cohort.weights[~same]
    header = {"base": address, "depth": depth, "removed": len(removed), "added": len(added)}
    return b"".join(
        [
            json.dumps(header, allow_nan=False).encode() + b"\n",
            removed.astype("<u8").tobytes(),
            added.astype("<u8").tobytes(),
            zlib.compress(weights.astype("<i4").tobytes(), 1),
        ]
    )
