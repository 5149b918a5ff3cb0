"""Compare rounds.jsonl and the weights of each round with what the banks have replied, as the chain has it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedfinlora.config import Config
from fedfinlora.errors import UserError
from fedfinlora.provenance.findings import Findings, Round
from fedfinlora.provenance.lines import CHAIN_FILE, Attempt
from fedfinlora.runfolder import read_lines
from fedfinlora.shares import capped

COUNTS = ("rows", "tokens", "answer_tokens", "skipped_rows")
"""Figures that are 0 in rounds.jsonl where a bank has kept them to itself, or makes its own reply private."""


def check_rounds_file(run: Path, rounds: Mapping[int, Round], open_round: int, found: Findings) -> None:
    """rounds.jsonl has the chain's rounds, and says of each bank what its reply says. `open_round` was perhaps never closed; 0 = none."""
    file = run / "rounds.jsonl"
    try:
        lines = {line["round"]: line for line in read_lines(file)}
        content = file.read_bytes() if file.is_file() else b""
    except (UserError, OSError, KeyError, TypeError) as error:
        found.add(file, str(error))
        return
    if content and not content.endswith(b"\n"):
        found.add(file, "its last line is cut off")
    for number in sorted({*lines, *rounds}):
        if number not in lines and number == open_round == max(rounds):
            found.not_proven(
                file, f"round {number} is missing: the run was broken off before it was closed, or its line was cut off"
            )
        elif number not in lines:
            found.add(file, f"round {number} is missing")
        elif number not in rounds:
            found.add(run / CHAIN_FILE, f"round {number} of rounds.jsonl is missing")
        else:
            _same_round(file, lines[number], rounds[number], found)


def _same_round(file: Path, line: Mapping[str, Any], one: Round, found: Findings) -> None:
    kept, number = one.line, one.line.round
    try:
        if line["adapter_sha256"] != kept.adapter_sha256:
            found.add(file, f"round {number} has another adapter than {CHAIN_FILE}")
        entries = {entry["bank"]: entry for entry in line["banks"]}
        if sorted(entries) != sorted(kept.banks) or len(entries) != len(line["banks"]):
            found.add(file, f"round {number} names other banks than {CHAIN_FILE}")
            return
        for bank, entry in entries.items():
            own = kept.banks[bank]
            expected: dict[str, Any] = {"code": own.code}
            if own.code == "":
                private = one.config is not None and one.config.privacy.in_the_bank
                expected |= {"status": "ok", **entry_of(own.head, own.figures, private)}
            for name, value in expected.items():
                if entry.get(name) != value:
                    found.add(file, f"round {number}: {name} of {bank} is not what {CHAIN_FILE} has")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found.add(file, f"round {number} lacks or garbles something ({type(error).__name__})")


def entry_of(reply: Mapping[str, Any], figures: Mapping[str, Any], private: bool) -> dict[str, Any]:
    """What rounds.jsonl has of an accepted reply, from its head and figures as JSON; None for what it does not have."""
    measured = {} if private else figures
    holdout = _finite(measured.get("holdout_loss"))
    spent = {name: _finite(figures.get(name)) for name in ("epsilon_planned", "epsilon_spent")}
    delta = _finite(figures.get("delta"))
    ledger = {"number": reply["ledger-number"], "hash": reply["ledger-hash"]} if "ledger-number" in reply else None
    return {
        "steps": figures.get("steps"), **{name: measured.get(name, 0) for name in COUNTS}, "train_loss": _finite(measured.get("train_loss")),
        "holdout_loss": holdout, "holdout_rows": 0 if holdout is None else measured.get("holdout_rows", 0),
        "privacy": None if delta is None else {**spent, "delta": delta}, "policy_sha256": reply.get("policy-sha256") or None, "ledger": ledger,
    }  # fmt: skip


def _finite(value: Any) -> float | None:
    number = math.nan if value is None else float(value)  # "nan" and "inf" are texts in the chain
    return number if math.isfinite(number) else None


def weights_of_line(line: Attempt, config: Config) -> dict[str, float]:
    """Bank -> weight in the mean, from configuration and replies. KeyError or ValueError where they do not say it."""
    strategy = config.strategy
    if not line.accepted:
        return {}
    sizes = strategy.declared_sizes() if strategy.weighting == "declared" else {}
    claimed = {
        "declared": lambda bank: sizes[bank],
        "rows": lambda bank: float(line.banks[bank].figures["rows"]),
        "equal": lambda bank: 1.0,
    }[strategy.weighting]
    return dict(zip(line.accepted, capped([claimed(bank) for bank in line.accepted], strategy.max_share), strict=True))
