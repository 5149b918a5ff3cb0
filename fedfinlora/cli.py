"""The command line: parse, call one command, turn a UserError into one line and an exit status (0 done, 1 failed, 2 bad
usage).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fedfinlora import __version__
from fedfinlora.commands.parsers import Parser, modules
from fedfinlora.errors import ConfigError, UserError, printable
from fedfinlora.files import places_named
from fedfinlora.run.detach import is_detached, start_detached
from fedfinlora.system.family import interrupt_on_signals
from fedfinlora.system.shadows import own_modules_first
from fedfinlora.system.surroundings import of_machine, prepare_process, replace_unprintable


class _ListOfCommands(argparse.HelpFormatter):
    """Leaves room for the longest command, which argparse forgets to indent, so that each has one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = len("centralized") + 4


def parser() -> argparse.ArgumentParser:
    """The parser; each command's `--help` fits a screen."""
    top = argparse.ArgumentParser(
        prog="fedfinlora" if Path(sys.argv[0]).name == "fedfinlora" else "python -m fedfinlora",
        formatter_class=_ListOfCommands,
        description="Banks fine-tune one quantized Llama on rows they may not share. Exit: 0 done, 1 failed, 2 usage.",
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for module in modules():
        module.add(commands)
    return top


WRITTEN = ("json", "export", "out", "output", "home")
"""Options that say where a command writes."""
WRITES_TO = {"report": "--output", "export": "--out", "forget": "--output", "explain": "--output"}
"""Command -> its option for what it writes to a place of its own choice."""


def _written_to(options: argparse.Namespace) -> tuple[dict[str, Path], str]:
    """(option -> the place that it names, how the command takes another place for all else that it writes)."""
    given = {f"--{name}": place for name in WRITTEN if isinstance(place := getattr(options, name, None), Path)}
    otherwise = "output_dir=FOLDER" if hasattr(options, "overrides") else ""
    return given, WRITES_TO.get(options.command, otherwise)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    own_modules_first()
    replace_unprintable()
    options = parser().parse_args(arguments)
    interrupt_on_signals()
    try:
        for sentence in [] if options.command == "doctor" else prepare_process():
            print(f"warning: {sentence}", file=sys.stderr)
        if getattr(options, "detach", False) and not is_detached():
            return start_detached(sys.argv[1:] if arguments is None else arguments)
        with places_named(*_written_to(options)):
            return int(options.call(options))
    except UserError as error:  # lines of it may be of somebody else's file
        print("\n".join(map(printable, f"error: {error}".split("\n"))), file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, RuntimeError) as error:
        if not (line := of_machine(error)):
            raise
        if (
            isinstance(error, OSError) and error.filename is None
        ):  # or what is left of the output would fail once more at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"error: {printable(line)}", file=sys.stderr)
        return 1
