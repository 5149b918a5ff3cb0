"""From JSON to frozen dataclasses and back: one converter for each class, made from its annotations.

A class whose keys are not its fields has two methods of its own: `as_json` and the class method `parse`, a `Convert`.

A value of another type than its field's is a UserError for a program that computes with the file; a report lists it,
and the field keeps its default. Unknown keys (of a newer version) are left aside; missing fields (of an older file)
keep their defaults.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fedfinlora.errors import UserError

Record = TypeVar("Record")
Problems = list[str]
Convert = Callable[[Any, str, Problems], Any]
"""(a JSON value, its dotted name, what was wrong so far) -> the value of a field. Raises `NotOfType` where it has
another type.
"""

MOST = 2**63 - 1
"""Of a whole number, with either sign."""
OMITTED = {"omitted": True}
"""Metadata of a field that has no key in JSON while it has its default."""


def omitted(default: Any = None) -> Any:
    """Such a field."""
    return dataclasses.field(default=default, metadata=OMITTED)


class NotOfType(Exception):
    """A value of another type than its field's. The argument says what is expected."""


def to_json(record: Any) -> dict[str, Any]:
    """The JSON object of a dataclass, its keys in the order of the fields."""
    if hasattr(record, "as_json"):
        return typing.cast(dict[str, Any], record.as_json())
    found = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if not (field.metadata.get("omitted") and value == _default(field)):
            found[field.name] = plain(value)
    return found


def from_json(cls: type[Record], value: Any, where: str, problems: Problems | None = None) -> Record:
    """A record from a JSON object. `where` names the file, and the line of it, in errors.

    With `problems`, what cannot be read is named there; without, the first of it is a UserError. So is, in both cases,
    a value that is no object, or one without the fields that have no default.
    """
    found: Problems = []
    try:
        record = converter(cls)(value, "", found)
    except NotOfType as wrong:
        raise UserError(f"{where} cannot be read: {wrong}.") from None
    if problems is not None:
        problems += [f"{where}: {problem}." for problem in found]
    elif found:
        raise UserError(f"{where} cannot be read: {found[0]}.")
    return typing.cast(Record, record)


def readable(cls: type[Record], file: Path, problems: Problems) -> Iterator[Record]:
    """The records of a JSON Lines file, one by one; what cannot be read is named in `problems` and skipped. Nothing
    where there is no file.
    """
    if not file.is_file():
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{file.name}, line {number}"
            try:
                if line.strip():
                    yield from_json(cls, json.loads(line), where, problems)
            except UserError as error:
                problems.append(str(error))
            except (ValueError, RecursionError):
                problems.append(f"{where} cannot be read.")


def plain(value: Any) -> Any:
    """A value of a record as JSON has it."""
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _record(cls: Any) -> Convert:
    if cls not in _RECORDS:
        _RECORDS[cls] = _make_converter(cls)
    return _RECORDS[cls]


_RECORDS: dict[Any, Convert] = {}


def _make_converter(cls: Any) -> Convert:
    hints = typing.get_type_hints(cls)
    fields = [(field.name, converter(hints[field.name]), _has_default(field)) for field in dataclasses.fields(cls)]

    def convert(value: Any, name: str, problems: Problems) -> Any:
        if not isinstance(value, Mapping):
            raise NotOfType(f"{name} is no object" if name else "it is no object")
        found = {}
        for key, converted, has_default in fields:
            place = f"{name}.{key}" if name else key
            if key not in value:
                if not has_default:
                    raise NotOfType(f"{place} is missing")
                continue
            try:
                found[key] = converted(value[key], place, problems)
            except NotOfType as wrong:
                if not has_default:
                    raise
                problems.append(str(wrong))
        try:
            return cls(**found)
        except ValueError as error:
            raise NotOfType(f"{name}: {error}" if name else str(error)) from None

    return convert


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def converter(kind: Any) -> Convert:
    """The converter of a type: a class of records, a scalar, tuple[X, ...], Mapping[str, X], X | None, or Any."""
    if kind is Any:
        return _any
    if hasattr(kind, "parse"):
        return typing.cast(Convert, kind.parse)
    if dataclasses.is_dataclass(kind):
        return _record(kind)
    if isinstance(kind, types.UnionType):
        [inner] = [
            part for part in kind.__args__ if part is not type(None)
        ]  # X | None is the only union that records have
        convert = converter(inner)
        return lambda value, name, problems: None if value is None else convert(value, name, problems)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return _items(converter(parts[0]))
    if origin is Mapping:
        return _entries(converter(parts[1]))
    return _SCALARS[kind]


def _items(convert: Convert) -> Convert:
    """Of tuple[X, ...]. An item that cannot be read is skipped."""

    def converted(value: Any, name: str, problems: Problems) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise NotOfType(f"{name} is no list")
        found = []
        for index, item in enumerate(value):
            try:
                found.append(convert(item, f"{name}[{index}]", problems))
            except NotOfType as wrong:
                problems.append(str(wrong))
        return tuple(found)

    return converted


def _entries(convert: Convert) -> Convert:
    """Of Mapping[str, X]. An entry that cannot be read is skipped."""
    if convert is _any:
        return _mapping

    def converted(value: Any, name: str, problems: Problems) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise NotOfType(f"{name} is no object")
        found = {}
        for key, item in value.items():
            try:
                found[str(key)] = convert(item, f"{name}.{key}", problems)
            except NotOfType as wrong:
                problems.append(str(wrong))
        return found

    return converted


def _any(value: Any, name: str, problems: Problems) -> Any:
    return value


def _mapping(value: Any, name: str, problems: Problems) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise NotOfType(f"{name} is no object")
    return {str(key): item for key, item in value.items()}


def _text(value: Any, name: str, problems: Problems) -> str:
    if not isinstance(value, str):
        raise NotOfType(f"{name} is no text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise NotOfType(f"{name} is no text that UTF-8 can hold") from None
    return value


def _truth(value: Any, name: str, problems: Problems) -> bool:
    if not isinstance(value, bool):
        raise NotOfType(f"{name} is neither true nor false")
    return value


def _whole(value: Any, name: str, problems: Problems) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise NotOfType(f"{name} is no whole number")
    if not -MOST <= value <= MOST:
        raise NotOfType(f"{name} is out of range")
    return value


def _number(value: Any, name: str, problems: Problems) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotOfType(f"{name} is no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise NotOfType(f"{name} is not finite")
    return number


_SCALARS: dict[Any, Convert] = {str: _text, bool: _truth, int: _whole, float: _number}
