"""Parser of `bank`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedfinlora.commands.parsers import add_listen, add_party

ORDER = 120


def add(commands: Any) -> None:
    actions = {
        "init": "make key and policy; try rows, model and one step",
        "accept": "take the certificate that the coordinator has issued",
        "try": "what this bank would do with a coordinator's plan",
        "start": "run the SuperNode until Ctrl-C",
        "status": "settings, certificate, last request, epsilon spent",
        "history": "what ran here and what left",
    }
    found = add_party(commands, "bank", "Deployment: one bank.", actions, "One bank of a deployment.")
    init = found["init"]
    init.add_argument("--name", required=True, metavar="BANK", help="the bank's name")
    init.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of its rows")
    init.add_argument("--coordinator", required=True, metavar="HOST:PORT", help="the aggregator's address")
    init.add_argument("--ca", type=Path, required=True, metavar="FILE", help="the coordinator's ca.crt")
    budget = "most epsilon for any row, over all runs; 0 = no limit (default: asked for on a terminal, else 8)"
    init.add_argument("--budget-epsilon", type=float, metavar="EPSILON", help=budget)
    init.add_argument("overrides", nargs="*", metavar="key=value", help="model=… is tried and allowed by the policy")
    found["accept"].add_argument(
        "certificate", type=Path, metavar="FILE", help="what `coordinator enroll` has written, NAME.crt"
    )
    found["try"].add_argument("plan", type=Path, metavar="PLAN", help="what `coordinator plan` has written")
    found["try"].add_argument("--step", action="store_true", help="also load the model and take one local step")
    add_listen(found["start"], "metrics")
    found["start"].add_argument("--no-worker", action="store_true", help="load the base model again for every message")
    for command in found.values():
        command.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    from fedfinlora.commands import bank, bank_setup
    from fedfinlora.deployment.watching import Listen

    home = options.home.expanduser().absolute()
    if options.action == "init":
        authority, budget = options.ca, options.budget_epsilon
        names = (options.name, options.data, options.coordinator)
        return bank_setup.init(home, *names, authority, options.overrides, budget)
    if options.action == "accept":
        return bank_setup.accept(home, options.certificate)
    if options.action == "try":
        return bank_setup.try_plan(home, options.plan, options.step)
    if options.action == "start":
        return bank.start(home, Listen(options.metrics_port, options.metrics_listen), worker=not options.no_worker)
    act = {"status": bank.status, "history": bank.history}
    return act[options.action](home)
