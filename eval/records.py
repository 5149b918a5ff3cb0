"""One JSON record for each evaluated row (`eval/<label>/<benchmark>.jsonl` of a run folder), and the metrics that follow from them.

Records hold all that the metrics need, so figures can be computed again, or by other rules, without running a model. What was not
measured is null: the fields of a generated answer where only labels were compared (`label_choice` is set by whoever did that).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from data.catalog import Benchmark
from data.rows import Row
from eval.metrics import summarise
from eval.scoring import finlora_labels, finlora_output, finlora_score_row, score_row


def score_rows(
    benchmark: Benchmark, rows: Sequence[Row], outputs: Sequence[str | None], bertscore_model: str = "auto"
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The records and the metrics of one benchmark.

    `outputs[i]` is the text generated for `rows[i]`, without the prompt, or None where nothing was generated. `bertscore_model` is
    used by BERTScore sets only (`eval.bertscore.find_encoder`).
    """
    labels = finlora_labels(benchmark, [row.target for row in rows])
    records = [make_record(benchmark, row, output, labels) for row, output in zip(rows, outputs, strict=True)]
    if benchmark.scorer == "bertscore" and any(output is not None for output in outputs):
        _add_bertscores(records, bertscore_model)
    return records, summarise(benchmark, records)


def make_record(benchmark: Benchmark, row: Row, output: str | None, labels: Sequence[str]) -> dict[str, Any]:
    """One record. `labels` is FinLoRA's label set, `finlora_labels` over the targets of all rows of the evaluation.

    `parsed` null means unparsed; `correct` and the `finlora_` fields are null for BERTScore sets, and all of them where nothing was
    generated (`output` null). For tag lists `correct` and `finlora_correct` say that every tag is right, and the counts of tags stand
    beside them.
    """
    record: dict[str, Any] = {
        "id": row.id,
        "prompt_sha256": hashlib.sha256(row.prompt.encode()).hexdigest(),
        "target": row.target,
        "output": output,
        "parsed": None,
        "correct": None,
        "finlora_correct": None,
        "finlora_ambiguous": None,
    }
    if output is None:
        return record
    score = score_row(benchmark, row.target, output)
    record["parsed"], record["correct"] = score.parsed, score.correct
    if benchmark.scorer == "bertscore":
        return record
    pieces = finlora_score_row(benchmark, row.target, output, labels)
    record["finlora_correct"] = all(piece.correct for piece in pieces)
    record["finlora_ambiguous"] = any(piece.ambiguous for piece in pieces)
    if benchmark.scorer == "number":
        record["exact"] = score.exact
    if benchmark.judged_by_value:
        record["value_correct"] = score.value_correct
    if benchmark.scorer == "tag_list":
        record["tags"] = len(pieces)
        record["tags_correct"] = sum(score.tag_hits)
        record["finlora_tags_correct"] = sum(piece.correct for piece in pieces)
    return record


def _add_bertscores(records: Sequence[dict[str, Any]], model: str) -> None:
    from eval.bertscore import bertscore

    outputs, targets = [finlora_output(record["output"] or "") for record in records], [record["target"] for record in records]
    scores = bertscore(outputs, targets, model)
    for record, precision, recall, f1 in zip(records, scores.precision, scores.recall, scores.f1, strict=True):
        record["bertscore_precision"], record["bertscore_recall"], record["bertscore_f1"] = precision, recall, f1
        record["bertscore_model"], record["bertscore_layer"] = scores.model, scores.layer
