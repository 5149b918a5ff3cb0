"""Parser of `data`."""

from __future__ import annotations

import argparse
from typing import Any

from fedfinlora.commands.parsers import add_actions_of

ORDER = 140


def add(commands: Any) -> None:
    summary = "Look at data: `data check ROOT`."
    command = commands.add_parser("data", help=summary, description="Look at data before anybody trains on it.")
    check = add_actions_of(command).add_parser(
        "check", help="rows, bad rows, labels, prompt tokens, duplicates and overlap of each file"
    )
    layouts = "ROOT: a folder in FinLoRA's layout, a bank's own folder, or a folder a bank"
    keys = (
        "model=… names the tokenizer, dataset=… the layout, dataset.tasks=[…] what is trained, dataset.columns={…} "
        "the columns; show=all lists every bad and every long row"
    )
    check.add_argument("overrides", nargs="*", metavar="ROOT, key=value", help=f"{layouts}; {keys}")
    check.usage = "python -m fedfinlora data check ROOT [key=value …]"
    command.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    from fedfinlora.commands.data import check, root_and_overrides

    return check(*root_and_overrides(options.overrides))
