"""From plain values to a configuration and back, strictly: unknown keys and ill-typed values are errors that list what
is valid.

`build` turns what Hydra has composed (`fedfinlora.compose`), or the JSON that a server sends to a bank, into a
`Config`, without importing torch or Hydra.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Hashable, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from fedfinlora.config.schema import Config
from fedfinlora.errors import ConfigError

MOST: Mapping[Any, float] = {int: 2**63 - 1, float: 1e300}
"""Of any number in a configuration, with either sign. NaN and infinity are no JSON."""


def build(values: Mapping[str, Any]) -> Config:
    """Build a validated Config from nested plain values. Raises ConfigError naming the key and what is valid."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"A configuration is a group of keys, not {type(values).__name__}.")
    return typing.cast(Config, _build(Config, values, ""))


Group = typing.TypeVar("Group")


def build_group(cls: type[Group], values: Any) -> Group:
    """Build any frozen dataclass of plain fields from nested plain values, as strictly as `build`."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"A group of keys is expected, not {type(values).__name__}.")
    return typing.cast(Group, _build(cls, values, ""))


def to_plain_group(values: Any) -> dict[str, Any]:
    """The nested plain values of such a dataclass."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(values), allow_nan=False)))


def to_plain(config: Config) -> dict[str, Any]:
    """The nested plain values of a Config (tuples become lists), ready for YAML or JSON."""
    return typing.cast(dict[str, Any], json.loads(to_json(config)))


def to_json(config: Config) -> str:
    """One canonical line of JSON: what the server sends and what `build(json.loads(...))` accepts."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True, allow_nan=False)


def describe(cls: type[Any] = Config, prefix: str = "") -> list[tuple[str, str]]:
    """Every key with its default, in schema order: the configuration reference of the README is made from it."""
    rows: list[tuple[str, str]] = []
    for item in dataclasses.fields(cls):
        default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        if dataclasses.is_dataclass(default):
            rows += describe(type(default), f"{prefix}{item.name}.")
        else:
            shown = json.dumps(default, allow_nan=False)
            rows.append((f"{prefix}{item.name}", shown))
    return rows


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _build(cls: type[Any], values: Mapping[str, Any], prefix: str) -> Any:
    hints = _hints(typing.cast(Hashable, cls))
    names = [item.name for item in dataclasses.fields(cls)]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            near = get_close_matches(str(key), names, n=1)
            hint = f" Did you mean {prefix}{near[0]}?" if near else ""
            raise ConfigError(f"Unknown configuration key {prefix}{key}.{hint} Valid here: {', '.join(names)}.")
        arguments[key] = _convert(hints[key], value, f"{prefix}{key}")
    return cls(**arguments)


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a group of keys, not {value!r}.")
        return _build(typing.cast(type[Any], kind), value, f"{where}.")
    if typing.get_origin(kind) is tuple:
        if isinstance(value, str):
            value = [part for part in value.split(",") if part]
        if not isinstance(value, list | tuple) or not all(isinstance(part, str) for part in value):
            raise ConfigError(f"{where} must be a list of names such as [a,b], not {value!r}.")
        return tuple(value)
    assert not isinstance(kind, types.UnionType), f"{where}: the schema has no unions"
    if kind in MOST and isinstance(value, int | float) and not abs(value) <= MOST[kind]:
        raise ConfigError(f"{where} must be a finite number, at most {MOST[kind]:g}, not {str(value)[:40]}.")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, Path | int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where} must be of type {kind.__name__}, not {value!r}.")
    return value
