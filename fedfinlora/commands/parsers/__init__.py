"""The parsers of the commands, a module for each: its words and options, and the call of its function in
`fedfinlora.commands`.

A module has `ORDER`, its place in the list of commands, and `add(commands)`, which ends with `set_defaults(call=…)`.
Nothing heavy is imported before a command is called. A new command is a new module here.
"""

from __future__ import annotations

import argparse
import pkgutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

KEY_VALUE_HELP = "Hydra overrides, e.g. peft=dora train.steps_per_round=20; every key: docs/configuration.md"
DETACH_HELP = "run without this terminal; `attach`, `stop` and `list` come back to it"
BANKS_HELP = "how many banks (default: the configuration's)"
CAN_DETACH = ("simulate", "demo", "centralized", "local", "evaluate")

HOME_HELP = "where its files lie (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """Lets overrides stand on both sides of an option; argparse ends them at the first."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, left = super().parse_known_args(args, namespace)
        if hasattr(found, "overrides"):
            found.overrides += [word for word in left if not word.startswith("-")]
            left = [word for word in left if word.startswith("-")]
        if "--detach" in left:
            self.error(
                f"--detach goes with {', '.join(CAN_DETACH)}. Start another command with nohup, or as a service."
            )
        if left:  # here and not in the parser above, whose usage is that of all commands
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return found, left


def modules() -> list[ModuleType]:
    """The modules of this package, in the order of the list of commands."""
    found = [import_module(f"{__name__}.{each.name}") for each in pkgutil.iter_modules(__path__)]
    return sorted(found, key=lambda module: int(module.ORDER))


def add_command(
    commands: Any, name: str, summary: str, more: str = "", overrides: bool = True, listed: bool = True
) -> argparse.ArgumentParser:
    """A parser; `summary` is the command's line in the list of all, `more` follows it in the command's own help. One
    that is not `listed` has no line, so that the list fits a screen: the line of a related command names it.
    """
    line = {"help": summary} if listed else {}
    command: argparse.ArgumentParser = commands.add_parser(name, **line, description=f"{summary} {more}")
    if overrides:
        command.add_argument("overrides", nargs="*", metavar="key=value", help=KEY_VALUE_HELP)
    return command


def add_actions_of(command: argparse.ArgumentParser) -> Any:
    """Where the actions of a command, such as `bank init`, are added."""
    return command.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)


def with_banks(options: argparse.Namespace) -> list[str]:
    """The overrides, with --banks as the last of them."""
    return [*options.overrides, *([f"banks={options.banks}"] if options.banks is not None else [])]


def add_party(
    commands: Any, name: str, summary: str, actions: Mapping[str, str], description: str
) -> dict[str, argparse.ArgumentParser]:
    """A command with actions of its own (action -> what it does), each with --home; returns their parsers."""
    party = commands.add_parser(name, help=summary, description=description)
    added = party.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    found = {}
    for action, does in actions.items():
        found[action] = added.add_parser(action, help=does, description=f"{does[0].upper()}{does[1:]}.")
        home = Path("~") / ".fedfinlora" / name  # without HOME, --help works all the same
        found[action].add_argument("--home", type=Path, default=home, metavar="DIR", help=HOME_HELP)
    return found


def add_listen(start: argparse.ArgumentParser, what: str) -> None:
    start.add_argument("--metrics-port", type=int, default=0, metavar="N", help=f"{what}, over HTTP (default: 0, none)")
    where = "where they listen (default: 127.0.0.1, this machine alone)"
    start.add_argument("--metrics-listen", default="127.0.0.1", metavar="ADDRESS", help=where)
