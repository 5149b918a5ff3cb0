"""Records of JSON files: lines of JSON Lines or elements of an array.

Strict where JSON leaves a choice: a key that occurs twice in one object makes its record a bad one (RFC 8259, section
4: what software does with such an object is unpredictable), and so does NaN in JSON Lines.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from data.sources.records import NO_UTF8, BadLine, NumberText, Record, Unreadable, is_name

_BLANK = re.compile(r"[ \t\n\r]*")


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
    objects = starts[0] == b"{" and (
        _is_json(lines[0]) or (starts.count(b"{") * 2 > len(lines) and not _is_json(content))
    )
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
    """The elements of an array, or the values that follow each other; Unreadable at the first place where it is no
    JSON.
    """
    place, line, counted, position = _blank(text, 0), 1, 0, 0
    is_array = text[place : place + 1] == "["
    if is_array and _begins_conversation(text):
        yield Record(0, 1, _decoded(text, place, 1)[0])
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
        values, place = _decoded(text, place, line)
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


def _decoded(text: str, place: int, line: int) -> tuple[Any, int]:
    """(the value that begins at `place`, or the BadLine that says what is wrong with it; where it ends)."""
    try:
        return _IN_ARRAY.raw_decode(text, place)
    except BadLine as reason:
        return reason, _PLAIN.raw_decode(text, place)[1]
    except json.JSONDecodeError as error:
        line += text.count("\n", place, error.pos)
        raise Unreadable(f"not JSON: {error.msg} at column {error.colno}; no row of the file is read", line) from None
    except RecursionError:
        raise Unreadable("not JSON that can be read: nested too deeply", line) from None


def _begins_conversation(text: str) -> bool:
    """Whether the array's first element is a message and no row."""
    try:
        first, _ = _PLAIN.raw_decode(text, _blank(text, _blank(text, 0) + 1))
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
        if text.strip() in (b"[", b"{"):
            raise BadLine(
                "not JSON by itself: a value over several lines belongs into a file that ends in .json"
            ) from None
        if b"\r" in text.strip():
            raise BadLine(
                "not one value: its lines end in carriage returns alone (tr '\\r' '\\n' < FILE > OTHER)"
            ) from None
        raise BadLine(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise BadLine("not JSON that can be read: nested too deeply") from None


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values; BadLine where a key occurs twice, because which value is meant is a
    guess.
    """
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadLine(f"the key {twice if is_name(twice) else 'of a value'} occurs twice in one object")
    return values


def _refuse(constant: str) -> NoReturn:
    raise BadLine(f"not JSON: {constant} is not a number")


def _missing(constant: str) -> None:
    """NaN in an array is a missing value, as in tables; an infinity is refused."""
    if constant != "NaN":
        _refuse(constant)


_ONE_LINE = json.JSONDecoder(
    parse_int=NumberText, parse_float=NumberText, parse_constant=_refuse, object_pairs_hook=unique_keys
)
_IN_ARRAY = json.JSONDecoder(
    parse_int=NumberText, parse_float=NumberText, parse_constant=_missing, object_pairs_hook=unique_keys
)
_PLAIN = json.JSONDecoder()
"""Finds where a value ends in which a key occurs twice."""
