"""Parser of `privacy`, whose actions are in `fedfinlora.commands.privacy`."""

from __future__ import annotations

import argparse
from typing import Any

from fedfinlora.commands.parsers import KEY_VALUE_HELP, add_actions_of, add_command

ORDER = 100


def add(commands: Any) -> None:
    from fedfinlora.commands.privacy import add_actions

    command = add_command(commands, "privacy", "Plan a private run; check a privacy ledger.", overrides=False)
    add_actions(add_actions_of(command), KEY_VALUE_HELP)
    command.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    from fedfinlora.commands.privacy import privacy

    return privacy(options)
