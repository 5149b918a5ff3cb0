"""FLARE's section of docs/results.md: what is taken from runs, and that no row is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.flare_results import figures_of, section
from data.catalog import BENCHMARKS
from data.rows import Row
from eval.scoring.records import score_rows
from fedfinlora.errors import UserError
from fedfinlora.files import write_json
from fedfinlora.run.evaluation import Evaluation
from fedfinlora.run.typed import to_json


def scored(folder: Path, label: str, key: str, outputs: list[str]) -> None:
    """An evaluation of the row texts "secret N" whose target is always Rise or 1.0."""
    target = "Rise" if BENCHMARKS[key].labels else "1.0"
    rows = [Row(f"{key}/test/{place}", key, f"secret {place}", target) for place in range(len(outputs))]
    _, metrics = score_rows(BENCHMARKS[key], rows, outputs)
    write_json(folder / "eval" / label / "metrics.json", to_json(Evaluation(scores={key: metrics}, label=label)))


def test_figures_of_runs_become_the_section(tmp_path: Path) -> None:
    scored(tmp_path / "a", "base", "acl18", ["Rise", "Fall", "hm", ""])
    scored(tmp_path / "a", "final", "acl18", ["Rise", "Rise", "Rise", ""])
    scored(tmp_path / "b", "base", "finqa", ["1", "100 %"])
    found = figures_of([tmp_path / "b", tmp_path / "a"])
    assert list(found) == ["finqa", "acl18"]
    assert (found["acl18"]["base"]["rows"], found["acl18"]["base"]["missing"]) == (4, 0.5)
    assert (found["acl18"]["base"]["accuracy"][0], found["acl18"]["adapter"]["accuracy"][0]) == (0.25, 0.75)
    run = {"name": "scored acl18", "command": "python -m fedfinlora evaluate", "commit": "abc", "minutes": 1, "cpus": 2}
    text = section({"benchmarks": found, "trained_on": ["finqa"], "loads": ["1.0 2.0 3.0"], "runs": [run]})
    lines = text.splitlines()
    assert "| FinQA (2) | exact match | 1.000 (0.34 to 1.00) | – | 0 %, – | 0.63, 0.04 |" in lines
    assert any(line.startswith("| ACL18 (4) | accuracy | 0.250") and line.endswith("| 0.52, 0.56 |") for line in lines)
    assert "- scored acl18: `python -m fedfinlora evaluate`, commit `abc`, 1.0 minutes on 2 CPUs." in lines
    assert "1.0 2.0 3.0" in text
    assert "secret" not in json.dumps(found) + text


def test_a_run_without_scores_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no scores"):
        figures_of([tmp_path])
