"""Records of JSON files: what one line of JSON Lines or one element of an array says, before it is a row; and what all readers share.

Readers stream: a file is read once, a piece at a time, and hashed on the way. A fault of one record is that record's; a fault after
which nothing can be trusted (a quote that never closes, a damaged archive) raises `Unreadable`, and no record of the file is used.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, NoReturn

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
_BLANK = re.compile(r"[ \t\n\r]*")
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

    def hexdigest(self) -> str:
        """Of the whole file, whatever of it was not read yet."""
        while block := self._source.read(BLOCK_BYTES):
            self._sha256.update(block)
        return self._sha256.hexdigest()


def opened(file: HashedFile, compressed: bool, is_parquet: bool = False) -> io.BufferedReader:
    """The file's text as bytes, without the mark that some editors put before UTF-8. Unreadable where it is no UTF-8 text at all."""
    stream: BinaryIO = io.BufferedReader(file, BLOCK_BYTES)
    if compressed:
        stream = io.BufferedReader(gzip.GzipFile(fileobj=stream), BLOCK_BYTES)  # type: ignore[type-var]
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
    """What a failing decompression means."""
    return Unreadable(f"damaged gzip data ({type(error).__name__}); no row of it is read. Copy the file again")


GZIP_FAULTS = (gzip.BadGzipFile, EOFError, zlib.error)


def json_lines(stream: Iterable[bytes]) -> Iterator[Record]:
    """One JSON value a line; blank lines are passed over, but counted."""
    for line, text in enumerate(stream, start=1):
        if not text.isspace():
            try:
                yield Record(line - 1, line, parsed(text.removesuffix(b"\n")))
            except BadLine as reason:
                yield Record(line - 1, line, reason)


def json_document(content: bytes) -> Iterator[Record]:
    """A .json file: one array of records, one conversation, or values one after the other, such as one a line."""
    lines = [line for line in content.split(b"\n") if not line.isspace() and line]
    starts = [line.lstrip()[:1] for line in lines]
    if not lines:
        return
    objects = starts[0] == b"{" and (starts.count(b"{") * 2 > len(lines) or _is_json(lines[0]))
    conversations = len(lines) > 1 and set(starts) == {b"["}
    if objects or conversations:
        yield from json_lines(io.BytesIO(content))
        return
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable(NO_UTF8, content.count(b"\n", 0, error.start) + 1) from None
    yield from _array(text)


def _array(text: str) -> Iterator[Record]:
    """The elements of an array, or the values that follow each other; Unreadable at the first place where it is no JSON."""
    decoder = json.JSONDecoder(parse_int=NumberText, parse_float=NumberText, parse_constant=lambda constant: None)
    place, line, counted, position = _blank(text, 0), 1, 0, 0
    is_array = text[place : place + 1] == "["
    if is_array and _begins_conversation(decoder, text):
        yield Record(0, 1, _decoded(decoder, text, place, 1)[0])
        return
    place = _blank(text, place + 1) if is_array else place
    closed = not is_array
    while place < len(text):
        line, counted = line + text.count("\n", counted, place), place
        if is_array and text[place] == "]":
            closed = True
            if _blank(text, place + 1) < len(text):
                raise Unreadable("not JSON: something follows the array; no row of the file is read", line)
            break
        values, place = _decoded(decoder, text, place, line)
        yield Record(position, line, values)
        position, place = position + 1, _blank(text, place)
        if is_array and text[place : place + 1] == ",":
            place = _blank(text, place + 1)
            if text[place : place + 1] in ("]", ""):
                raise Unreadable("not JSON: a comma without a value after it; no row of the file is read", line)
        elif is_array and text[place : place + 1] not in ("]", ""):
            raise Unreadable(
                "not JSON: a comma is missing; no row of the file is read", line + text.count("\n", counted, place)
            )
    if not closed:
        raise Unreadable("not JSON: the array does not end, the file is cut off; no row of it is read", line)


def _decoded(decoder: json.JSONDecoder, text: str, place: int, line: int) -> tuple[Any, int]:
    try:
        return decoder.raw_decode(text, place)
    except json.JSONDecodeError as error:
        line += text.count("\n", place, error.pos)
        raise Unreadable(f"not JSON: {error.msg} at column {error.colno}; no row of the file is read", line) from None
    except RecursionError:
        raise Unreadable("not JSON that can be read: nested too deeply", line) from None


def _begins_conversation(decoder: json.JSONDecoder, text: str) -> bool:
    """Whether the array's first element is a message and no row."""
    try:
        first, _ = decoder.raw_decode(text, _blank(text, _blank(text, 0) + 1))
    except (json.JSONDecodeError, RecursionError):
        return False
    return isinstance(first, dict) and "role" in first and "content" in first


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _blank(text: str, place: int) -> int:
    found = _BLANK.match(text, place)
    assert found is not None
    return found.end()


def parsed(text: bytes) -> Any:
    """The value of one line. BadLine where it is no JSON."""
    try:
        return _ONE_LINE.decode(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadLine(f"not UTF-8 at byte {error.start + 1} of the line") from None
    except json.JSONDecodeError as error:
        raise BadLine(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise BadLine("not JSON that can be read: nested too deeply") from None


def _refuse(constant: str) -> NoReturn:
    raise BadLine(f"not JSON: {constant} is not a number")


_ONE_LINE = json.JSONDecoder(parse_int=NumberText, parse_float=NumberText, parse_constant=_refuse)


def missing_columns(names: list[str], needed: frozenset[str], is_table: bool = True) -> str:
    """What to say where a file lacks columns: those that it has, unless the "names" look like a row's own text."""
    lacking = " and ".join(sorted(needed - set(names)))
    if not names or not all(_COLUMN.fullmatch(name) and len(name) <= 40 for name in names):
        return f"no column {lacking}" + (": its first line must name the columns" if is_table else "")
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"no column {lacking}; it has {listed}. Name them with 'dataset.columns={{context: NAME, target: NAME}}'"
