"""Parsers of `centralized` and `local`."""

from __future__ import annotations

import argparse
from typing import Any

from fedfinlora.commands.parsers import DETACH_HELP, add_command, with_banks

ORDER = 20


def add(commands: Any) -> None:
    steps = "The optimiser steps, code and evaluator are the same too."
    for name, summary, more, call in (
        ("centralized", "The baseline: the same rows pooled.", steps, call_centralized),
        ("local", "The other baseline: each bank trains alone on its own rows.", "", call_local),
    ):
        command = add_command(commands, name, summary, more)
        command.add_argument("--banks", type=int, metavar="N", help="how many banks the compared run has")
        command.add_argument("--detach", action="store_true", help=DETACH_HELP)
        command.set_defaults(call=call)


def call_centralized(options: argparse.Namespace) -> int:
    from fedfinlora.commands.baselines import centralized

    return centralized(with_banks(options))


def call_local(options: argparse.Namespace) -> int:
    from fedfinlora.commands.baselines import local

    return local(with_banks(options))
