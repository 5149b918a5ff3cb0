"""What the harness calls on the rows and answers of our tasks. No arithmetic of its own: `eval.scoring` judges.

A metric's function gets all items of a task at once, so figures over rows (F1, BERTScore) are our evaluator's too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.catalog import BENCHMARKS, Benchmark
from data.rows import Row
from eval.scoring.records import score_rows
from eval.scoring.scorers import SCORERS
from fedfinlora.run.evaluation import BenchmarkMetrics

ROWS_FOLDER = "rows"
LOWER_IS_BETTER = ("unparsed_share", "pixiu_missing")
Item = tuple[str, str, str]
"""(benchmark key, the row as JSON, the model's answer)."""


def metric_names(benchmark: Benchmark) -> tuple[str, ...]:
    """The figures of a benchmark's task, as metrics.json names them (`eval.metrics.benchmark.figure_values`)."""
    import numpy as np

    scorer = SCORERS[benchmark.scorer]
    names = ["unparsed_share"]
    if scorer.judged:
        names += ["accuracy", *(("f1_macro", "f1_weighted") if scorer.classes else ())]
        names += ["matthews"] if benchmark.labels else []
        names += ["finlora_accuracy", "finlora_f1"] if scorer.by_finlora else []
    further = scorer.figures({name: np.ones(1) for name in scorer.counts})
    return (*names, *scorer.shares, *scorer.means, *further)


def all_metric_names() -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for benchmark in BENCHMARKS.values() for name in metric_names(benchmark)))


def rows_of(folder: Path, benchmark: str) -> dict[str, Any]:
    """Split -> documents, read from the folder itself: the harness's own JSON reader would leave a copy of the rows in
    a cache.
    """
    from datasets import Dataset

    lines = (folder / ROWS_FOLDER / f"{benchmark}.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def process_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, Item]:
    """Metric -> item of one row; `results` is the one answer that was generated.

    Where dataset.answer_space moved the prompt's last space to the answer, it is taken off again.
    """
    answer = results[0].removeprefix(" ") if document["moved_space"] else results[0]
    item = (document["benchmark"], document["row"], answer)
    return dict.fromkeys(metric_names(BENCHMARKS[document["benchmark"]]), item)


def metric(name: str) -> Callable[[Sequence[Item]], float]:
    """The function that the harness calls for a metric; NaN where the figure is undefined."""

    def aggregate(items: Sequence[Item]) -> float:
        value = _metrics(tuple(items)).value(name)
        return float("nan") if value is None else value

    return aggregate


@lru_cache(maxsize=2)
def _metrics(items: tuple[Item, ...]) -> BenchmarkMetrics:
    benchmark = BENCHMARKS[items[0][0]]
    rows = [Row(**json.loads(row)) for _, row, _ in items]
    return score_rows(benchmark, rows, [answer for _, _, answer in items])[1]
