"""Which rows an evaluation asks: a seeded sample of each benchmark's test rows, with solved examples in front where
that is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from data.catalog import BENCHMARKS, select
from data.rows import Row
from data.shots import few_shot_rows
from data.sources import load_rows
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.seeds import generator


@dataclass(frozen=True)
class EvaluationRows:
    """What one evaluation reads."""

    rows: Mapping[str, Sequence[Row]]
    """Benchmark key -> its rows."""
    skipped: Mapping[str, str]
    """Benchmark key -> why it has none."""
    files: Mapping[str, str]
    """File -> SHA-256."""
    synthetic: bool
    shortages: Mapping[str, str] = field(default_factory=dict)
    """Benchmark key -> why it has fewer examples in front of its prompts than evaluation.shots."""


def rows_to_score(config: Config, limit: int | None = None) -> EvaluationRows:
    """Test rows of each benchmark asked for: a seeded sample of `limit` (default evaluation.limit; 0 = all).

    A smaller sample is part of every larger one.
    """
    synthetic = config.dataset.source == "sample"
    benchmarks = select(config.evaluation.benchmarks)
    if not benchmarks:
        return EvaluationRows({}, {}, {}, synthetic)
    try:
        loaded = load_rows(config.dataset, "test", tuple(benchmark.key for benchmark in benchmarks), config.seed)
    except UserError as error:  # no test rows at all, or bad ones with dataset.on_bad_row=stop
        if config.dataset.on_bad_row == "stop":
            raise
        return EvaluationRows({}, {benchmark.key: str(error) for benchmark in benchmarks}, {}, synthetic)
    rows: dict[str, list[Row]] = {benchmark.key: [] for benchmark in benchmarks}
    for row in loaded.rows:
        if row.task in rows:
            rows[row.task].append(row)
    skipped: dict[str, str] = {}
    limit = config.evaluation.limit if limit is None else limit
    for key in list(rows):
        if not rows[key]:
            skipped[key] = loaded.missing.get(key, "no usable test rows")
            del rows[key]
            continue
        if limit and len(rows[key]) > limit:
            chosen = generator(config.seed, "evaluation", key).permutation(len(rows[key]))[:limit]
            rows[key] = [rows[key][index] for index in sorted(chosen.tolist())]
    return EvaluationRows(rows, skipped, loaded.files, loaded.synthetic)


def require_rows(config: Config) -> None:
    """UserError where no benchmark asked for has a row to score, before a model is loaded."""
    found = rows_to_score(config)
    if not found.rows:
        reason = next(iter(found.skipped.values()), "evaluation.benchmarks names none")
        raise UserError(f"There is nothing to score: {reason}")


def data_files(config: Config) -> dict[str, str]:
    """File -> SHA-256 of every train and test file that can be read from here (a deployed bank's own files cannot)."""
    files = dict(rows_to_score(config).files)
    try:
        files |= load_rows(config.dataset, "train", config.dataset.tasks, config.seed).files
    except UserError:
        return files
    return files


def prepared(asked: EvaluationRows, config: Config, length: Callable[[], Callable[[str], int]]) -> EvaluationRows:
    """The rows with their examples. `length()` gives the function that counts a prompt's tokens
    (`eval.models.Model.length`).
    """
    rows: dict[str, Sequence[Row]] = dict(asked.rows)
    skipped, shortages = dict(asked.skipped), dict[str, str]()
    for key in list(rows):
        benchmark = BENCHMARKS[key]
        if config.evaluation.mode == "labels" and not benchmark.labels:
            skipped[key] = "evaluation.mode=labels: it has no closed label set"
            del rows[key]
        elif config.evaluation.shots:
            found = few_shot_rows(config, benchmark, rows[key], length())
            if found.skipped:
                skipped[key] = found.skipped
                del rows[key]
                continue
            if found.shortage:
                shortages[key] = found.shortage
            rows[key] = found.rows
    return replace(asked, rows=rows, skipped=skipped, shortages=shortages)
