"""What each scored row is worth in its benchmark's strict headline score, so that differences are paired row by row.

A benchmark's score is the weighted mean of its rows' values: right or wrong, the share of right tags (weighted by
tags), or BERTScore F1. Sums and differences of models are then sums and differences of rows, and an interval is a
bootstrap over rows (Efron and Tibshirani 1993, chapter 16) of their mean, benchmark by benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.metrics.intervals import BOOTSTRAP_SEED, RESAMPLES, bootstrap_interval
from fedfinlora.errors import UserError
from fedfinlora.files import sha256_of
from fedfinlora.run.evaluation import Estimate, RowRecord
from fedfinlora.seeds import generator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from eval.metrics.intervals import Array


@dataclass(frozen=True)
class RowValues:
    """The rows of one benchmark, scored by one model, in the order of the evaluation."""

    rows_sha256: str
    """Of the rows' prompts and ids in their order: two evaluations are paired where it is the same."""
    values: tuple[float, ...]
    """(n,) from 0 to 1."""
    weights: tuple[int, ...]
    """(n,) 1 each; of tag lists the number of tags."""


def row_values(records: Sequence[RowRecord]) -> RowValues:
    """The values of one benchmark's records. UserError without rows and for a row that was not scored."""
    if not records:
        raise UserError("There are no scored rows. Evaluate again, with evaluation.benchmarks= and evaluation.limit=.")
    named = "\n".join(f"{record.prompt_sha256} {record.id}" for record in records)
    pairs = [_value_of(record) for record in records]
    return RowValues(
        sha256_of(named.encode()), tuple(value for value, _ in pairs), tuple(weight for _, weight in pairs)
    )


def _value_of(record: RowRecord) -> tuple[float, int]:
    if record.bertscore_f1 is not None:
        return record.bertscore_f1, 1
    if record.tags:
        return (record.tags_correct or 0) / record.tags, record.tags
    if record.correct is None:
        raise UserError(f"Row {record.id} has no strict score. Evaluate again with evaluation.mode=generate.")
    return float(record.correct), 1


def resampled_means(tables: Sequence[tuple[Array, Sequence[int]]]) -> Array:
    """Means over benchmarks of weighted row means, of the sample and of each resample: (1 + RESAMPLES, m) float64.

    `tables` has for each benchmark values of shape (m, n), of m models or contrasts on the same n rows, and the rows'
    n weights. Rows of different benchmarks are drawn independently, those of the m models together.
    """
    import numpy as np

    total: NDArray[np.float64] | None = None
    for number, (values, weights) in enumerate(tables):
        weighed = np.asarray(weights, np.float64)
        count = len(weighed)
        drawn = generator(BOOTSTRAP_SEED, "row values", number).multinomial(count, [1 / count] * count, size=RESAMPLES)
        times = np.vstack([np.ones(count), drawn]) * weighed  # (1 + RESAMPLES, n)
        means = (times @ np.asarray(values, np.float64).T) / times.sum(axis=1, keepdims=True)
        total = means if total is None else total + means
    if total is None:
        raise UserError("No benchmark was scored. Name some with evaluation.benchmarks=.")
    return total / len(tables)


def estimates(tables: Sequence[tuple[Array, Sequence[int]]]) -> list[Estimate]:
    """The m means over benchmarks with their 95 % intervals over rows."""
    means = resampled_means(tables)
    found = []
    for column in range(means.shape[1]):
        low, high = bootstrap_interval(means[:, column], lowest=-1.0, highest=1.0) or (None, None)
        found.append(Estimate(float(means[0, column]), low, high))
    return found


def contrasts(models: Sequence[Mapping[str, RowValues]], coefficients: Array) -> list[Estimate]:
    """sum_j coefficients[i, j] · score of model j, for each i, with intervals over the rows that all models share.

    `models`: for each model benchmark key -> its rows; `coefficients`: (contrasts, models). UserError where the rows
    differ.
    """
    import numpy as np

    keys = [key for key in models[0] if all(key in model for model in models)]
    tables = []
    for key in keys:
        if len({model[key].rows_sha256 for model in models}) > 1:
            raise UserError(f"{key}: the evaluations are of different rows. Evaluate with the same data and seed.")
        values = np.array([model[key].values for model in models])
        tables.append((np.asarray(coefficients, np.float64) @ values, models[0][key].weights))
    return estimates(tables)
