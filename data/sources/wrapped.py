"""Rows inside something else, as other programs write them: under a key, one split a key, or a table by columns. What
to do about it.

Such a file is not read: which of its lists are rows would be a guess. The advice names the keys and a command.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from data.sources.messages import is_conversation
from data.sources.records import is_name
from fedfinlora.config.dataset import ColumnsConfig

DEEPEST = 3
"""Keys inside each other that are looked into."""


def advice(values: Any, columns: ColumnsConfig) -> str:
    """What to do with an object that is no row, but holds rows; "" where it holds none.

    >>> advice({"data": [{"context": "p", "target": "t"}]}, ColumnsConfig())
    'its rows are wrapped in the key data: write that array alone (jq .data FILE > OTHER.json)'
    """
    if not isinstance(values, dict):
        return ""
    if _by_columns(values, columns):
        return (
            f"{columns.context} and {columns.target} hold whole columns: write a row a record (pandas: "
            "to_json(orient='records'))"
        )
    lists = [path for path, found in _places(values, ()) if isinstance(found, list) and _holds_rows(found, columns)]
    if len(lists) == 1:
        return (
            f"its rows are wrapped in the key {_shown(lists[0])}: write that array alone (jq {_jq(lists[0])} FILE > "
            "OTHER.json)"
        )
    if lists:
        keys = ", ".join(map(_shown, lists))
        return (
            f"its rows are wrapped in the keys {keys}: write each array into a file of its own "
            f"(jq {_jq(lists[0])} FILE > NAME_{_shown(lists[0][-1:])}.json)"
        )
    objects = [path for path, found in _places(values, ()) if path and _is_row(found, columns)]
    if objects:
        return (
            f"a row is wrapped in the key {_shown(objects[0])}: write it alone (jq -c {_jq(objects[0])} FILE > "
            "OTHER.jsonl)"
        )
    return ""


def _by_columns(values: dict[str, Any], columns: ColumnsConfig) -> bool:
    """Whether context and target are lists or objects of all rows' values."""
    whole = [values.get(columns.context), values.get(columns.target)]
    return all(isinstance(column, list | dict) and column for column in whole)


def _places(values: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, list | dict):
            yield (*path, key), value
        if isinstance(value, dict) and len(path) + 1 < DEEPEST:
            yield from _places(value, (*path, key))


def _holds_rows(values: list[Any], columns: ColumnsConfig) -> bool:
    first = values[0] if values else None
    if _is_row(first, columns):
        return True
    return isinstance(first, dict) and any(_is_row(value, columns) for value in first.values())


def _is_row(value: Any, columns: ColumnsConfig) -> bool:
    if isinstance(value, dict):
        return columns.messages in value or {columns.context, columns.target} <= set(value)
    return is_conversation(value)


def _shown(path: tuple[str, ...]) -> str:
    """The keys with points between them; a key that may be a row's own text is not shown."""
    return ".".join(key if is_name(key) else "…" for key in path)


def _jq(path: tuple[str, ...]) -> str:
    if not all(map(is_name, path)):
        return "…"
    plain = all(re.fullmatch(r"[A-Za-z_]\w*", key, re.ASCII) for key in path)
    return f".{'.'.join(path)}" if plain else f"'.{''.join(f'[{json.dumps(key, allow_nan=False)}]' for key in path)}'"
