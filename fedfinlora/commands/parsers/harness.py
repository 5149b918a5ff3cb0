"""Parser of `harness`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedfinlora.commands.parsers import add_command

ORDER = 35


def add(commands: Any) -> None:
    command = add_command(
        commands,
        "harness",
        "Write the benchmarks as tasks for lm-evaluation-harness.",
        "DIR gets the rows, a YAML file for each benchmark and processing.py; the lm_eval command is printed.",
        overrides=False,
        listed=False,
    )
    command.add_argument("folder", type=Path, metavar="DIR", help="where the tasks are written")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides: which rows, which model")
    command.add_argument("--adapter", type=Path, metavar="DIR", help="PEFT folder that the printed command is to load")
    command.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    from fedfinlora.commands.harness import harness

    return harness(options.folder, options.adapter, options.overrides)
