"""Parsers of `simulate`, and of `demo`, which is `simulate experiment=demo`."""

from __future__ import annotations

import argparse
from typing import Any

from fedfinlora.commands.parsers import BANKS_HELP, DETACH_HELP, add_command, with_banks

ORDER = 10


def add(commands: Any) -> None:
    demo = "The main job on the bundled rows, with a report."
    for name, summary, given in (
        ("simulate", "Train banks together on this machine, through Flower.", []),
        ("demo", demo, ["experiment=demo"]),
    ):
        command = add_command(commands, name, summary)
        command.add_argument("--banks", type=int, metavar="N", help=BANKS_HELP)
        command.add_argument("--detach", action="store_true", help=DETACH_HELP)
        command.set_defaults(call=call, given=given)


def call(options: argparse.Namespace) -> int:
    from fedfinlora.commands.simulate import simulate

    return simulate([*options.given, *with_banks(options)])
