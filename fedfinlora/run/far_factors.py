"""What is said of the bank that moves A and B furthest for its product B A (`server_app.factor_length`)."""

from __future__ import annotations

from collections.abc import Iterable

from fedfinlora.run.records import FactorLength, RoundLine

MOST_RATIO = 3.0
"""From here a bank is named. Honest banks of the tiny model with skewed rows stayed below 1.5 (the tests)."""
ON_PRODUCTS = (
    "krum", "multi_krum", "geometric_median", "trimmed_mean", "norm_clip", "fltrust", "flexlora", "flora",
)  # fmt: skip
"""Rules that step along products, in any factors."""


def warning(found: FactorLength, rule: str) -> str:
    """What is said of a bank beyond MOST_RATIO; "" for any other, and under rules that step along products."""
    if found.ratio < MOST_RATIO or rule in ON_PRODUCTS:
        return ""
    return (
        f"{found.bank} moves A and B {found.ratio:.3g} times as far for its product B A as the median bank: "
        f"strategy={rule} averages factors, and such factors can spoil the mean of honest products. Look at this bank, "
        "or choose a rule on products, such as norm_clip or flexlora."
    )


def furthest(lines: Iterable[RoundLine], rule: str) -> str:
    """A sentence on the furthest bank of all rounds, with the warning where there is one; "" where no round has any."""
    measured = [(line.factors.ratio, line.round, line.factors) for line in lines if line.factors]
    if not measured:
        return ""
    ratio, number, found = max(measured, key=lambda one: one[:2])
    if text := warning(found, rule):
        return f"Round {number}: {text}"
    stands_out = "" if ratio >= MOST_RATIO else "No bank's factors stand out. "
    return (
        f"{stands_out}Furthest for what it changed of B A, {found.bank} moved A and B {ratio:.3g} times as far as the "
        f"median bank (round {number})."
    )
