"""`privacy`: plan a private run before it starts, and look after the ledger of what was spent."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_actions(actions: Any, overrides_help: str) -> None:
    """Put `plan` and `ledger` below the parser of `privacy`."""
    plan = actions.add_parser(
        "plan",
        help="forecast epsilon, noise and minutes; reads no row",
        description="Forecast steps, sigma, epsilon, noise and minutes of a private run from declared sizes; no row is "
        "read. Sizes: strategy.sizes=[BANK:ROWS,…], or --rows for banks of the same size.",
    )
    plan.add_argument("overrides", nargs="*", metavar="key=value", help=overrides_help)
    plan.add_argument(
        "--rows", type=int, metavar="N", help="declared rows of each bank (customers with privacy.unit=customer)"
    )
    plan.add_argument("--banks", type=int, metavar="K", help="how many banks (default: the configuration's)")
    plan.add_argument(
        "--tokens", type=int, default=70, metavar="N", help="tokens of a row, answer included (default: 70)"
    )
    plan.add_argument("--no-timing", action="store_true", help="do not load the model and time one private pass")
    plan.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    ledger = actions.add_parser(
        "ledger",
        help="check a ledger; make a damaged one usable again",
        description="Check a ledger and say what is spent. A ledger that is damaged, cut or older than the aggregator "
                    "knows is refused until one of the two repairs below is chosen; neither forgets spending.",
    )  # fmt: skip
    ledger.add_argument(
        "folder", nargs="?", type=Path, metavar="DIR", help="the ledger's folder (default: this machine's)"
    )
    ledger.add_argument(
        "--reconcile", type=Path, metavar="FILE", help="book what this history.jsonl has and the ledger lacks"
    )
    ledger.add_argument("--book-as-spent", action="store_true", help="book the whole budget of every row as spent")
    ledger.add_argument(
        "--delta", type=float, metavar="P", help="state epsilon at this delta (default: by the number of rows)"
    )


def privacy(options: argparse.Namespace) -> int:
    if options.action == "plan":
        from fedfinlora.commands.privacy_plan import plan

        words = [*options.overrides, *([f"banks={options.banks}"] if options.banks is not None else [])]
        return plan(words, options.rows, options.tokens, timing=not options.no_timing, json_file=options.json)
    from fedfinlora.commands.privacy_ledger import ledger_command
    from fedfinlora.privacy.ledger import ledger_root

    return ledger_command(options.folder or ledger_root(), options.reconcile, options.book_as_spent, options.delta)
