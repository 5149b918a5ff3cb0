"""The value of written formulas: by hand, against exact fractions, and everything that has no value."""

from __future__ import annotations

import operator
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.scoring.arithmetic import DEEPEST, value_of
from eval.scoring.parsers import parse_formula


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("42", 42.0),
        ("(7-2)/4*100", 125.0),
        ("8-3-2", 3.0),
        ("8/4/2", 1.0),
        ("2+3*4", 14.0),
        ("-5/2", -2.5),
        ("--3", 3.0),
        ("2*-3", -6.0),
        ("-2^2", -4.0),
        ("2^3^2", 512.0),
        ("2^-1", 0.5),
        ("(-2)^2", 4.0),
        ("1e+16/1e16", 1.0),
        ("1.5*2", 3.0),
    ],
)
def test_value_by_hand(formula, value) -> None:
    assert value_of(formula) == pytest.approx(value)


@pytest.mark.parametrize(
    "formula",
    [
        "", "1/0", "0^-1", "(-2)^0.5", "1e999", "1/1e999", "9e300*9e300", "9e300*9e300/9e300", "10^400", "9^9^9^9",
        "assets/2", "1+",
        "(1", "1)", "()", "*2", "1 + 2", "__import__('os')", "1_000", "1..2", "٣", "nan",
        "(" * 5000 + "1" + ")" * 5000, "-" * 5000 + "1",
        "2^" * 5000 + "2",
    ],
)  # fmt: skip
def test_no_value(formula) -> None:
    assert value_of(formula) is None


def test_deep_is_refused_and_long_is_not() -> None:
    assert value_of("(" * DEEPEST + "1" + ")" * DEEPEST) == 1
    assert value_of("(" * (DEEPEST + 1) + "1" + ")" * (DEEPEST + 1)) is None
    assert value_of("+".join(["1"] * 20_000)) == 20_000


NUMBERS = st.integers(1, 999).map(lambda number: (str(number), Fraction(number), number))
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def joined(parts):
    """(formula, exact value, the largest number that may occur on the way)."""
    (left, value, scale), sign, (right, other, other_scale) = parts
    if sign == "/":
        return f"({left})/{other.numerator or 1}", value / (other.numerator or 1), scale
    return f"({left}{sign}{right})", OPERATORS[sign](value, other), scale * other_scale + other_scale


@given(st.recursive(NUMBERS, lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(joined), max_leaves=12))
def test_value_is_that_of_exact_fractions(case) -> None:
    formula, exact, scale = case
    assert value_of(formula) == pytest.approx(float(exact), rel=1e-12, abs=1e-12 * scale)


@given(st.text(alphabet="0123456789.+-*/^()e ", max_size=40))
def test_no_text_breaks_it(text) -> None:
    value_of(text)
    value_of(parse_formula(text) or "")
