"""The value of a written formula such as "(7-2)/3*100", by recursive descent: nothing is ever executed.

Reads what `eval.scoring.parsers.parse_formula` returns: numbers, + - * / ^ and brackets, without blanks. ^ binds
tightest and to the right, then a sign, then * and /, then + and -, as on paper: -2^2 is -4.
"""

from __future__ import annotations

import math
import re

DEEPEST = 50
"""Brackets, signs and powers inside each other; a formula that goes deeper has no value."""

_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?|[-+*/^()]")


class _NoValue(Exception):
    """The text is no arithmetic, or its value is not a finite real number."""


def value_of(formula: str) -> float | None:
    """The value, or None if there is none: names of tags, brackets that do not match, division by zero, overflow, too
    deep.

    >>> value_of("(7-2)/4*100"), value_of("assets/2"), value_of("1/0"), value_of("(1")
    (125.0, None, None, None)
    """
    tokens = _TOKEN.findall(formula)
    if "".join(tokens) != formula:
        return None
    try:
        value, end = _sum(tokens, 0, 0)
    except (_NoValue, ArithmeticError):
        return None
    return value if end == len(tokens) else None


def _sum(tokens: list[str], place: int, depth: int) -> tuple[float, int]:
    """term {(+|-) term}; each of these returns the value and the place behind it."""
    value, place = _product(tokens, place, depth)
    while (operator := _at(tokens, place)) in ("+", "-"):
        right, place = _product(tokens, place + 1, depth)
        value = _finite(value + right if operator == "+" else value - right)
    return value, place


def _product(tokens: list[str], place: int, depth: int) -> tuple[float, int]:
    """factor {(*|/) factor}"""
    value, place = _signed(tokens, place, depth)
    while (operator := _at(tokens, place)) in ("*", "/"):
        right, place = _signed(tokens, place + 1, depth)
        value = _finite(value * right if operator == "*" else value / right)
    return value, place


def _signed(tokens: list[str], place: int, depth: int) -> tuple[float, int]:
    """[+|-] power"""
    if depth > DEEPEST:
        raise _NoValue
    if (sign := _at(tokens, place)) in ("+", "-"):
        value, place = _signed(tokens, place + 1, depth + 1)
        return (-value if sign == "-" else value), place
    return _power(tokens, place, depth)


def _power(tokens: list[str], place: int, depth: int) -> tuple[float, int]:
    """operand [^ [+|-] power]"""
    base, place = _operand(tokens, place, depth)
    if _at(tokens, place) != "^":
        return base, place
    exponent, place = _signed(tokens, place + 1, depth + 1)
    value = base**exponent
    if isinstance(value, complex):
        raise _NoValue
    return value, place


def _operand(tokens: list[str], place: int, depth: int) -> tuple[float, int]:
    """number | ( sum )"""
    token = _at(tokens, place)
    if token == "(":
        value, place = _sum(tokens, place + 1, depth + 1)
        if _at(tokens, place) != ")":
            raise _NoValue
        return value, place + 1
    if not token[:1].isdigit():
        raise _NoValue
    return _finite(float(token)), place + 1


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise _NoValue
    return value


def _at(tokens: list[str], place: int) -> str:
    return tokens[place] if place < len(tokens) else ""
