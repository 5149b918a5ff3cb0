"""From row scores to their records on disk (`fedfinlora.run.evaluation.RowRecord`), and back, without reading an answer
again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from data.catalog import Benchmark
from data.rows import Row
from eval.metrics.benchmark import summarise
from eval.scoring.finlora import FinloraPiece
from eval.scoring.row_score import finlora_verdicts, read_row, score_answers
from eval.scoring.scorers import SCORERS, RowScore
from fedfinlora.run.evaluation import BenchmarkMetrics, RowRecord

MEASURE_FIELDS = {"accuracy_exact": "exact", "value_accuracy": "value_correct", "row_accuracy": "correct"}
"""Measure -> the record's field, where it is called otherwise. One without any field is kept under `measures`."""
RECORD_FIELDS = frozenset(field.name for field in fields(RowRecord))


def score_rows(
    benchmark: Benchmark,
    rows: Sequence[Row],
    outputs: Sequence[str | None],
    bertscore_model: str = "auto",
    choices: Sequence[str | None] | None = None,
) -> tuple[list[RowRecord], BenchmarkMetrics]:
    """The records and the metrics of one benchmark (`eval.scoring.row_score.score_answers`)."""
    references = [row.reference for row in rows]
    scores = score_answers(benchmark, [row.target for row in rows], outputs, choices, bertscore_model, references)
    records = [make_record(benchmark, *one) for one in zip(rows, outputs, scores, strict=True)]
    return records, summarise(benchmark, scores)


def make_record(benchmark: Benchmark, row: Row, output: str | None, score: RowScore) -> RowRecord:
    digest = hashlib.sha256(row.prompt.encode()).hexdigest()
    record = RowRecord(row.id, digest, row.target, output, label_choice=score.choice, reference=row.reference or None)
    if not score.scored:
        return record
    found: dict[str, Any] = {}
    for name, value in zip(SCORERS[benchmark.scorer].measured, score.measures, strict=bool(score.measures)):
        field = MEASURE_FIELDS.get(name, name)
        if field in RECORD_FIELDS:
            found[field] = value
        else:
            found.setdefault("measures", {})[name] = float(value)
    if score.finlora:
        found["finlora_correct"] = all(piece.correct for piece in score.finlora)
        found["finlora_ambiguous"] = any(piece.ambiguous for piece in score.finlora)
    if SCORERS[benchmark.scorer].several:
        found["tags"] = len(score.finlora)
        found["tags_correct"] = sum(truth == tag for truth, tag in score.pairs)
        found["finlora_tags_correct"] = sum(piece.correct for piece in score.finlora)
    if score.encoder:
        found["bertscore_model"], found["bertscore_layer"] = score.encoder
    return replace(record, parsed=score.parsed, **{"correct": score.correct, **found})


def recorded_scores(benchmark: Benchmark, records: Sequence[RowRecord]) -> list[RowScore]:
    """The scores that records hold. The answer, its verdict and its measures are read, not made again.

    Only FinLoRA's verdicts are: they depend on the label set, which is that of the records given.
    """
    verdicts = finlora_verdicts(benchmark, [record.target for record in records], [record.output for record in records])
    return [_recorded(benchmark, *one) for one in zip(records, verdicts, strict=True)]


def _recorded(benchmark: Benchmark, record: RowRecord, verdict: tuple[FinloraPiece, ...]) -> RowScore:
    scorer = SCORERS[benchmark.scorer]
    row = read_row(benchmark, record.target, "", record.reference or "")
    row = replace(row, output=record.output or "", parsed=record.parsed)
    held = {**(record.measures or {}), **{name: getattr(record, name) for name in RECORD_FIELDS}}
    measures = (held.get(MEASURE_FIELDS.get(name, name)) for name in scorer.measured)
    return RowScore(
        expected=row.expected,
        parsed=row.parsed,
        correct=record.correct,
        pairs=scorer.pairs(row, record.correct),
        measures=tuple(0.0 if value is None else value for value in measures),
        finlora=verdict,
        scored=record.output is not None,
        encoder=None if record.bertscore_model is None else (record.bertscore_model, record.bertscore_layer or 0),
        choice=record.label_choice,
    )
