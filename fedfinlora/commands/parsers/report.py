"""Parser of `report`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedfinlora.commands.parsers import add_command

ORDER = 40


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands, "report", "Write report.html of runs. Also: export or serve an adapter.", overrides=False
    )
    command.add_argument("runs", nargs="+", metavar="RUN", help="folders or names of runs")
    command.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the first run's folder")
    command.add_argument(
        "--export",
        type=Path,
        metavar="DIR",
        help="also write tables and figures into DIR: CSV, Markdown, LaTeX, SVG, and for papers PNG and PDF",
    )
    command.add_argument(
        "--figure", action="append", default=[], metavar="NAME",
        help="with --export: write only this figure or table for papers again (may be repeated)",
    )  # fmt: skip
    command.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Run it."""
    from fedfinlora.commands.report import report
    from fedfinlora.run.which_run import named_folder, runs_named

    runs = [run for name in options.runs for run in runs_named(name)]
    output = options.output or named_folder(options.runs[0]) / "report.html"  # of stages: not in the first one's folder
    return report(runs, output, options.export, options.figure)
