"""Parsers of `attach`, `stop` and `list`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedfinlora.commands.parsers import add_command
from fedfinlora.run.which_run import RUNS

ORDER = 90


def add(commands: Any) -> None:
    """Add the three."""
    where = "the folder that it lies in (default: %(default)s)"
    for name, summary in (
        ("attach", "Follow a run; Ctrl-C leaves it running. Also: stop RUN."),
        ("stop", "End a run in good order, and say how to resume it."),
    ):
        command = add_command(commands, name, summary, overrides=False, listed=name != "stop")
        command.add_argument("run", metavar="RUN", help="its folder, its name or the beginning of its name")
        command.add_argument("--output-dir", type=Path, default=RUNS, metavar="DIR", help=where)
        command.set_defaults(call=call)
    command = add_command(commands, "list", "List runs: state, rounds, last score, when.", overrides=False)
    command.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=RUNS,
        metavar="DIR",
        help="output_dir of the runs (default: %(default)s)",
    )
    same = "the same, as `attach` and `stop` have it"
    command.add_argument("--output-dir", type=Path, metavar="DIR", help=same)
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(call=call_list)


def call(options: argparse.Namespace) -> int:
    """Run `attach` or `stop`."""
    from fedfinlora.commands import running
    from fedfinlora.run.which_run import find_run

    run = running.present_stage(find_run(options.run, options.output_dir.expanduser().absolute(), running_first=True))
    return running.attach(run) if options.command == "attach" else running.stop(run)


def call_list(options: argparse.Namespace) -> int:
    """Run `list`."""
    from fedfinlora.commands.running import list_runs

    return list_runs((options.output_dir or options.folder).expanduser().absolute(), options.json)
