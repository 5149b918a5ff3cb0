"""Parser of `verify`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedfinlora.commands.parsers import add_command

ORDER = 50


def add(commands: Any) -> None:
    more = "Exit status: 0 as it was made, 1 something is wrong, 3 not everything could be proven."
    command = add_command(commands, "verify", "Check who made a run or adapter; find changes.", more, overrides=False)
    command.add_argument(
        "folder", metavar="DIR", help="a run (also by its name), an adapter (RUN/adapters/final) or a bank's home"
    )
    command.add_argument(
        "--ca", type=Path, metavar="FILE", help="the consortium's ca.crt: signatures must be by its coordinator"
    )
    command.add_argument("--key", type=Path, metavar="FILE", help="the public key that must have signed the adapter")
    command.add_argument("--enrolled", type=Path, metavar="DIR", help="banks' public keys that you know, as BANK.pub")
    command.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    from fedfinlora.commands.verify import verify
    from fedfinlora.run.which_run import folder_or_run

    return verify(folder_or_run(options.folder), options.ca, options.key, options.enrolled)
