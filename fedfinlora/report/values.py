"""Configuration and manifest of a run as the report reads them: one flat mapping of dotted keys."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedfinlora.files import parsed_yaml
from fedfinlora.run.folder import flatten

Values = Mapping[str, Any]
"""Dotted key ("train.epochs") -> plain value: text, number, truth value, list or None."""


def shown(value: Any) -> str:
    """A configuration value as a person writes it."""
    if isinstance(value, str) and value:
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:  # .nan or .inf in a file edited by hand
        return str(value)


def read_object(
    file: Path, missing: list[str], meaning: str = "", parse: Callable[[str], object] = json.loads
) -> dict[str, Any]:
    """The mapping in a file; {} where it is missing or broken, which `missing` then says."""
    problem = "is missing"
    if file.is_file():
        problem = "cannot be read"
        with contextlib.suppress(OSError, ValueError, RecursionError):
            value = parse(file.read_text(encoding="utf-8"))
            if isinstance(value, dict):
                return value
    missing.append(f"{file.name} {problem}{f': {meaning}' if meaning else ''}.")
    return {}


def parse_yaml(text: str) -> object:
    """The value of a YAML text, its mappings as dotted keys. ValueError where it is none."""
    import yaml

    try:
        value = parsed_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    return flatten(value) if isinstance(value, Mapping) else value
