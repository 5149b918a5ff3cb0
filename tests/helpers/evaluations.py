"""What the tests of `evaluate` share: rows of three benchmarks, the words of a run, what it leaves, a model that says
what a table holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_config
from tiny_runs import write_lines, write_rows

from data.catalog import Benchmark
from data.rows import Row
from eval.answers import ModelAnswer
from eval.models import OnAnswer, Work
from eval.rows import EvaluationRows
from fedfinlora.cli import main
from fedfinlora.config.evaluation import EvaluationConfig
from fedfinlora.config.schema import Config

VOLATILE = ("seconds", "work", "reused", "rows_per_s", "tokens", "peak_cache_gib")
"""What an evaluation cost, as against what came out."""


def folder_of_rows(root: Path, fpb: int = 24, formula: int = 6) -> Path:
    """Test and train rows of three benchmarks in FinLoRA's layout: labels, numbers, lists of tags."""
    write_rows(root, train=12, test=fpb)
    lines = {
        "formula": [{"context": f"What is {n} plus {n * 3}? Answer:", "target": f"{n * 4}.0"} for n in range(formula)],
        "finer": [
            {"context": f"Tag {n} and {n + 1} of {'these ' * n}. Output US GAAP tags:", "target": "Assets,Revenues"}
            for n in range(3)
        ],
    }
    write_lines(root / "test" / "formula_test.jsonl", [json.dumps(line) for line in lines["formula"]])
    write_lines(root / "test" / "finer_test_batched.jsonl", [json.dumps(line) for line in lines["finer"]])
    return root


def words_for(
    rows: Path, output: Path, *more: str, benchmarks: str = "fpb,formula,xbrl_finer", name: str = "run"
) -> list[str]:
    """The words of an evaluation of all rows with the tiny model; answers are kept next to the runs."""
    return [
        "dataset=finlora", f"dataset.root={rows}", f"output_dir={output}", f"run_name={name}", "model=tiny-random",
        "model.threads=1", f"evaluation.benchmarks=[{benchmarks}]", "evaluation.limit=0",
        f"evaluation.answers_dir={output / 'answers'}", *more,
    ]  # fmt: skip


def scored(words: Sequence[str], *options: str) -> Path:
    """Run an evaluation that is to succeed; returns the run's folder."""
    assert main(["evaluate", *options, *words]) == 0
    named = {word.split("=")[0]: word.split("=", 1)[1] for word in words if "=" in word}
    return Path(named["resume"]) if "resume" in named else Path(named["output_dir"]) / named["run_name"]


def metrics_of(run: Path, label: str = "base") -> dict[str, Any]:
    """metrics.json without what it cost."""
    values = json.loads((run / "eval" / label / "metrics.json").read_text("utf-8"))
    return {name: value for name, value in values.items() if name not in VOLATILE}


def cost_of(run: Path, label: str = "base") -> dict[str, Any]:
    values = json.loads((run / "eval" / label / "metrics.json").read_text("utf-8"))
    return {name: values[name] for name in VOLATILE}


def files_of(run: Path, label: str = "base") -> dict[str, bytes]:
    """Name -> content of everything in eval/<label>/, the metrics without what they cost."""
    folder = run / "eval" / label
    found = {file.name: file.read_bytes() for file in folder.iterdir()}
    return found | {"metrics.json": json.dumps(metrics_of(run, label)).encode()}


def assert_same(one: Path, other: Path, label: str = "base") -> None:
    """The same bytes, but for log-probabilities of labels: their last digits depend on what shares a pass."""
    first, second = files_of(one, label), files_of(other, label)
    assert set(first) == set(second)
    for name in first:
        if name != "metrics.json":
            for mine, theirs in zip(
                records_of(one, name[: -len(".jsonl")], label),
                records_of(other, name[: -len(".jsonl")], label),
                strict=True,
            ):
                assert mine.pop("label_logprobs", None) == pytest.approx(theirs.pop("label_logprobs", None), abs=1e-4)
                assert list(mine.items()) == list(theirs.items())
        if "label_logprobs" not in first[name].decode("utf-8", "surrogatepass"):
            assert first[name] == second[name]


def records_of(run: Path, benchmark: str, label: str = "base") -> list[dict[str, Any]]:
    lines = (run / "eval" / label / f"{benchmark}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@dataclass
class Said:
    """A model that says what a table holds for each prompt."""

    lasting = True
    texts: Mapping[str, str]
    logprobs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    work: Work = field(default_factory=Work)
    calls: list[str] = field(default_factory=list)
    identity: Mapping[str, Any] = field(default_factory=lambda: {"model": "said"})

    def account(self) -> dict[str, Any]:
        return {}

    def length(self) -> Any:
        return len

    def settings(self, benchmark: Benchmark, rows: Sequence[Row], labels: bool) -> dict[str, Any]:
        return {**self.identity, "benchmark": benchmark.key, "labels": labels}

    def prompts(self, rows: Sequence[Row], benchmark: Benchmark) -> list[str | None]:
        return [row.prompt if row.prompt in self.texts or row.prompt in self.logprobs else None for row in rows]

    def generate(self, benchmark: Benchmark, rows: Sequence[Row], asked: Sequence[int], on_answer: OnAnswer) -> None:
        for number in asked:
            self.calls.append(rows[number].prompt)
            on_answer(number, ModelAnswer(self.texts[rows[number].prompt], "end"))

    def compare_labels(
        self, benchmark: Benchmark, rows: Sequence[Row], asked: Sequence[int], on_answer: OnAnswer
    ) -> None:
        for number in asked:
            on_answer(number, ModelAnswer(label_logprobs=dict(self.logprobs[rows[number].prompt])))


def fpb_rows(*pairs: tuple[str, str]) -> EvaluationRows:
    rows = [Row(f"fpb/test/{number}", "fpb", prompt, target) for number, (prompt, target) in enumerate(pairs)]
    return EvaluationRows({"fpb": rows}, {}, {}, False)


def fpb_config(**values: Any) -> Config:
    return tiny_config(evaluation=EvaluationConfig(benchmarks=("fpb",), reuse=False, **values))


def lines_in(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0
