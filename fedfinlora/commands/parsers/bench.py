"""Parser of `bench`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedfinlora.commands.parsers import add_command

ORDER = 70


def add(commands: Any) -> None:
    names = (
        "NAME is train, evaluate, federation, private-step, round, serve, ledger (which takes rows=N and rounds=N "
        "alone) or gpu (which checks a card and measures it; docs/gpu.md)."
    )
    command = add_command(commands, "bench", "Measure speed against a reference.", names)
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    rows = "of `train`: FPB rows (default) or the questions on one filing"
    command.add_argument("--rows", choices=("short", "xbrl"), default="short", help=rows)
    minutes = "of `gpu`: sections that would take longer are skipped (default: %(default)g)"
    command.add_argument("--minutes", type=float, default=8.0, metavar="N", help=minutes)
    command.usage = "python -m fedfinlora bench NAME [--json FILE] [--minutes N] [key=value …]"
    command.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    from fedfinlora.commands.bench import bench

    return bench(options.overrides, options.json, options.rows, options.minutes)
