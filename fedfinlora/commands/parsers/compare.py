"""Parser of `compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedfinlora.commands.parsers import add_command

ORDER = 60


def add(commands: Any) -> None:
    command = add_command(
        commands, "compare", "Compare two evaluations row by row, with paired tests.", overrides=False
    )
    command.add_argument("run_a", metavar="RUN_A", help="folder or name of a run")
    command.add_argument("run_b", metavar="RUN_B", help="of another, or of the same")
    command.add_argument(
        "--labels",
        nargs=2,
        default=["final", "final"],
        metavar=("A", "B"),
        help="which scores of each: base, final, round_NNN",
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="also write every figure as JSON")
    command.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    from fedfinlora.commands.compare import compare
    from fedfinlora.run.which_run import folder_or_run

    return compare(folder_or_run(options.run_a), folder_or_run(options.run_b), options.labels, options.json)
