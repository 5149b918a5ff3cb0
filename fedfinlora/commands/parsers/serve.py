"""Parser of `serve`."""

from __future__ import annotations

import argparse
from typing import Any

from fedfinlora.commands.parsers import add_command

ORDER = 46


def add(commands: Any) -> None:
    command = add_command(
        commands,
        "serve",
        "Serve adapters on one base model, for a chat client (OpenAI's API).",
        "`model` in a request names the adapter; `base` is the model without one.",
        overrides=False,
        listed=False,
    )
    command.add_argument("sources", nargs="+", metavar="[NAME=]RUN", help="runs, or PEFT adapters' folders")
    command.add_argument("--host", default="127.0.0.1", help="default: %(default)s, this machine alone")
    command.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    command.add_argument(
        "--room", type=int, default=16, help="adapters in memory at a time; others are loaded when asked for (16)"
    )
    command.add_argument(
        "--batch", type=int, default=8, help="requests decoded at a time (8); eight times as many wait"
    )
    command.add_argument("--max-tokens", type=int, default=1024, help="longest answer, in tokens (1024)")
    command.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    from fedfinlora.commands.serve import serve

    return serve(options.sources, options.host, options.port, options.room, options.batch, options.max_tokens)
