"""The figures of dataset.answer_space pair the rows of two evaluations whose prompts differ by a space."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.answer_space import figures_of, main, section
from fedfinlora.files import read_json, write_json

LABELS = ("positive", "negative", "neutral")


def write_run(folder: Path, answers: list[str], prompt: str, command: str) -> Path:
    """An evaluation of FPB rows whose targets go through LABELS."""
    lines = []
    for number, answer in enumerate(answers):
        target = LABELS[number % 3]
        record = {
            "id": f"row {number}", "prompt_sha256": f"{prompt}{number}", "target": target, "output": answer,
            "parsed": answer, "correct": answer == target, "finlora_correct": answer == target,
            "finlora_ambiguous": False, "stopped": "end",
        }  # fmt: skip
        lines.append(json.dumps(record))
    (folder / "eval" / "base").mkdir(parents=True)
    (folder / "eval" / "base" / "fpb.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    write_json(folder / "manifest.json", {"command": f"{command} dataset.root=/home/x/rows", "git_commit": "abc"})
    return folder


def test_rows_are_paired_though_their_prompts_differ(tmp_path: Path) -> None:
    off = write_run(tmp_path / "off", ["positive"] * 30, "a", "evaluate --base")
    on = write_run(tmp_path / "on", [LABELS[number % 3] for number in range(30)], "b", "evaluate --base space=true")
    found = figures_of(off, on)["fpb"]
    assert found["rows"] == 30
    assert found["accuracy"]["one"] == pytest.approx(1 / 3)
    assert found["accuracy"]["other"] == 1.0
    assert found["accuracy"]["difference"] == pytest.approx(2 / 3)
    assert found["accuracy"]["mcnemar_p"] < 1e-5
    file = tmp_path / "figures.json"
    assert main([str(off), str(on), "--json", str(file)]) == 0
    shown = section(read_json(file))
    assert "| 33.3 | 100.0 | +66.7 (" in shown
    assert "- on: `evaluate --base space=true dataset.root=/data/rows`, commit `abc`." in shown
    assert "row 1" not in file.read_text("utf-8"), "aggregates alone"


def test_a_run_without_answers_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "off", [], "a", "evaluate")
    (folder / "eval" / "base" / "fpb.jsonl").unlink()
    assert main([str(folder), str(folder), "--json", str(tmp_path / "figures.json")]) == 1
    assert "has no answers of the base model" in capsys.readouterr().err
