"""Parser of `gate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedfinlora.commands.parsers import add_command

ORDER = 33


def add(commands: Any) -> None:
    command = add_command(
        commands,
        "gate",
        "Train X-LoRA's gate over several adapters, for `evaluate --route xlora --gate DIR`.",
        "It learns from train rows as dataset.… names them, for as long as train.… says: take public rows. The "
        "adapters stay as they are.",
        overrides=False,
        listed=False,
    )
    command.add_argument("folder", type=Path, metavar="DIR", help="where the gate is written")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides: rows, training, model")
    command.add_argument(
        "--adapter", action="append", default=[], metavar="DIR", help="a PEFT folder, or NAME=DIR; two or more"
    )
    command.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    from fedfinlora.commands.asked_models import expert_of
    from fedfinlora.commands.gate import train_gate

    experts = [expert_of(word) for word in options.adapter]
    return train_gate(options.folder.expanduser().absolute(), experts, options.overrides)
