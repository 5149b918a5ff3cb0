"""What all readers of rows share: the record, its faults, and a file's bytes, hashed and unpacked as they are read.

Readers stream: a file is read once, a piece at a time, and hashed on the way. A fault of one record is that record's; a
fault after which nothing can be trusted (a quote that never closes, a damaged archive) raises `Unreadable`, and no
record of the file is used.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

BLOCK_BYTES = 1 << 20
UTF8_MARK = b"\xef\xbb\xbf"
PARQUET = b"PAR1"
MAGIC: Mapping[bytes, str] = {
    b"\x1f\x8b": "gzip-compressed: let its name end in .gz",
    PARQUET: "a Parquet file: let its name end in .parquet",
    b"PK\x03\x04": "a ZIP archive or an Excel workbook: unpack it, or save it as CSV UTF-8",
    b"BZh": "compressed with bzip2: unpack it",
    b"\xfd7zXZ": "compressed with xz: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run git lfs pull",
}
"""First bytes -> what such a file really is."""
UTF16 = "UTF-16 text, not UTF-8: save it as UTF-8 (iconv -f UTF-16 -t UTF-8 FILE > OTHER)"
NO_UTF8 = "not UTF-8: save the file as UTF-8 (from Windows: iconv -f CP1252 -t UTF-8 FILE > OTHER)"
MOST_GROWTH = 500
"""How many times its own size a compressed file may hold: text of rows is some 3 to 20 times as long."""
ALWAYS_UNPACKED_BYTES = 1 << 26
"""Unpacked at any growth."""
_COLUMN = re.compile(r"[^\W\d]\w*(?:[ .]\w+){0,2}")


class BadLine(Exception):
    """The reason why a record is not a row."""


class Unreadable(Exception):
    """The reason why no record of a file can be used, and the line (from 1; 0 = of the whole file)."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(reason)
        self.line = line


class NumberText(str):
    """A number as it is spelled in the file: 5.10 stays 5.10."""

    __slots__ = ()


class Record(NamedTuple):
    """One record of a file, well-formed or not."""

    position: int
    """From 0; the row's id is made of it. Bad records count too."""
    line: int
    """Where it begins, from 1, as editors count; of a Parquet table its row from 1."""
    values: Any
    """An object of keys and values, a list of messages, or the BadLine that says what is wrong."""


class HashedFile(io.RawIOBase):
    """A file's bytes, hashed as they are read."""

    def __init__(self, source: io.FileIO) -> None:
        """Closing this, as readers around it do at their end, leaves `source` open."""
        self._source = source
        self._sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._source.readinto(buffer) or 0
        self._sha256.update(memoryview(buffer)[:count])
        return count

    def size_bytes(self) -> int:
        """Of the file on disk."""
        return os.fstat(self._source.fileno()).st_size

    def hexdigest(self) -> str:
        """Of the whole file; what was not read yet is read now."""
        while block := self._source.read(BLOCK_BYTES):
            self._sha256.update(block)
        return self._sha256.hexdigest()


class _Unpacked(gzip.GzipFile):
    """A gzip file's content. Unreadable where it grows as only a file does that was made to fill memory."""

    def __init__(self, packed: BinaryIO, size_bytes: int) -> None:
        super().__init__(fileobj=packed)
        self._most_bytes = max(ALWAYS_UNPACKED_BYTES, MOST_GROWTH * size_bytes)

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(BLOCK_BYTES if size is None or size < 0 else size)
        if self.tell() > self._most_bytes:
            raise Unreadable(f"unpacks to more than {MOST_GROWTH} times its size: not rows; no row of it is read")
        return content


def opened(file: HashedFile, compressed: bool, is_parquet: bool = False) -> io.BufferedReader:
    """The file's text as bytes, without the mark that some editors put before UTF-8. Unreadable where it is no UTF-8
    text at all.
    """
    stream: BinaryIO = io.BufferedReader(file, BLOCK_BYTES)
    if compressed:
        stream = io.BufferedReader(_Unpacked(stream, file.size_bytes()), BLOCK_BYTES)  # type: ignore[type-var]
    assert isinstance(stream, io.BufferedReader)
    head = stream.peek(32)[:32]
    for magic, meaning in MAGIC.items():
        if head.startswith(magic) and not (is_parquet and magic == PARQUET):
            raise Unreadable(meaning)
    every_other_is_0 = (head[0:4:2] == b"\0\0") != (head[1:4:2] == b"\0\0")
    if not is_parquet and (head[:2] in (b"\xff\xfe", b"\xfe\xff") or every_other_is_0):
        raise Unreadable(UTF16, 1)
    if head.startswith(UTF8_MARK):
        stream.read(len(UTF8_MARK))
    return stream


def damaged(error: Exception) -> Unreadable:
    if isinstance(error, gzip.BadGzipFile) and str(error).startswith("Not a gzipped file"):
        return Unreadable(
            "not gzip data, or something else follows them: take .gz from its name, or cut off what follows; no row of "
            "it is read"
        )
    return Unreadable(f"damaged gzip data ({type(error).__name__}); no row of it is read. Copy the file again")


GZIP_FAULTS = (gzip.BadGzipFile, EOFError, zlib.error)


def is_name(text: str) -> bool:
    """Whether a key looks like a column's name and not like a row's own text, which is never shown."""
    return bool(_COLUMN.fullmatch(text)) and len(text) <= 40


def missing_columns(names: list[str], needed: frozenset[str], is_table: bool = True) -> str:
    """What to say where a file lacks columns: those that it has, unless the "names" look like a row's own text."""
    lacking = " and ".join(sorted(needed - set(names)))
    if not names or not all(map(is_name, names)):
        return f"no column {lacking}" + (": its first line must name the columns" if is_table else "")
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"no column {lacking}; it has {listed}. Name them with 'dataset.columns={{context: NAME, target: NAME}}'"
