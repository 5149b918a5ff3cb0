"""Do the scores in a run's folder follow from the rows that were scored? For `verify`: every record and metric is made
again by the evaluator's own functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from data.catalog import BENCHMARKS, Benchmark
from data.rows import Row
from eval.metrics.averages import finlora_overall, group_means
from eval.metrics.benchmark import summarise
from eval.models import choice_of
from eval.rounds import is_due, validation_of
from eval.scoring.records import recorded_scores, score_rows
from eval.scoring.scorers import SCORERS
from fedfinlora.config.schema import Config
from fedfinlora.model.adapter_folder import PROVENANCE_FILE
from fedfinlora.provenance.compared import Difference, differences
from fedfinlora.run.evaluation import (
    METRICS_FILE,
    BenchmarkMetrics,
    Evaluation,
    RowRecord,
    read_evaluation,
    read_records,
)
from fedfinlora.run.folder import ROUND_LABEL, read_config
from fedfinlora.run.records import ROUNDS_FILE, RoundLine
from fedfinlora.run.selection import Selection, choice
from fedfinlora.run.typed import plain, to_json

GIVEN = (
    "id", "prompt_sha256", "target", "output", "too_long", "stopped", "api", "served_model", "label_logprobs",
    "reference",
)  # fmt: skip
JUDGED = tuple(field.name for field in fields(RowRecord) if field.name not in GIVEN)
"""Fields of a record that follow from what is given."""
VALIDATION = "validation_"


def recompute_scores(run: Path, lines: Sequence[RoundLine]) -> Iterator[Difference | str]:
    """What in eval/ and in the scores of rounds.jsonl (`lines`) does not follow from the rows, and sentences on what
    was not computed.

    UserError where a file cannot be read. BERTScores and log-probabilities of labels are the model's: what follows from
    them is computed.
    """
    truths: dict[tuple[str, str, str], tuple[str, str]] = {}
    rows: dict[tuple[str, str], dict[str, set[str]]] = {}
    config = read_config(run)
    computed, gone = 0, 0
    for file in sorted((run / "eval").glob(f"*/{METRICS_FILE}")):
        label = file.parent.name
        found = read_evaluation(run, label)
        for key, metrics in found.scores.items():
            scored = file.with_name(f"{key}.jsonl")
            if key not in BENCHMARKS:
                yield Difference(file, f"scores.{key}", "there", "absent", "the catalog of benchmarks")
            elif not scored.is_file() and ROUND_LABEL.fullmatch(label):
                gone += 1  # keep_rounds has let them go
            elif not scored.is_file():
                yield Difference(scored, "its content", "missing", "scores of it", METRICS_FILE)
            else:
                records = read_records(scored)
                computed += len(records)
                yield from _row_differences(scored, BENCHMARKS[key], records, metrics)
                yield from _same_rows(scored, label, key, records, truths)
                rows.setdefault((_kind_of(label), key), {})[label] = {record.id for record in records}
                work = found.work.get(key)
                if work is not None and work.rows != len(records):
                    yield Difference(file, f"work.{key}.rows", work.rows, len(records), str(scored))
        if label in ("base", "final") or ROUND_LABEL.fullmatch(label):
            yield from _subject_differences(file, label, found, config, lines)
        yield from differences(
            _summary(found), {name: plain(getattr(found, name)) for name in SUMMARY}, file, "its scores"
        )
    yield from _same_samples(run, rows)
    yield from _round_differences(run, lines)
    yield from _missing(run, lines)
    if computed:
        yield f"eval: the verdicts and metrics of {computed:,} scored rows were computed again"
    if gone:
        yield (
            f"eval: the rows of {gone:,} benchmarks of older rounds are not kept, so their metrics were not computed "
            "again"
        )


def _row_differences(
    file: Path, benchmark: Benchmark, records: Sequence[RowRecord], metrics: BenchmarkMetrics
) -> Iterator[Difference]:
    """What another answer gives than a record says, and other records than the metrics."""
    if SCORERS[benchmark.scorer].judged:
        rows = [
            Row(record.id, benchmark.key, "", record.target, reference=record.reference or "") for record in records
        ]
        choices = [choice_of(benchmark, record.label_logprobs) if record.label_logprobs else None for record in records]
        made, computed = score_rows(benchmark, rows, [record.output for record in records], choices=choices)
        for number, (expected, found) in enumerate(zip(made, records, strict=True), 1):
            pairs = {name: (plain(getattr(expected, name)), plain(getattr(found, name))) for name in JUDGED}
            for name, (one, other) in pairs.items():
                yield from differences(one, other, f"{file}, line {number}", "its answer", name)
    else:
        computed = summarise(benchmark, recorded_scores(benchmark, records))
    # How plain decoding answers cannot be computed from records.
    computed = replace(computed, too_long=sum(record.too_long for record in records), decoding=metrics.decoding)
    yield from differences(
        plain(computed), plain(metrics), file.with_name(METRICS_FILE), str(file), f"scores.{benchmark.key}"
    )


SUMMARY = ("groups", "finlora_overall", "reused")


def _summary(found: Evaluation) -> dict[str, Any]:
    known = {key: metrics for key, metrics in found.scores.items() if key in BENCHMARKS}
    reused = sum(work.reused for work in found.work.values())
    return {"groups": plain(group_means(known)), "finlora_overall": plain(finlora_overall(known)), "reused": reused}


def _subject_differences(
    file: Path, label: str, found: Evaluation, config: Config, lines: Sequence[RoundLine]
) -> Iterator[Difference]:
    """What was scored, and how, is the run's: its model, and the adapter of the round."""
    asked = config.evaluation
    expected = {"label": label, "mode": asked.mode, "shots": asked.shots}
    yield from differences(expected, {name: getattr(found, name) for name in expected}, file, "the configuration")
    model = {"model": config.model.path, "quantization": config.model.quantization}
    yield from differences(model, {name: found.model.get(name) for name in model}, file, "the configuration", "model")
    number = (
        choice(lines, config).final_round
        if label == "final"
        else None
        if label == "base"
        else int(label.rpartition("_")[2])
    )
    adapter = found.model.get("adapter")
    if config.dataset.source == "sample" and not found.synthetic:
        yield Difference(file, "synthetic", False, True, "dataset.source of the configuration")
    has_moved = any(line.update_norm for line in lines[: number or 0])  # else it may still be the base model
    may = (
        {lines[number - 1].adapter_sha256, *([] if has_moved else ["none"])}
        if number and number <= len(lines)
        else None
    )
    if may is not None and adapter not in may and number is not None:
        yield Difference(
            file, "model.adapter", adapter, lines[number - 1].adapter_sha256, f"round {number} of {ROUNDS_FILE}"
        )


def _kind_of(label: str) -> str:
    """Labels of one kind are scored on the same rows."""
    if label in ("base", "final"):
        return "the whole run"
    return "validation" if label.startswith(VALIDATION) else "rounds" if ROUND_LABEL.fullmatch(label) else label


def _same_rows(
    file: Path, label: str, key: str, records: Iterable[RowRecord], truths: dict[tuple[str, str, str], tuple[str, str]]
) -> Iterator[Difference]:
    """A row has one prompt and one target, wherever it is scored, and is scored once."""
    split, seen = VALIDATION if label.startswith(VALIDATION) else "", set()
    for number, record in enumerate(records, 1):
        where = f"{file}, line {number}"
        if record.id in seen:
            yield Difference(where, "id", record.id, "another", "a row that is scored once")
        seen.add(record.id)
        for name, expected, found in zip(
            ("prompt_sha256", "target"),
            truths.setdefault((split, key, record.id), _truth(record)),
            _truth(record),
            strict=True,
        ):
            if expected != found:
                yield Difference(where, name, found, expected, "the same row elsewhere in eval/")


def _truth(record: RowRecord) -> tuple[str, str]:
    return record.prompt_sha256, record.target


def _same_samples(run: Path, rows: Mapping[tuple[str, str], Mapping[str, set[str]]]) -> Iterator[Difference]:
    for (_, key), samples in rows.items():
        first = next(iter(samples))
        for label, ids in samples.items():
            if ids != samples[first]:
                yield Difference(run / "eval" / label / f"{key}.jsonl", "its rows", f"{len(ids)} rows",
                    f"{len(samples[first])} rows, not the same", f"eval/{first}")  # fmt: skip


def _round_differences(run: Path, lines: Sequence[RoundLine]) -> Iterator[Difference]:
    """The scores of a round in rounds.jsonl are those in eval/."""
    selection = Selection()
    for number, line in enumerate(lines, 1):
        where = f"{run / ROUNDS_FILE}, line {number}"
        for key, found, label in (
            ("scores", line.scores, f"round_{line.round:03d}"),
            ("validation", line.validation, f"{VALIDATION}round_{line.round:03d}"),
        ):
            file = run / "eval" / label / METRICS_FILE
            if not found and not file.is_file():
                continue
            scores = read_evaluation(run, label).scores
            made = plain(scores) if key == "scores" else to_json(validation_of(scores, selection))
            yield from differences(made, plain(found), where, f"eval/{label}", key)
        selection = selection.after(line)


def _missing(run: Path, lines: Sequence[RoundLine]) -> Iterator[Difference]:
    """What the configuration has scored is there: the base, each round that is due, and, once the run is completed, the
    final adapter.
    """
    config = read_config(run)
    due = [f"round_{line.round:03d}" for line in lines if is_due(config, line.round)]
    due += [f"{VALIDATION}{label}" for label in due] if config.evaluation.validation_rows else []
    due += ["base"] if config.evaluation.base and config.evaluation.benchmarks != ("none",) and lines else []
    if (run / "adapters" / "final" / PROVENANCE_FILE).is_file() and config.evaluation.benchmarks != ("none",):
        due.append("final")
    for label in due:
        file = run / "eval" / label / METRICS_FILE
        if not file.is_file():
            yield Difference(file, "the file", "missing", "there", "the configuration")
