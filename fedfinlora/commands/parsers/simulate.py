"""Parser of `simulate`."""

from __future__ import annotations

import argparse
from typing import Any

from fedfinlora.commands.parsers import BANKS_HELP, DETACH_HELP, add_command, with_banks

ORDER = 10


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, "simulate", "Train banks together on this machine, through Flower.")
    command.add_argument("--banks", type=int, metavar="N", help=BANKS_HELP)
    command.add_argument("--detach", action="store_true", help=DETACH_HELP)
    command.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Run it."""
    from fedfinlora.commands.simulate import simulate

    return simulate(with_banks(options))
