"""Parser of `coordinator`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedfinlora.commands.parsers import KEY_VALUE_HELP, add_listen, add_party

ORDER = 110


def add(commands: Any) -> None:
    actions = {
        "init": "make the authority, the server's certificate and the settings",
        "enroll": "take a bank's public key and issue its certificate",
        "revoke": "let a bank in no more",
        "renew": "new certificates of the same authority, for server, signatures and banks",
        "start": "run the SuperLink until Ctrl-C",
        "status": "certificates, banks and runs",
        "plan": "write what a run would ask of the banks, for `bank try`",
        "run": "start a run with the enrolled banks, and follow it",
    }
    description = "The aggregator of a deployment, with TLS and known banks only."
    found = add_party(commands, "coordinator", "Deployment: the aggregator.", actions, description)
    hosts = "a name or address that banks will use (repeatable)"
    found["init"].add_argument("--host", action="append", default=[], metavar="NAME", help=hosts)
    found["init"].add_argument(
        "--listen", default="0.0.0.0", metavar="ADDRESS", help="address to listen on (default: all)"
    )
    found["init"].add_argument("--port", type=int, default=9092, metavar="N", help="default: 9092")
    for action in ("init", "enroll", "renew"):
        days = "how long the certificates are good (default: 365)"
        found[action].add_argument("--days", type=int, default=365, metavar="N", help=days)
        kept = "folder of ca.key and ca.crt (default: that of `init`, whose default is --home)"
        found[action].add_argument("--authority", type=Path, metavar="DIR", help=kept)
        opens = "file whose first line opens an encrypted ca.key (default: asked for on a terminal)"
        found[action].add_argument("--passphrase-file", type=Path, metavar="FILE", help=opens)
    found["init"].add_argument(
        "--encrypt", action="store_true", help="encrypt ca.key with a passphrase that is asked for"
    )
    add_listen(found["start"], "status page and metrics")
    found["enroll"].add_argument("key", type=Path, metavar="PUBKEY", help="the bank's node.key.pub")
    found["enroll"].add_argument("--name", required=True, metavar="BANK", help="the bank's name")
    found["revoke"].add_argument("name", metavar="BANK", help="the bank's name")
    waits = "wait for so many banks (default: all that are enrolled)"
    for action in ("plan", "run"):
        found[action].add_argument("overrides", nargs="*", metavar="key=value", help=KEY_VALUE_HELP)
        found[action].add_argument("--banks", type=int, default=0, metavar="N", help=waits)
    found["plan"].add_argument("--out", type=Path, metavar="FILE", help="where the plan goes (default: the terminal)")
    for command in found.values():
        command.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    from fedfinlora.commands import coordinator, coordinator_run, coordinator_setup
    from fedfinlora.deployment.coordinator_home import AuthorityPlace
    from fedfinlora.deployment.watching import Listen

    home = options.home.expanduser().absolute()
    if options.action in ("init", "enroll", "renew"):
        folder = options.authority.expanduser().absolute() if options.authority else None
        place = AuthorityPlace(folder, options.passphrase_file, getattr(options, "encrypt", False))
        if options.action == "init":
            return coordinator_setup.init(home, options.host, options.port, options.listen, options.days, place)
        if options.action == "enroll":
            return coordinator_setup.enroll(home, options.key, options.name, options.days, place)
        return coordinator_setup.renew(home, options.days, place)
    if options.action == "revoke":
        return coordinator_setup.revoke(home, options.name)
    if options.action == "plan":
        return coordinator_run.plan(home, options.overrides, options.out, options.banks)
    if options.action == "run":
        return coordinator_run.run(home, options.overrides, options.banks)
    if options.action == "start":
        return coordinator.start(home, Listen(options.metrics_port, options.metrics_listen))
    return coordinator.status(home)
