"""privacy.json: what a run promised, to whom, what it has spent, and what left the banks besides. The report shows it as the privacy card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedfinlora.config import Config
from fedfinlora.privacy.accounting import accountant_name

FIGURES = ("epsilon_planned", "epsilon_spent", "delta")
LEAVES = {
    "the noisy delta of each round": "the promise is about this, and about all that is made of it: the global adapter, its scores",
    "epsilon planned, epsilon spent, delta": "delta's default tells the power of ten below which the bank's number of units lies",
    "the number of optimiser steps": "set by the configuration, the same for every bank",
    "seconds to load the base model": "of the machine, not of the rows",
    "when a reply arrives": "how long a round takes grows with the tokens drawn; nothing hides that from the server",
    "a refusal's code": "one of a fixed list, with a fixed sentence; that a budget is spent tells how often the data was used",
}
"""What leaves a bank under privacy=example -> what it tells."""
WITHHELD = (
    "rows, tokens and answer tokens of a round and of the bank",
    "training loss, losses of held-out rows",
    "gradient norms and how many gradients were clipped",
    "seconds of training",
    "skipped rows",
    "exception texts",
)
LIMITS = (
    "One row is protected, or all rows of one customer with privacy.unit=customer. Somebody with several rows under unit=example has a promise "
    "for each of them only.",
    "The number of a bank's units is taken as known: it decides the sampling rate and the denominator, as is usual for DP-SGD.",
    "Settings that were chosen by looking at results on private rows spend privacy too, and are booked only if every trial was a private run.",
    "A data set is known by its rows of one task. Rows that are added, changed or taken away make it another data set with an account of its own.",
    "Noise is drawn as 64-bit floating-point numbers from a generator that the operating system's entropy seeds; attacks on how such numbers "
    "are spaced (Mironov 2012) are not covered by the proof.",
    "Who can read the bank's disk reads its rows. Who can delete a ledger and its head file together begins a new account.",
)


def privacy_card(config: Config, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The card after the given lines of rounds.jsonl; {} for a run without privacy."""
    privacy = config.privacy
    if privacy.mode == "none":
        return {}
    banks = _banks(rounds)
    spent = [bank["epsilon_spent"] for bank in banks.values() if bank["epsilon_spent"] is not None]
    unit = "one row" if privacy.unit == "example" else "all rows of one customer"
    broken = privacy.reproducible_noise or any(bank["rounds"] and bank["epsilon_spent"] is None for bank in banks.values())
    return {
        "schema_version": 1,
        "mode": privacy.mode,
        "epsilon": None if broken or not spent else max(spent),
        "delta": max((bank["delta"] for bank in banks.values() if bank["delta"] is not None), default=None),
        "void": _void(config) if broken else "",
        "unit": f"{unit} of one bank",
        "adjacency": f"two data sets that differ by {unit}, added or removed",
        "trusted": "Each bank with its own rows. Neither the server, nor the other banks, nor who reads the adapter is trusted.",
        "mechanism": "DP-SGD on the adapter inside each bank: Poisson sampling, one clip over all trainable tensors of a unit, Gaussian noise "
        "once per optimiser step on the sum (Abadi et al. 2016, algorithm 1)",
        "formula": "g = (sum of min(1, C / |G_i|) G_i + N(0, (sigma C)^2 I)) / (q N)",
        "clip_norm": privacy.clip_norm,
        "noise_multiplier": privacy.noise_multiplier or f"found by each bank for epsilon {privacy.epsilon:g}",
        "accountant": accountant_name(),
        "composition": "over all rounds and all runs in each bank's ledger",
        "banks": banks,
        "leaves": dict(LEAVES),
        "withheld": list(WITHHELD),
        "limits": list(LIMITS),
        "audit": "none was made of this run",
    }


def _banks(rounds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each bank's latest figures, how many of its private rounds were averaged, and how many it refused."""
    banks: dict[str, dict[str, Any]] = {}
    for line in rounds:
        for entry in line["banks"]:
            found = banks.setdefault(entry["bank"], {"rounds": 0, "refused": 0} | dict.fromkeys(FIGURES))
            if "privacy" in entry:
                found["rounds"] += 1
                found |= {name: entry["privacy"][name] for name in FIGURES}
            found["refused"] += entry.get("code") in ("budget", "privacy")
    return {name: bank for name, bank in sorted(banks.items()) if bank["rounds"] or bank["refused"]}


def _void(config: Config) -> str:
    """Why there is no promise."""
    if config.privacy.reproducible_noise:
        return "privacy.reproducible_noise: the noise comes from the run's seed, which everybody knows. Nothing is promised."
    return "A bank trained without noise, in this run or an earlier one on the same data. Nothing is promised."
