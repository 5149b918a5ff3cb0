"""Parser of `export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedfinlora.commands.parsers import add_command

ORDER = 45


def add(commands: Any) -> None:
    command = add_command(
        commands,
        "export",
        "Write an adapter for vLLM, SGLang, llama.cpp, or merged into its base.",
        "What is written is compared with what was trained, logit by logit.",
        overrides=False,
        listed=False,
    )
    command.add_argument("source", metavar="RUN", help="folder or name of a run, or a PEFT adapter's folder")
    command.add_argument(
        "--for", dest="kind", required=True, metavar="PROGRAM", help="vllm, sglang, gguf (llama.cpp), merged or peft"
    )
    command.add_argument("--out", type=Path, metavar="FOLDER", help="default: RUN-for-PROGRAM, in this folder")
    command.add_argument("--name", default="", help="what the adapter is called when it is served; default: the run's")
    command.add_argument(
        "--rank", type=int, default=64, help="rank that a DoRA adapter is brought to; the default is 64"
    )
    command.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    from fedfinlora.commands.export import export
    from fedfinlora.run.which_run import folder_or_run

    return export(folder_or_run(options.source), options.kind, options.out, options.name, options.rank)
