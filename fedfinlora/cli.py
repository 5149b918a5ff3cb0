"""The command line: parse, call one command, turn a UserError into one line and an exit status (0 done, 1 failed, 2 bad usage)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfinlora import __version__
from fedfinlora.commands.running import add_actions
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.family import interrupt_on_signals
from fedfinlora.surroundings import of_machine, own_modules_first, prepare_process, replace_unprintable

KEY_VALUE_HELP = "Hydra overrides, e.g. peft=dora train.steps_per_round=20; every key: fedfinlora/config.py"

HOME_HELP = "where its files lie (default: %(default)s)"


class _ListOfCommands(argparse.HelpFormatter):
    """Leaves room for the longest command, which argparse forgets to indent, so that each has one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = len("centralized") + 4


class _Parser(argparse.ArgumentParser):
    """Lets overrides stand on both sides of an option; argparse ends them at the first."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, left = super().parse_known_args(args, namespace)
        if hasattr(found, "overrides"):
            found.overrides += [word for word in left if not word.startswith("-")]
            left = [word for word in left if word.startswith("-")]
        return found, left


def parser() -> argparse.ArgumentParser:
    """The parser; each command's `--help` fits a screen."""
    top = argparse.ArgumentParser(
        prog="python -m fedfinlora",
        formatter_class=_ListOfCommands,
        description="Banks fine-tune one quantized Llama on text that they may not share. Runs land in ~/.fedfinlora/runs. "
        "Exit status: 0 done, 1 failed, 2 bad usage.",
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def add(name: str, summary: str, more: str = "", overrides: bool = True) -> argparse.ArgumentParser:
        """`summary` is the command's line in the list of all, `more` follows it in the command's own help."""
        command = commands.add_parser(name, help=summary, description=f"{summary} {more}")
        if overrides:
            command.add_argument("overrides", nargs="*", metavar="key=value", help=KEY_VALUE_HELP)
        return command

    detach = "run without this terminal; `attach`, `stop` and `list` come back to it"
    simulate = add("simulate", "Train banks together on this machine, through Flower.")
    simulate.add_argument("--banks", type=int, metavar="N", help="how many banks (default: the configuration's)")
    simulate.add_argument("--detach", action="store_true", help=detach)
    for name, summary, more in (
        ("centralized", "The baseline: the same rows pooled.", "The optimiser steps, code and evaluator are the same too."),
        ("local", "The other baseline: each bank trains alone on its own rows.", ""),
    ):
        command = add(name, summary, more)
        command.add_argument("--banks", type=int, metavar="N", help="how many banks the compared run has")
        if name == "centralized":
            command.add_argument("--detach", action="store_true", help=detach)
    evaluate = add("evaluate", "Score base model, adapters, or a model behind a server.")
    evaluate.add_argument(
        "--adapter", type=Path, action="append", default=[], metavar="DIR",
        help="a PEFT folder; several are scored in one pass (default: the base model)",
    )  # fmt: skip
    evaluate.add_argument("--detach", action="store_true", help=detach)
    evaluate.add_argument("--base", action="store_true", help="score the untouched base model beside the adapters")
    evaluate.add_argument("--model-url", default="", metavar="URL", help="an OpenAI-compatible server, e.g. "
                          "http://127.0.0.1:8000/v1; its key: FEDFINLORA_API_KEY")  # fmt: skip
    evaluate.add_argument("--model-name", default="", metavar="NAME", help="what the server calls the model")
    evaluate.add_argument("--dry-run", action="store_true", help="with --model-url: requests, tokens and cost; send nothing")
    for way, of in (("in", "prompt"), ("out", "answer")):
        evaluate.add_argument(f"--price-{way}", type=float, metavar="USD", help=f"per million {of} tokens, for --dry-run")
    report = add("report", "Write report.html of one run, or of several side by side.", overrides=False)
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    report.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the first run's folder")
    report.add_argument(
        "--export", type=Path, metavar="DIR", help="also write scores.csv, .md, .tex and figures/*.svg into DIR"
    )
    verify = add("verify", "Check who made a run or adapter; find changes.", overrides=False)
    verify.add_argument("folder", type=Path, metavar="DIR", help="a run, an adapter (RUN/adapters/final) or a bank's home")
    verify.add_argument(
        "--ca", type=Path, metavar="FILE", help="the consortium's ca.crt: signatures must be by its coordinator"
    )
    verify.add_argument("--key", type=Path, metavar="FILE", help="the public key that must have signed the adapter")
    verify.add_argument("--enrolled", type=Path, metavar="DIR", help="banks' public keys that you know, as BANK.pub")
    compare = add("compare", "Compare two evaluations row by row, with paired tests.", overrides=False)
    compare.add_argument("run_a", type=Path, metavar="RUN_A", help="folder of a run")
    compare.add_argument("run_b", type=Path, metavar="RUN_B", help="folder of another, or of the same")
    compare.add_argument(
        "--labels", nargs=2, default=["final", "final"], metavar=("A", "B"), help="which scores of each: base, final, round_NNN"
    )
    compare.add_argument("--json", type=Path, metavar="FILE", help="also write every figure as JSON")
    bench = add("bench", "Measure speed beside a reference.", "NAME is train, evaluate, federation, private-step or round.")
    bench.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    bench.add_argument(
        "--rows",
        choices=("short", "xbrl"),
        default="short",
        help="of `train`: FPB rows (default) or the questions on one filing",
    )
    bench.usage = "python -m fedfinlora bench NAME [--json FILE] [key=value …]"
    audit = add("audit", "Try to refute the claimed epsilon.", "Exit status: 0 it stands, 1 refuted, 3 inconclusive.")
    audit.add_argument(
        "--run", type=Path, metavar="RUN", help="audit a run's configuration; its card and report tell the result"
    )
    audit.add_argument("--checks", default="", metavar="A,B", help="of sensitivity, noise, canaries, ledger (default: all)")
    audit.add_argument("--canaries", type=int, default=2000, metavar="N", help="how many (default: 2000)")
    audit.add_argument("--confidence", type=float, default=0.95, metavar="P", help="of the canaries' bounds (default: 0.95)")
    audit.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    add_actions(commands)
    _add_privacy(commands)
    _add_coordinator(commands)
    _add_bank(commands)
    more = "Each line is ok, warn or fail, with what to do. Exit status: 1 if a run would fail."
    doctor = add("doctor", "Say what would go wrong on this machine.", more)
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    data = commands.add_parser(
        "data", help="Look at data: `data check ROOT`.", description="Look at data before anybody trains on it."
    )
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="rows, bad rows, labels, prompt tokens, duplicates and overlap of each file")
    check.add_argument(
        "root", type=Path, metavar="ROOT", help="a folder in FinLoRA's layout, a bank's own folder, or a folder a bank"
    )
    check.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="model=… names the tokenizer, dataset=… the layout, dataset.columns={…} the columns",
    )
    return top


def _add_privacy(commands: Any) -> None:
    from fedfinlora.commands.privacy import add_actions

    summary = "Plan a private run; check a privacy ledger."
    actions = commands.add_parser("privacy", help=summary, description=summary)
    add_actions(actions.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=_Parser), KEY_VALUE_HELP)


def _add_party(
    commands: Any, name: str, summary: str, actions: Mapping[str, str], description: str
) -> dict[str, argparse.ArgumentParser]:
    """A command with actions of its own (action -> what it does), each with --home; returns their parsers."""
    party = commands.add_parser(name, help=summary, description=description)
    added = party.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=_Parser)
    found = {}
    for action, does in actions.items():
        found[action] = added.add_parser(action, help=does, description=f"{does[0].upper()}{does[1:]}.")
        home = Path("~") / ".fedfinlora" / name  # without HOME, --help works all the same
        found[action].add_argument("--home", type=Path, default=home, metavar="DIR", help=HOME_HELP)
    return found


def _add_coordinator(commands: Any) -> None:
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
    found = _add_party(commands, "coordinator", "Deployment: the aggregator.", actions, description)
    hosts = "a name or address that banks will use (repeatable)"
    found["init"].add_argument("--host", action="append", default=[], metavar="NAME", help=hosts)
    found["init"].add_argument("--listen", default="0.0.0.0", metavar="ADDRESS", help="address to listen on (default: all)")
    found["init"].add_argument("--port", type=int, default=9092, metavar="N", help="default: 9092")
    for action in ("init", "enroll", "renew"):
        days = "how long the certificates are good (default: 365)"
        found[action].add_argument("--days", type=int, default=365, metavar="N", help=days)
        kept = "folder of ca.key and ca.crt (default: that of `init`, whose default is --home)"
        found[action].add_argument("--authority", type=Path, metavar="DIR", help=kept)
        opens = "file whose first line opens an encrypted ca.key (default: asked for on a terminal)"
        found[action].add_argument("--passphrase-file", type=Path, metavar="FILE", help=opens)
    found["init"].add_argument("--encrypt", action="store_true", help="encrypt ca.key with a passphrase that is asked for")
    _add_listen(found["start"], "status page and metrics")
    found["enroll"].add_argument("key", type=Path, metavar="PUBKEY", help="the bank's node.key.pub")
    found["enroll"].add_argument("--name", required=True, metavar="BANK", help="the bank's name")
    found["revoke"].add_argument("name", metavar="BANK", help="the bank's name")
    waits = "wait for so many banks (default: all that are enrolled)"
    for action in ("plan", "run"):
        found[action].add_argument("overrides", nargs="*", metavar="key=value", help=KEY_VALUE_HELP)
        found[action].add_argument("--banks", type=int, default=0, metavar="N", help=waits)
    found["plan"].add_argument("--out", type=Path, metavar="FILE", help="where the plan goes (default: the terminal)")


def _add_listen(start: argparse.ArgumentParser, what: str) -> None:
    start.add_argument("--metrics-port", type=int, default=0, metavar="N", help=f"{what}, over HTTP (default: 0, none)")
    where = "where they listen (default: 127.0.0.1, this machine alone)"
    start.add_argument("--metrics-listen", default="127.0.0.1", metavar="ADDRESS", help=where)


def _add_bank(commands: Any) -> None:
    actions = {
        "init": "make key and policy; try rows, model and one step",
        "accept": "take the certificate that the coordinator has issued",
        "try": "what this bank would do with a coordinator's plan",
        "start": "run the SuperNode until Ctrl-C",
        "status": "settings, certificate, last request, epsilon spent",
        "history": "what ran here and what left",
    }
    found = _add_party(commands, "bank", "Deployment: one bank.", actions, "One bank of a deployment.")
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
    _add_listen(found["start"], "metrics")
    found["start"].add_argument("--no-worker", action="store_true", help="load the base model for every message anew")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    own_modules_first()
    replace_unprintable()
    options = parser().parse_args(arguments)
    interrupt_on_signals()
    try:
        for sentence in [] if options.command == "doctor" else prepare_process():
            print(f"warning: {sentence}", file=sys.stderr)
        if getattr(options, "detach", False):
            from fedfinlora.detach import start_detached

            return start_detached([word for word in arguments or sys.argv[1:] if word != "--detach"])
        return _run(options)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, RuntimeError) as error:
        if not (line := of_machine(error)):
            raise
        print(f"error: {line}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    if options.command in ("attach", "stop", "list"):
        from fedfinlora.commands.running import running

        return running(options)
    if options.command == "doctor":
        from fedfinlora.commands.doctor import doctor

        return doctor(options.overrides, options.json)
    if options.command == "simulate":
        from fedfinlora.commands.simulate import simulate

        return simulate(_with_banks(options))
    if options.command == "centralized":
        from fedfinlora.commands.baselines import centralized

        return centralized(_with_banks(options))
    if options.command == "local":
        from fedfinlora.commands.baselines import local

        return local(_with_banks(options))
    if options.command == "evaluate":
        return _evaluate(options)
    if options.command == "report":
        from fedfinlora.commands.report import report

        return report(options.runs, options.output, options.export)
    if options.command == "verify":
        from fedfinlora.commands.verify import verify

        return verify(options.folder, options.ca, options.key, options.enrolled)
    if options.command == "compare":
        from fedfinlora.commands.compare import compare

        return compare(options.run_a, options.run_b, options.labels, options.json)
    if options.command == "bench":
        from fedfinlora.commands.bench import bench

        return bench(options.overrides, options.json, options.rows)
    if options.command == "audit":
        from fedfinlora.commands.audit import audit

        wanted = (options.canaries, options.confidence, options.json, options.checks)
        return audit(options.overrides, options.run, *wanted)
    if options.command == "privacy":
        from fedfinlora.commands.privacy import privacy

        return privacy(options)
    if options.command == "coordinator":
        return _coordinator(options)
    if options.command == "bank":
        return _bank(options)
    from fedfinlora.commands.data import check

    return check(options.root, options.overrides)


def _coordinator(options: argparse.Namespace) -> int:
    from fedfinlora.commands import coordinator
    from fedfinlora.deployment.watching import Listen

    home = options.home.expanduser().absolute()
    if options.action in ("init", "enroll", "renew"):
        folder = options.authority.expanduser().absolute() if options.authority else None
        place = coordinator.AuthorityPlace(folder, options.passphrase_file, getattr(options, "encrypt", False))
        if options.action == "init":
            return coordinator.init(home, options.host, options.port, options.listen, options.days, place)
        if options.action == "enroll":
            return coordinator.enroll(home, options.key, options.name, options.days, place)
        return coordinator.renew(home, options.days, place)
    if options.action == "revoke":
        return coordinator.revoke(home, options.name)
    if options.action == "plan":
        return coordinator.plan(home, options.overrides, options.out, options.banks)
    if options.action == "run":
        return coordinator.run(home, options.overrides, options.banks)
    if options.action == "start":
        return coordinator.start(home, Listen(options.metrics_port, options.metrics_listen))
    return coordinator.status(home)


def _bank(options: argparse.Namespace) -> int:
    from fedfinlora.commands import bank
    from fedfinlora.deployment.watching import Listen

    home = options.home.expanduser().absolute()
    if options.action == "init":
        authority, budget = options.ca, options.budget_epsilon
        return bank.init(home, options.name, options.data, options.coordinator, authority, options.overrides, budget)
    if options.action == "accept":
        return bank.accept(home, options.certificate)
    if options.action == "try":
        return bank.try_plan(home, options.plan, options.step)
    if options.action == "start":
        return bank.start(home, Listen(options.metrics_port, options.metrics_listen), worker=not options.no_worker)
    act = {"status": bank.status, "history": bank.history}
    return act[options.action](home)


def _evaluate(options: argparse.Namespace) -> int:
    from fedfinlora.commands.evaluate import Asked, dry_run, evaluate

    asked = Asked(tuple(options.adapter), options.base, options.model_url, options.model_name)
    if not asked.url and (asked.name or options.dry_run):
        raise ConfigError("--model-name and --dry-run go with --model-url.")
    if not options.dry_run and (options.price_in is not None or options.price_out is not None):
        raise ConfigError("--price-in and --price-out go with --dry-run.")
    if options.dry_run:
        return dry_run(options.overrides, asked, options.price_in, options.price_out)
    return evaluate(options.overrides, asked)


def _with_banks(options: argparse.Namespace) -> list[str]:
    """The overrides, with --banks as the last of them."""
    return [*options.overrides, *([f"banks={options.banks}"] if options.banks is not None else [])]
