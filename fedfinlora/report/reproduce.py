"""The configuration of a run against the defaults, and the command line that asks for the same run again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from fedfinlora.report.reading import Run

COMMANDS = {"federated": "simulate", "centralized": "centralized", "local": "local", "evaluate": "evaluate"}
NOT_REPEATED = ("run_name", "output_dir", "resume")
"""Where a run was put is not part of what it was."""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys: {"train": {"epochs": 1}} -> {"train.epochs": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def shown(value: Any) -> str:
    """A configuration value as a person writes it."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)


def command_line(run: Run, defaults: Mapping[str, Any]) -> str:
    """The command typed for the run if its manifest has it, else one made of the values that differ from the defaults."""
    typed = run.manifest.get("command")
    if isinstance(typed, list) and typed:
        return shlex.join(map(str, typed))
    if isinstance(typed, str) and typed:
        return typed
    flat_defaults = flatten(defaults)
    overrides = [
        shlex.quote(f"{key}={_hydra_value(value)}")
        for key, value in flatten(run.config).items()
        if key not in NOT_REPEATED and (key not in flat_defaults or flat_defaults[key] != value)
    ]
    return " ".join(["python -m fedfinlora", COMMANDS.get(run.mode, run.mode), *overrides])


def _hydra_value(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_hydra_value, value)) + "]"
    if isinstance(value, bool) or value is None:
        return json.dumps(value, allow_nan=False)
    if not isinstance(value, str) or re.fullmatch(r"[A-Za-z0-9_./:~@+-]+", value):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
