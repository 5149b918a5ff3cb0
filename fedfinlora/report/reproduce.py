"""The command line that asks for the same run again."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from fedfinlora.report.reading import Run
from fedfinlora.report.values import Values
from fedfinlora.run.origin import COMMANDS

NOT_REPEATED = ("run_name", "output_dir", "resume")
"""Where a run was put is not part of what it was."""


def command_line(run: Run, defaults: Values) -> str:
    """The command typed for the run if its manifest has it, else one made of the values that differ from `defaults`."""
    typed = run.manifest.get("command")
    if isinstance(typed, list) and typed:
        return shlex.join(map(str, typed))
    if isinstance(typed, str) and typed:
        return typed
    overrides = [
        shlex.quote(f"{key}={_hydra_value(value)}")
        for key, value in run.config.items()
        if key not in NOT_REPEATED and (key not in defaults or defaults[key] != value)
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
