"""Parser of `doctor`."""

from __future__ import annotations

import argparse
from typing import Any

from fedfinlora.commands.parsers import add_command

ORDER = 130


def add(commands: Any) -> None:
    more = "Each line is ok, warn or fail, with what to do. Exit status: 1 if a run would fail."
    command = add_command(commands, "doctor", "Say what would go wrong on this machine.", more)
    command.add_argument("--json", action="store_true", help="print the findings as JSON")
    command.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    from fedfinlora.commands.doctor import doctor

    return doctor(options.overrides, options.json)
