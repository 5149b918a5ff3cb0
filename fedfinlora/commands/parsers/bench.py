"""Parser of `bench`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedfinlora.commands.parsers import add_command

ORDER = 70


def add(commands: Any) -> None:
    """Add the command."""
    names = (
        "NAME is train, evaluate, federation, private-step, round or ledger (which takes rows=N and rounds=N alone)."
    )
    command = add_command(commands, "bench", "Measure speed against a reference.", names)
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    rows = "of `train`: FPB rows (default) or the questions on one filing"
    command.add_argument("--rows", choices=("short", "xbrl"), default="short", help=rows)
    command.usage = "python -m fedfinlora bench NAME [--json FILE] [key=value …]"
    command.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Run it."""
    from fedfinlora.commands.bench import bench

    return bench(options.overrides, options.json, options.rows)
