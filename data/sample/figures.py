"""Numbers with their printed form: what a question shows and what the answer is computed from are one object."""

from __future__ import annotations

import random
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

CENT = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Figure:
    """A quantity: its exact value, and the text that shows it."""

    value: Decimal
    text: str

    def __format__(self, spec: str) -> str:
        return self.text


def rounded(value: Decimal, unit: Decimal = CENT) -> Decimal:
    """Half-up rounding to a multiple of `unit`, as by hand; zero has no sign."""
    return value.quantize(unit, ROUND_HALF_UP) + 0


def show_dollars(value: Decimal) -> str:
    """$1,250.00."""
    amount = rounded(value)
    return f"{'-' if amount < 0 else ''}${abs(amount):,.2f}"


def show_whole_dollars(value: Decimal) -> str:
    """$1,250."""
    return show_dollars(rounded(value, Decimal(1))).removesuffix(".00")


def show_percent(value: Decimal) -> str:
    """12.50% for 0.125."""
    return f"{rounded(value * 100)}%"


def show_number(value: Decimal) -> str:
    """12.50."""
    return str(rounded(value))


def show_rate(value: Decimal) -> str:
    """1.2500: exchange rates and factors need four decimals."""
    return str(rounded(value, Decimal("0.0001")))


def show_whole(value: Decimal) -> str:
    """13."""
    return str(rounded(value, Decimal(1)))


def dollars(rng: random.Random, low: int, high: int, step: int = 1) -> Figure:
    """Whole dollars between `low` and `high`, a multiple of `step` above `low`."""
    value = Decimal(rng.randrange(low, high + 1, step))
    return Figure(value, show_whole_dollars(value))


def cents(rng: random.Random, low: int, high: int) -> Figure:
    """An amount between `low` and `high` cents, always printed with two decimals."""
    value = Decimal(rng.randrange(low, high + 1)) / 100
    return Figure(value, f"${value:.2f}")


def percent(rng: random.Random, low: int, high: int, step: int = 5) -> Figure:
    """A rate between `low` and `high` tenths of a percent; the value is the fraction (0.045 for 4.5%)."""
    tenths = rng.randrange(low, high + 1, step)
    text = f"{tenths // 10}%" if tenths % 10 == 0 else f"{tenths / 10:.1f}%"
    return Figure(Decimal(tenths) / 1000, text)


def number(rng: random.Random, low: int, high: int, decimals: int = 0, step: int = 1) -> Figure:
    """A plain number between `low` and `high` units of its last decimal, a multiple of `step` above `low`."""
    value = Decimal(rng.randrange(low, high + 1, step)).scaleb(-decimals)
    return Figure(value, f"{value:,.{decimals}f}")
