"""Scorers: a row is read and judged once, files give the scores back, and a new scorer is one class (the walk in
docs/extending.md).
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from scored import metrics_of_records

from data.catalog import BENCHMARKS
from data.rows import Row
from data.sources.flare import reference_of
from eval.metrics.averages import headline_score
from eval.metrics.benchmark import summarise
from eval.metrics.compare import compare_records
from eval.scoring import row_score as scoring
from eval.scoring.parsers import PARSERS
from eval.scoring.records import recorded_scores, score_rows
from eval.scoring.row_score import score_answers
from eval.scoring.scorers import SCORERS, Reading, Scorer
from fedfinlora.run.evaluation import RowRecord, read_records
from fedfinlora.run.typed import from_json, to_json

TARGETS = {
    "label": ["positive", "negative"],
    "collapsed_sentiment": ["mildly positive", "strong negative"],
    "choice": ["A", "B"],
    "tag_list": ["Assets,Revenues", "Goodwill,5.0"],
    "tag": ["us-gaap:Assets", "us-gaap:Revenues"],
    "number": ["5.0", "7.5"],
    "formula": ["1 / 3", "7 / 2"],
    "text": ["a term", "another"],
    "flare_number": ["0.5", "yes"],
    "entities": ["Ann Lee, PER", "Alba, LOC"],
}


def rows_of(key: str) -> tuple[list[Row], list[str]]:
    """Rows of a benchmark, and answers of which the first is right and the last is none."""
    benchmark = BENCHMARKS[key]
    targets = list(TARGETS.get(benchmark.parser) or benchmark.labels[:2])
    targets.append(targets[0])
    prompts = [f"Question {place}\nText: Ann Lee of Alba\nAnswer:" for place in range(len(targets))]
    rows = [
        Row(f"{key}/test/{place:06d}", key, prompt, target,
            reference=reference_of(prompt, target) if benchmark.parser == "entities" else "")
        for place, (prompt, target) in enumerate(zip(prompts, targets, strict=True))
    ]  # fmt: skip
    return rows, [targets[0], targets[0], ""]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that a parser reads."""
    read: list[str] = []

    def counting(parser):
        def parse(text, labels):
            read.append(text)
            return parser(text, labels)

        return parse

    monkeypatch.setattr(scoring, "PARSERS", {name: counting(parser) for name, parser in PARSERS.items()})
    return read


@pytest.mark.parametrize("key", [key for key, benchmark in BENCHMARKS.items() if SCORERS[benchmark.scorer].judged])
def test_an_answer_is_read_once_and_never_again_from_its_record(key: str, parsed: list[str]) -> None:
    rows, _ = rows_of(key)
    answers = ["xyz one", "xyz two", "xyz three"]
    records, metrics = score_rows(BENCHMARKS[key], rows, answers)
    assert [text for text in parsed if text.startswith("xyz")] == answers
    parsed.clear()
    assert metrics_of_records(BENCHMARKS[key], records) == metrics
    compare_records(BENCHMARKS[key], records, records)
    assert not [text for text in parsed if text.startswith("xyz")]


@pytest.mark.parametrize("key", [key for key, benchmark in BENCHMARKS.items() if SCORERS[benchmark.scorer].judged])
def test_records_give_the_scores_back(key: str) -> None:
    rows, outputs = rows_of(key)
    references = [row.reference for row in rows]
    scores = score_answers(BENCHMARKS[key], [row.target for row in rows], outputs, references=references)
    records, _ = score_rows(BENCHMARKS[key], rows, outputs)
    read = [from_json(RowRecord, json.loads(json.dumps(to_json(record))), key) for record in records]
    assert recorded_scores(BENCHMARKS[key], read) == scores


@pytest.mark.parametrize("scorer", SCORERS)
def test_every_scorer_is_used_and_says_what_is_right(scorer: str) -> None:
    assert any(benchmark.scorer == scorer for benchmark in BENCHMARKS.values())
    assert SCORERS[scorer].__doc__


# --- the walk: a scorer for dates -----------------------------------------------------------------


class DateScorer(Scorer):
    """Right if the day is the target's; `accuracy_same_week` also counts days less than a week away."""

    shares = ("accuracy_same_week",)
    means = ("nearness",)

    def measures(self, row: Reading, correct: bool) -> tuple[float, ...]:
        try:
            days = abs((date.fromisoformat(str(row.parsed)) - date.fromisoformat(str(row.expected))).days)
        except ValueError:
            return (False, 0.0)
        return (days < 7, 1 / (1 + days))


def test_a_scorer_is_one_class_and_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a stranger does: a subclass, an entry in SCORERS, its name in the benchmark's entry. Metrics, file and
    `compare` have its measures.
    """
    monkeypatch.setitem(SCORERS, "date", DateScorer())
    benchmark = replace(BENCHMARKS["xbrl_term"], key="due_date", scorer="date", parser="text")
    targets = ["2024-01-31", "2024-01-31", "2024-01-31", "2024-01-31"]
    rows = [
        Row(f"due_date/test/{place}", "due_date", f"{place} Answer:", target) for place, target in enumerate(targets)
    ]
    records, metrics = score_rows(benchmark, rows, ["2024-01-31", "2024-02-01", "in March", ""])
    assert [record.correct for record in records] == [True, False, False, False]
    assert records[1].measures == {"accuracy_same_week": 1.0, "nearness": 0.5}
    values = {name: metrics.value(name) for name in ("accuracy", "accuracy_same_week", "nearness", "unparsed_share")}
    assert values == {"accuracy": 0.25, "accuracy_same_week": 0.5, "nearness": 0.375, "unparsed_share": 0.25}
    assert metrics.bounds("accuracy_same_week") == pytest.approx(
        [0.15, 0.85], abs=1e-4
    )  # Wilson's, as of every share of rows
    assert headline_score(metrics, "strict") == 0.25

    file = tmp_path / "due_date.jsonl"
    file.write_text("".join(json.dumps(to_json(record)) + "\n" for record in records), encoding="utf-8")
    read = read_records(file)
    assert read == records
    assert summarise(benchmark, recorded_scores(benchmark, read)) == metrics
    better, _ = score_rows(benchmark, rows, targets)
    figures = compare_records(benchmark, records, better).figures
    assert (figures["accuracy_same_week"].difference, figures["accuracy_same_week"].mcnemar_p) == (0.5, 0.5)
    assert (figures["nearness"].difference, figures["nearness"].mcnemar_p) == (0.625, None)
