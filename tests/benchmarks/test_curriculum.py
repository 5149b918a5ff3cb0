"""The curriculum's figures: what is kept of a run in stages, and the table and sentence made of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import SCORED, overrides, write_rows

from benchmarks.curriculum import figures, section, worth
from fedfinlora.cli import main
from fedfinlora.files import write_json


def run_of(value: float, half: float) -> dict[str, Any]:
    mean = {"value": value, "low": value - half, "high": value + half}
    return {"scores": {"final": {"fpb": {"n": 40, "name": "accuracy", **mean}, "mean": mean}}}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (0.60, r"\+10.0 points .* \(within both intervals"),
        (0.90, r"\+40.0 points .* \(more than chance"),
    ],
)
def test_a_difference_within_the_intervals_is_none(given: float, said: str) -> None:
    text = worth({"given": run_of(given, 0.08), "reversed": run_of(0.5, 0.08), "mixed": run_of(0.5, 0.08)})
    assert re.search(said, text)
    assert "of 40 rows" in text


def test_a_runs_figures_have_no_row_and_make_a_table(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows", word="secret")
    stages = ("+stages.one.train.epochs=2", "+stages.two.train.epochs=1", "peft.rank=2", "peft.alpha=4")
    words = overrides(
        rows, tmp_path / "out", *SCORED, "evaluation.base=true", "train.holdout_max_rows=0", *stages, rounds=1
    )
    assert main(["centralized", *words]) == 0
    found = figures(tmp_path / "out" / "run", 60.0, (0.5, 1.5))
    assert found["order"] == "given"
    assert set(found["scores"]) == {"base", "final"}
    assert "secret" not in json.dumps(found)
    assert str(tmp_path) not in json.dumps(found["scores"])
    write_json(tmp_path / "figures" / "given.json", found)
    text = section(tmp_path / "figures")
    assert "| base model |" in text
    assert "| complex, then simple | 48 + 24 |" in text
    assert "1.0 minutes" in text
