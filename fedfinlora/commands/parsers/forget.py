"""Parsers of `forget`, `contributions`, `clusters` and `explain`: what a finished run's kept updates show."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedfinlora.commands.parsers import add_command

ORDER = 65
RUN_HELP = "a federated run made with strategy.keep_deltas=true: its folder or its name"
SCORED_HELP = "evaluation.KEY=VALUE or model.KEY=VALUE, e.g. evaluation.limit=200 evaluation.benchmarks=[fpb]"
PERMUTATIONS = 50


def add(commands: Any) -> None:
    """Add the four; the line of `explain` names the others."""
    more = "Exact for one round, else a replay of the others' recorded updates; the folder says which."
    command = _command(commands, "forget", "A run's adapter again without one bank.", more, run=RUN_HELP)
    command.add_argument("--bank", required=True, metavar="NAME", help="whose updates are removed")
    command.add_argument("--output", type=Path, metavar="DIR", help="the new folder (default: RUN-without-NAME)")
    command.add_argument("--evaluate", action="store_true", help="score both adapters on the run's benchmarks")
    command.set_defaults(call=call_forget)

    more = "Writes contributions.json and the report."
    command = _command(commands, "contributions", "What each bank of a run gains and adds.", more, run=RUN_HELP)
    command.add_argument("--local", default="", metavar="NAME", help="runs of `local`: path up to -BANK, or their name")
    command.add_argument(
        "--permutations", type=int, default=PERMUTATIONS, metavar="N", help="with more than six banks (default: 50)"
    )
    command.set_defaults(call=call_contributions)

    more = "Writes DIR/clusters.json and an adapter for each cluster, which `evaluate --route` can take."
    command = _command(commands, "clusters", "Banks with similar updates, and an adapter for each.", more, run=RUN_HELP)
    command.add_argument("--clusters", type=int, metavar="K", help="how many (default: as --threshold says)")
    command.add_argument(
        "--threshold", type=float, metavar="X", help="clusters whose mean cosine is above X are joined (default: 0.2)"
    )
    command.add_argument("--output", type=Path, metavar="DIR", help="the new folder (default: RUN-clusters)")
    command.set_defaults(call=call_clusters)

    more = "Trains what lies between the two runs, one change at a time."
    summary = "Why a run is behind. Also: contributions, forget, clusters."
    pooled = "a run of `centralized` on the same rows"
    command = _command(commands, "explain", summary, more, run="a federated run", pooled=pooled)
    command.add_argument("--output", type=Path, metavar="DIR", help="where runs in between go (default: RUN-explained)")
    command.add_argument(
        "--causes", default="", metavar="A,B", help="of steps, optimiser, averaging, skew, privacy, product"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="also write every figure as JSON")
    command.set_defaults(call=call_explain)


def _command(commands: Any, name: str, summary: str, more: str, **places: str) -> argparse.ArgumentParser:
    """A command with its positions (name -> help), then words that say what is scored."""
    command = add_command(commands, name, summary, more, overrides=False, listed=name == "explain")
    for place, text in places.items():
        command.add_argument(place, metavar=place.upper(), help=text)
    command.add_argument("overrides", nargs="*", metavar="key=value", help=SCORED_HELP)
    return command


def call_forget(options: argparse.Namespace) -> int:
    """Run `forget`."""
    from fedfinlora.commands.forget import forget
    from fedfinlora.run.which_run import folder_or_run

    output = options.output.expanduser().absolute() if options.output else None
    return forget(folder_or_run(options.run).absolute(), options.bank, output, options.evaluate, options.overrides)


def call_contributions(options: argparse.Namespace) -> int:
    """Run `contributions`."""
    from fedfinlora.commands.contributions import contributions
    from fedfinlora.run.which_run import folder_or_run

    run = folder_or_run(options.run).absolute()
    return contributions(run, options.local, options.permutations, options.overrides)


def call_clusters(options: argparse.Namespace) -> int:
    """Run `clusters`."""
    from fedfinlora.commands.clusters import clusters
    from fedfinlora.run.which_run import folder_or_run

    run = folder_or_run(options.run).absolute()
    output = options.output.expanduser().absolute() if options.output else run.parent / f"{run.name}-clusters"
    return clusters(run, options.clusters, options.threshold, output, options.overrides)


def call_explain(options: argparse.Namespace) -> int:
    """Run `explain`."""
    from fedfinlora.commands.explain import explain
    from fedfinlora.run.which_run import folder_or_run

    output = options.output.expanduser().absolute() if options.output else None
    runs = (folder_or_run(options.run).absolute(), folder_or_run(options.pooled).absolute())
    return explain(*runs, output, options.causes, options.json, options.overrides)
