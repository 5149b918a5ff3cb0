"""Parser of `evaluate`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from fedfinlora.commands.parsers import DETACH_HELP, add_command
from fedfinlora.errors import ConfigError

ORDER = 30


def add(commands: Any) -> None:
    command = add_command(commands, "evaluate", "Score base, adapters, other models. Also: gate, harness.")
    command.add_argument(
        "--adapter", action="append", default=[], metavar="DIR",
        help="a PEFT folder, or NAME=DIR:TASK,TASK; several are scored in one pass (default: the base model)",
    )  # fmt: skip
    command.add_argument(
        "--route", action="append", default=[], metavar="ROUTE",
        help="score several as one: arrow (each token by those that fit it), task (by the adapter trained on it), "
        "oracle (by the best on test rows), xlora",
    )  # fmt: skip
    command.add_argument("--gate", default="", metavar="DIR", help="for --route xlora: what `gate` has trained")
    command.add_argument("--detach", action="store_true", help=DETACH_HELP)
    command.add_argument("--base", action="store_true", help="score the untouched base model too, next to the adapters")
    command.add_argument("--model-url", default="", metavar="URL", help="an OpenAI-compatible server, e.g. "
                         "http://127.0.0.1:8000/v1; its key: FEDFINLORA_API_KEY")  # fmt: skip
    command.add_argument("--model-name", default="", metavar="NAME", help="what the server calls the model")
    command.add_argument(
        "--dry-run", action="store_true", help="with --model-url: requests, tokens and cost; send nothing"
    )
    for way, of in (("in", "prompt"), ("out", "answer")):
        command.add_argument(
            f"--price-{way}", type=float, metavar="USD", help=f"per million {of} tokens, for --dry-run"
        )
    command.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    from fedfinlora.commands.asked_models import Asked, absolute, expert_of
    from fedfinlora.commands.evaluate import dry_run, evaluate

    asked = Asked(base=options.base, url=options.model_url, name=options.model_name, routes=tuple(options.route))
    asked = replace(asked.with_experts(map(expert_of, options.adapter)), gate=absolute(options.gate))
    if not asked.url and (asked.name or options.dry_run):
        raise ConfigError("--model-name and --dry-run go with --model-url.")
    if not options.dry_run and (options.price_in is not None or options.price_out is not None):
        raise ConfigError("--price-in and --price-out go with --dry-run.")
    if options.dry_run:
        return dry_run(options.overrides, asked, options.price_in, options.price_out)
    return evaluate(options.overrides, asked)
