"""The typed records of a run folder: what is written is read back, older folders are read, and what is odd is named."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import run_reference as reference
from eval.report import write_run_report
from fedfinlora.cli import main
from fedfinlora.errors import UserError
from fedfinlora.privacy.head import Head
from fedfinlora.run import evaluation, records
from fedfinlora.run.checkpoint import load_checkpoint, restore_rounds
from fedfinlora.run.evaluation import BenchmarkMetrics, RowRecord, read_evaluation, read_records
from fedfinlora.run.records import (
    BankEntry,
    BankPrivacy,
    RoundLine,
    read_result,
    read_rounds,
    readable_rounds,
    round_line,
)
from fedfinlora.run.typed import OMITTED, from_json, to_json

ROOT = Path(__file__).resolve().parents[2]
OLD_RUNS = ROOT / "tests" / "runs_1"
"""Folders as the first version of the format left them: without privacy, with it at the banks, at the server, and a
baseline.
"""
OLD = [folder.name for folder in sorted(OLD_RUNS.iterdir())]


@dataclass(frozen=True)
class Inner:
    name: str
    size: int = 0


@dataclass(frozen=True)
class Outer:
    inner: Inner
    numbers: tuple[float, ...] = ()
    note: str | None = field(default=None, metadata=OMITTED)
    parts: tuple[Inner, ...] = ()


def test_keys_are_in_the_order_of_the_fields_and_omitted_ones_are_absent() -> None:
    assert list(to_json(Outer(Inner("a")))) == ["inner", "numbers", "parts"]
    assert list(to_json(Outer(Inner("a"), note=""))) == ["inner", "numbers", "note", "parts"]


@given(
    st.text(max_size=5),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    st.none() | st.text(max_size=3),
)
def test_what_is_written_is_read_back(name: str, numbers: list[float], note: str | None) -> None:
    record = Outer(Inner(name, 3), tuple(numbers), note, (Inner("b"),))
    assert from_json(Outer, json.loads(json.dumps(to_json(record))), "here") == record


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "here cannot be read: it is no object."),
        ({}, "here cannot be read: inner is missing."),
        ({"inner": {"name": 3}}, "here cannot be read: inner.name is no text."),
        ({"inner": {"name": "a", "size": True}}, "here cannot be read: inner.size is no whole number."),
        ({"inner": {"name": "a"}, "numbers": [1, "2"]}, "here cannot be read: numbers[1] is no number."),
        ({"inner": {"name": "a"}, "numbers": [float("nan")]}, "here cannot be read: numbers[0] is not finite."),
        ({"inner": {"name": "a"}, "numbers": [10**400]}, "here cannot be read: numbers[0] is not finite."),
        ({"inner": {"name": "a", "size": 10**400}}, "here cannot be read: inner.size is out of range."),
        ({"inner": {"name": "\ud800"}}, "here cannot be read: inner.name is no text that UTF-8 can hold."),
        ({"inner": {"name": "a"}, "parts": [{}]}, "here cannot be read: parts[0].name is missing."),
    ],
)
def test_a_value_of_another_type_is_named(values: Any, said: str) -> None:
    with pytest.raises(UserError) as raised:
        from_json(Outer, values, "here")
    assert str(raised.value) == said


def test_a_report_keeps_what_can_be_read() -> None:
    problems: list[str] = []
    values = {
        "inner": {"name": "a", "size": "x"},
        "numbers": [1, None],
        "parts": [{}, {"name": "b"}],
        "of a later version": 3,
    }
    assert from_json(Outer, values, "here", problems) == Outer(Inner("a"), (1.0,), None, (Inner("b"),))
    assert problems == [
        "here: inner.size is no whole number.", "here: numbers[1] is no number.", "here: parts[0].name is missing.",
    ]  # fmt: skip


def test_a_whole_number_may_be_written_as_a_float() -> None:
    assert from_json(Inner, {"name": "a", "size": 3.0}, "here") == Inner("a", 3)


def test_a_round_is_written_and_read_back(tmp_path: Path) -> None:
    entry = BankEntry(
        "north", "ok", rows=3, privacy=BankPrivacy(8.0, None, 1e-5), ledger=Head(3, "a" * 64), withheld=("rows",)
    )
    scores = {
        "fpb": BenchmarkMetrics(
            3, 1, {"accuracy": evaluation.Estimate(0.5, 0.2, 0.8), "matthews": evaluation.Estimate(None)}
        )
    }
    line = RoundLine(1, banks=(entry, BankEntry("south")), scores=scores)
    (tmp_path / "rounds.jsonl").write_text(json.dumps(to_json(line)) + "\n", encoding="utf-8")
    assert read_rounds(tmp_path) == [line]
    assert to_json(line)["scores"]["fpb"] == {
        "n": 3, "unparsed": 1, "accuracy": 0.5, "accuracy_ci95": [0.2, 0.8], "matthews": None, "matthews_ci95": None,
    }  # fmt: skip


def test_a_ledger_head_that_no_ledger_has_is_named() -> None:
    values = {"round": 1, "banks": [{"bank": "north", "ledger": {"number": -1, "hash": "x"}}]}
    with pytest.raises(UserError, match=r"banks\[0\]\.ledger: a ledger's head"):
        round_line(values, "rounds.jsonl, line 1")


def test_many_rounds_are_read_fast(tmp_path: Path) -> None:
    """As the status page does it: 500 rounds of ten banks in well under a second."""
    line = to_json(
        RoundLine(1, banks=tuple(BankEntry(f"bank-{number}", "ok", rows=9, train_loss=1.0) for number in range(10)))
    )
    (tmp_path / "rounds.jsonl").write_text((json.dumps(line) + "\n") * 500, encoding="utf-8")
    started = time.process_time()
    assert len(readable_rounds(tmp_path, [])) == 500
    assert time.process_time() - started < 2


@pytest.mark.parametrize("name", OLD)
class TestOlderFolders:
    def test_each_file_is_read_and_written_again_to_the_same_values(self, name: str) -> None:
        run = OLD_RUNS / name
        written = [json.loads(line) for line in (run / "rounds.jsonl").read_text("utf-8").splitlines()]
        assert [to_json(line) for line in read_rounds(run)] == written
        assert to_json(read_result(run)) == json.loads((run / "result.json").read_text("utf-8"))
        for label in ("base", "final"):
            file = run / "eval" / label / "metrics.json"
            assert to_json(read_evaluation(run, label)) == json.loads(file.read_text("utf-8"))
        rows = run / "eval" / "final" / "fpb.jsonl"
        assert [to_json(record) for record in read_records(rows)] == [
            json.loads(line) for line in rows.read_text("utf-8").splitlines()
        ]
        if (run / "privacy.json").is_file():
            card = json.loads((run / "privacy.json").read_text("utf-8"))
            assert to_json(from_json(records.PrivacyCard, card, "privacy.json")) == card

    def test_the_report_and_compare_open_it(
        self, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        page = write_run_report([OLD_RUNS / name], tmp_path / "report.html").read_text("utf-8")
        assert "cannot be read" not in page
        assert main(["compare", str(OLD_RUNS / name), str(OLD_RUNS / name), "--labels", "final", "final"]) == 0
        assert "fpb" in capsys.readouterr().out.lower()

    def test_a_resumed_run_finds_its_rounds_as_they_were(self, name: str, tmp_path: Path) -> None:
        run = Path(shutil.copytree(OLD_RUNS / name, tmp_path / name))
        before = (run / "rounds.jsonl").read_bytes()
        checkpoint = load_checkpoint(run)
        assert round_line(checkpoint.line, "the checkpoint") == read_rounds(run)[-1]
        restore_rounds(run, checkpoint)
        assert (run / "rounds.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("result.json", '{"rounds": ' + "[" * 200_000),
        ("result.json", '{"mode": "\\ud800", "rows_trained": 1' + "0" * 400 + "}"),
        ("rounds.jsonl", "[" * 200_000 + "\n"),
        ("rounds.jsonl", '{"round": 1, "banks": [{"bank": "a", "rows": 1' + "0" * 400 + "}]}\n"),
        ("eval/final/metrics.json", '{"scores": {"fpb": {"n": 1' + "0" * 400 + "}}}"),
    ],
)
def test_odd_json_is_named_and_the_rest_is_shown(file: str, content: str, tmp_path: Path) -> None:
    run = Path(shutil.copytree(OLD_RUNS / "none", tmp_path / "run"))
    (run / file).write_text(content, encoding="utf-8")
    page = write_run_report([run], tmp_path / "report.html").read_text("utf-8")
    assert "cannot be read" in page or "no text that UTF-8 can hold" in page or "out of range" in page
    assert main(["list", str(tmp_path)]) == 0


def test_the_page_on_run_folders_is_made_from_the_records() -> None:
    assert (ROOT / "docs" / "run-folder.md").read_text("utf-8") == reference.render()


def test_every_record_is_on_the_page_and_says_what_it_is() -> None:
    page = reference.render()
    classes = [each for module in (records, evaluation) for each in vars(module).values() if is_dataclass(each)]
    for cls in classes:
        if cls.__module__ in (records.__name__, evaluation.__name__):
            assert f"### {cls.__name__}\n" in page
            assert all(f"| `{item.name}` |" in page for item in fields(cls))
    assert RowRecord in classes
