"""Parser of `audit`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedfinlora.commands.parsers import add_command
from fedfinlora.errors import ConfigError

ORDER = 80


def add(commands: Any) -> None:
    more = "Exit status: 0 not refuted, 1 refuted, 3 inconclusive."
    command = add_command(commands, "audit", "Try to refute the claimed epsilon.", more)
    command.add_argument(
        "--run", metavar="RUN", help="audit a run's configuration; its card and report show the result"
    )
    command.add_argument(
        "--checks", default="", metavar="A,B", help="of sensitivity, noise, canaries, ledger (default: all)"
    )
    command.add_argument("--canaries", type=int, default=2000, metavar="N", help="how many (default: 2000)")
    command.add_argument(
        "--confidence", type=float, default=0.95, metavar="P", help="of the canaries' bounds (default: 0.95)"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    command.add_argument(
        "--signing-key", type=Path, metavar="FILE", help="signing.key of the coordinator that signed the run"
    )
    command.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    from fedfinlora.commands.audit import audit
    from fedfinlora.run.which_run import folder_or_run

    if options.run is not None and options.overrides:
        raise ConfigError("--run takes the run's own configuration: drop the key=value words.")
    run = None if options.run is None else folder_or_run(options.run)
    chosen = (options.canaries, options.confidence, options.json, options.checks, options.signing_key)
    return audit(options.overrides, run, *chosen)
