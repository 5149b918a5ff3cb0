"""The one way in which each kind of number is printed, and names as plain text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from fedfinlora.errors import plural as plural

DASH = "–"
MOST_WRITTEN_OUT = 1e9
"""Numbers from here on are shown by their power of ten."""
"""What is not known."""
Bounds = tuple[float | None, float | None]
"""The two ends of an interval."""


def printable(value: object) -> str:
    """The value as text; unprintable characters become U+FFFD."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def number(value: object) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def percent(fraction: float | None, digits: int = 1) -> str:
    """0.4567 -> "45.7", without the sign."""
    return DASH if fraction is None else f"{100 * fraction:.{digits}f}"


def points(difference: float | None) -> str:
    """0.25 -> "+25.0", with a true minus sign."""
    return DASH if difference is None else f"{100 * difference:+.1f}".replace("-", "−")


def fraction(value: float | None) -> str:
    """0.9221 -> ".922", as FinLoRA prints F1."""
    if value is None:
        return DASH
    return f"{value:.3f}".removeprefix("0") if 0 <= value < 1 else f"{value:.3f}"


def interval(limits: Bounds, bertscore: bool = False) -> str:
    """ "32.1 to 45.0", or "" where there is no interval."""
    shown = fraction if bertscore else percent
    low, high = limits
    return "" if low is None or high is None else f"{shown(low)} to {shown(high)}"


def count(value: object) -> str:
    """12345.6 -> "12,346"."""
    known = number(value)
    return DASH if known is None else f"{known:,.0f}"


def decimal(value: object, digits: int = 3) -> str:
    """-0.12345 -> "−0.123"."""
    known = number(value)
    form = f".{digits}f" if known is None or abs(known) < MOST_WRITTEN_OUT else f".{digits}g"
    return DASH if known is None else f"{known:{form}}".replace("-", "−")


def significant(value: float | None) -> str:
    """1.2345 -> "1.23", as epsilon is printed."""
    return DASH if value is None else f"{value:.3g}"


def seconds(value: object) -> str:
    """8.25 -> "8.2 s"; 125 -> "2 min 05 s"; 4000 -> "1 h 07 min"."""
    known = number(value)
    if known is None:
        return DASH
    if known < 59.95:
        return f"{known:.1f} s"
    if known < 3599.5:
        return f"{round(known) // 60} min {round(known) % 60:02d} s"
    return f"{round(known / 60) // 60} h {round(known / 60) % 60:02d} min"


def size(value: object) -> str:
    """Bytes in decimal units: 1843200 -> "1.8 MB"."""
    known = number(value)
    if known is None:
        return DASH
    for unit in ("B", "kB", "MB", "GB"):
        if abs(known) < 999.5:
            return f"{known:.0f} {unit}" if unit == "B" or known >= 100 else f"{known:.1f} {unit}"
        known /= 1000
    return f"{known:.1f} TB"


def listed(words: Sequence[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def file_name(words: str) -> str:
    """The words as a plain file name without an ending: "Federated, best (2)" -> "federated-best-2"."""
    return re.sub(r"[^a-z0-9_]+", "-", words.lower()).strip("-") or "unnamed"
