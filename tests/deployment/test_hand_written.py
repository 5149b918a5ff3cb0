"""Numbers and words in bank.yaml are read as a person means them, or refused with the line and what to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedfinlora.deployment.bank_settings import BankSettings, read_settings, settings_text
from fedfinlora.deployment.hand_written import LARGEST_BYTES, read_yaml, yaml_text
from fedfinlora.deployment.policy import Policy, within
from fedfinlora.errors import ConfigError

SURPRISES = (
    "012", "-012", "00", "09.5", "1_000", "1__0", "0x10", "0b11", "1:30", "20:00", "1:30:00", "1:30.5", "!!int 012",
    "!!int '012'", "!!float 1:30.0",
    "yes", "No", "on", "OFF", "TRUE", "2024-01-01", "2024-01-01 10:00:00", "NULL", "=", "!!binary aGk=",
    "!!timestamp 2024-01-01",
)  # fmt: skip


@pytest.mark.parametrize("written", SURPRISES)
def test_what_can_be_read_in_two_ways_is_refused_with_its_line(written: str) -> None:
    with pytest.raises(yaml.YAMLError, match="line 2"):
        read_yaml(f"first: 1\nsecond: {written}\n".encode())
    with pytest.raises(yaml.YAMLError, match="line 2"):
        read_yaml(f"first: 1\nsecond: [{written}]\n".encode())


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("12", 12), ("-0", 0), ("+3", 3), ("8.0", 8.0), ("8.", 8.0), (".5", 0.5), ("1e-5", 1e-5), ("1.0e-05", 1e-5),
        ("1E5", 1e5), ("-1e+3", -1000.0),
        (".inf", float("inf")), ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("'012'", "012"), ('"yes"', "yes"),
        ("fpb:1200", "fpb:1200"), ("20:00-06:00", "20:00-06:00"), ("a/b@main", "a/b@main"), ("v1_000", "v1_000"),
    ],
)  # fmt: skip
def test_numbers_and_texts_are_what_they_look_like(written: str, value: Any) -> None:
    found = read_yaml(f"key: {written}".encode())["key"]
    assert found == value
    assert type(found) is type(value)


@given(
    value=st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=12),
        st.sampled_from([*SURPRISES, "1e5", "1.5e3", "-1e9", "true", "~"]),
    )
)
def test_every_text_that_is_written_is_read_again_as_that_text(value: str) -> None:
    assert read_yaml(f"key: {yaml_text([value])}".encode())["key"] == [value]


@given(value=st.one_of(st.integers(-(2**62), 2**62), st.floats(allow_nan=False), st.booleans()))
def test_every_number_that_is_written_is_read_again_as_that_number(value: float) -> None:
    found = read_yaml(f"key: {yaml_text(value)}".encode())["key"]
    assert found == value
    assert type(found) is type(value)


def test_a_huge_file_is_refused() -> None:
    with pytest.raises(yaml.YAMLError, match="more than"):
        read_yaml(b" " * (LARGEST_BYTES + 1))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("min_rows: 012", "012"),
        ("min_rows: 08", "min_rows"),
        ("min_rows: 1_000", "1_000"),
        ("min_rows: 0x10", "0x10"),
        ("min_units: 1:30", "1:30"),
        ("name: no", "'no' in quotes"),
        ("budget_epsilon: yes", "true or false"),
        ("budget_epsilon: 0o17", "budget_epsilon"),
        ("declared_rows: [2024:30]", "2024:30"),
        ("policy: {hours: 20:00}", "20:00"),
        ("policy: {hours: 20:00-20:00}", "Write 00:00-24:00 for always"),
        ("policy: {hours: 00:00-00:00}", "Write 00:00-24:00 for always"),
        ("policy: {hours: 08:00-24:30}", "hours"),
        ("policy: {hours: 24:00-06:00}", "hours"),
        ("policy: {hours: 8:00-18:00}", "hours"),
        ("policy: {max_rank: 010}", "010"),
    ],
)
def test_a_surprise_in_bank_yaml_is_refused_in_one_line(tmp_path: Path, line: str, named: str) -> None:
    file = tmp_path / "bank.yaml"
    own = line.split(":")[0]
    file.write_text(
        "".join(f"{each}\n" for each in ("name: north", "data: /x") if not each.startswith(f"{own}:")) + line
    )
    with pytest.raises(ConfigError, match=named) as error:
        read_settings(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_delta_may_be_written_as_people_write_it(tmp_path: Path) -> None:
    (tmp_path / "bank.yaml").write_text("name: north\ndata: /x\ndelta: 1e-6\nbudget_epsilon: 8")
    assert read_settings(tmp_path / "bank.yaml")[0].delta == 1e-6


@pytest.mark.parametrize("word", ["1e5", "on", "012", "0x10", "2024-01-01", "null"])
def test_settings_of_any_words_come_back_from_the_file_that_is_written(tmp_path: Path, word: str) -> None:
    settings = BankSettings(name=word, data="/x", declared_rows=("2024:30",), policy=Policy(models=(word,)))
    (tmp_path / "bank.yaml").write_text(settings_text(settings))
    assert read_settings(tmp_path / "bank.yaml")[0] == settings


def test_hours_to_midnight_and_over_it() -> None:
    from datetime import datetime

    assert within("00:00-24:00", datetime(2026, 1, 1, 23, 59))
    assert within("22:00-24:00", datetime(2026, 1, 1, 23, 59))
    assert not within("22:00-24:00", datetime(2026, 1, 1, 0, 0))


@pytest.mark.parametrize("start", ["0e1818cc", "12e3", "1e1f", "5e-", "0123", "1e9"])
def test_a_hash_without_quotes_is_a_text(start: str) -> None:
    """One in ten SHA-256 in hexadecimal begins like a number with an exponent."""
    digits = start + "f" * (64 - len(start))
    assert read_yaml(f"policy:\n  code: [{digits}]\n".encode()) == {"policy": {"code": [digits]}}
