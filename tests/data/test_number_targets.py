"""Targets that no answer could meet are bad rows, with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.check import check_folder
from data.sources.files import SourceFile, read_file
from data.sources.numbers import number_fault


def rows(tmp_path: Path, task: str, *records: dict[str, object]) -> tuple[int, list[tuple[int, str]]]:
    """(good rows, (line, reason) of the others)."""
    file = tmp_path / f"{task}.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = read_file(SourceFile(file, file.name, "test", task))
    return len(found.rows), [(bad.line, bad.reason) for bad in found.bad_rows]


@pytest.mark.parametrize("target", ["NaN", "inf", "-Infinity", "1e999", "$ 1e400", "n/a", "#DIV/0!", "None"])
@pytest.mark.parametrize("task", ["finqa", "convfinqa", "xbrl_value_extract", "formula"])
def test_a_target_that_is_no_finite_number_is_a_bad_row(tmp_path: Path, task: str, target: str) -> None:
    flare = task.endswith("qa")
    good = {"query": "How much? Answer:", "answer": "12"} if flare else {"context": "How much? Answer:", "target": "12"}
    bad = good | {"answer" if flare else "target": target}
    assert rows(tmp_path, task, good, bad) == (1, [(2, "target is no finite number")])


def test_a_target_without_a_digit_is_a_bad_row_but_for_yes_and_no(tmp_path: Path) -> None:
    asked = {"query": "Did it rise? Answer:"}
    answers = ("yes", "No.", "it rose", "-3.5 %", "($1,234)", ".5")
    good, bad = rows(tmp_path, "finqa", *(asked | {"answer": answer} for answer in answers))
    assert (good, bad) == (5, [(3, "target holds no number")])


def test_a_formula_of_names_is_a_target_and_nan_is_none() -> None:
    assert number_fault("formula", "us-gaap:Assets / us-gaap:Liabilities") == ""
    assert number_fault("formula", "nan") == "target is no finite number"
    assert number_fault("label", "nan") == ""


@pytest.mark.parametrize("turn", ["zero", "-1", "1.5", [], True])
def test_a_turn_that_is_no_number_is_a_bad_row(tmp_path: Path, turn: object) -> None:
    record = {"query": "What was it? Answer:", "answer": "3", "dialogue_id": "d", "turn": turn}
    assert rows(tmp_path, "convfinqa", record) == (0, [(1, "turn is no whole number from 0")])


@pytest.mark.parametrize("turn", [0, "2", 1.0, None, ""])
def test_a_turn_that_is_a_number_or_missing_is_accepted(tmp_path: Path, turn: object) -> None:
    record = {"query": "What was it? Answer:", "answer": "3", "dialogue_id": "d", "turn": turn}
    assert rows(tmp_path, "convfinqa", record) == (1, [])


def test_data_check_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    lines = [{"context": "How much? Answer:", "target": target} for target in ("12", "NaN")]
    (tmp_path / "test" / "formula_test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = check_folder(tmp_path)
    assert not report.ok
    [file] = report.files
    assert [(bad.file, bad.line, bad.reason) for bad in file.bad_rows] == [
        ("test/formula_test.jsonl", 2, "target is no finite number")
    ]
