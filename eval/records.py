"""From evaluated rows to their records (`fedfinlora.run.evaluation.RowRecord`) and the metrics that follow from them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from data.catalog import Benchmark
from data.rows import Row
from eval.metrics import summarise
from eval.scoring import finlora_labels, finlora_output, finlora_score_row, score_row
from fedfinlora.run.evaluation import BenchmarkMetrics, RowRecord


def score_rows(
    benchmark: Benchmark, rows: Sequence[Row], outputs: Sequence[str | None], bertscore_model: str = "auto"
) -> tuple[list[RowRecord], BenchmarkMetrics]:
    """The records and the metrics of one benchmark.

    `outputs[i]` is the text generated for `rows[i]`, without the prompt, or None where nothing was generated. `bertscore_model` is
    used by BERTScore sets only (`eval.bertscore.find_encoder`).
    """
    labels = finlora_labels(benchmark, [row.target for row in rows])
    records = [make_record(benchmark, row, output, labels) for row, output in zip(rows, outputs, strict=True)]
    if benchmark.scorer == "bertscore" and any(output is not None for output in outputs):
        records = _with_bertscores(records, bertscore_model)
    return records, summarise(benchmark, records)


def make_record(benchmark: Benchmark, row: Row, output: str | None, labels: Sequence[str]) -> RowRecord:
    """One record. `labels` is FinLoRA's label set, `finlora_labels` over the targets of all rows of the evaluation."""
    unanswered = RowRecord(row.id, hashlib.sha256(row.prompt.encode()).hexdigest(), row.target, output)
    if output is None:
        return unanswered
    score = score_row(benchmark, row.target, output)
    record = replace(unanswered, parsed=score.parsed, correct=score.correct)
    if benchmark.scorer == "bertscore":
        return record
    pieces = finlora_score_row(benchmark, row.target, output, labels)
    record = replace(
        record,
        finlora_correct=all(piece.correct for piece in pieces),
        finlora_ambiguous=any(piece.ambiguous for piece in pieces),
        exact=score.exact if benchmark.scorer == "number" else None,
        value_correct=score.value_correct if benchmark.judged_by_value else None,
    )
    if benchmark.scorer != "tag_list":
        return record
    right = sum(piece.correct for piece in pieces)
    return replace(record, tags=len(pieces), tags_correct=sum(score.tag_hits), finlora_tags_correct=right)


def _with_bertscores(records: Sequence[RowRecord], model: str) -> list[RowRecord]:
    from eval.bertscore import bertscore

    outputs, targets = [finlora_output(record.output or "") for record in records], [record.target for record in records]
    scores = bertscore(outputs, targets, model)
    return [
        replace(
            record,
            bertscore_precision=precision,
            bertscore_recall=recall,
            bertscore_f1=f1,
            bertscore_model=scores.model,
            bertscore_layer=scores.layer,
        )
        for record, precision, recall, f1 in zip(records, scores.precision, scores.recall, scores.f1, strict=True)
    ]
