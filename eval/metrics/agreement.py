"""From (truth, answer) pairs to F1, Matthews correlation, the per-class table and the confusion matrix, for a sample
and its resamples.

A pair's answer is None where none was found (unparsed). A row holds one pair, or one for each tag of a list. Figures
come from three counts for each class: how often it is the truth, the answer, and both. They are sums over rows, so
those of all resamples are one sparse product with `eval.metrics.intervals.sample_and_resamples`. The figures equal
scikit-learn's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fedfinlora.run.evaluation import ClassRow, ConfusionMatrix

if TYPE_CHECKING:
    from eval.metrics.intervals import Array

Pair = tuple[str, str | None]
"""(true class, answered class or None)."""

LARGEST_CLASSES = 20
"""Classes in the table of an open answer set."""


class ClassCounts(NamedTuple):
    """Counts for each class in each resample: (classes, resamples) float64 of whole numbers."""

    truths: Array
    answers: Array
    hits: Array


def class_counts(rows: Sequence[Sequence[Pair]], classes: Sequence[str | None], times: Array) -> ClassCounts:
    """Count `classes` in `rows`, of which each occurs times[:, row] often; `times` has shape (resamples, rows)."""
    import numpy as np
    from scipy.sparse import csr_array

    number_of = {name: number for number, name in enumerate(classes)}

    def count(picked: Sequence[tuple[int, str | None]]) -> Array:
        """(row, class) entries -> (classes, resamples). Classes that are not asked for are passed over."""
        entries = [(number_of[name], row) for row, name in picked if name in number_of]
        numbers, places = np.array(entries, dtype=np.int64).reshape(-1, 2).T
        shape = (len(classes), len(rows))
        return np.asarray(csr_array((np.ones(len(entries)), (numbers, places)), shape=shape) @ times.T)

    pairs = [(row, truth, answer) for row, members in enumerate(rows) for truth, answer in members]
    return ClassCounts(
        count([(row, truth) for row, truth, _ in pairs]),
        count([(row, answer) for row, _, answer in pairs]),
        count([(row, truth) for row, truth, answer in pairs if truth == answer]),
    )


def share_of(part: Array, whole: Array) -> Array:
    """part / whole, NaN where the whole is 0."""
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def macro_and_weighted_f1(counts: ClassCounts) -> tuple[Array, Array]:
    """(macro F1, weighted F1), (resamples,) each, over the classes that occur among the truths; NaN where there is no
    row.

    An answer that is None or no true class costs its true class recall and no class precision, and adds no class to the
    macro average. Weights are the rows of each true class.
    """
    import numpy as np

    f1 = np.nan_to_num(share_of(2 * counts.hits, counts.truths + counts.answers))
    macro = share_of(np.where(counts.truths > 0, f1, 0.0).sum(axis=0), (counts.truths > 0).sum(axis=0))
    return macro, share_of((counts.truths * f1).sum(axis=0), counts.truths.sum(axis=0))


def matthews(counts: ClassCounts) -> Array:
    """Matthews correlation over several classes (Gorodkin 2004, eq. 8), (resamples,); "unparsed" is one more possible
    answer.

    (c·s - Σ t·a) / sqrt((s² - Σ a²)(s² - Σ t²)) with c hits, s rows, t and a how often a class is the truth and the
    answer. `counts` has to hold every class that occurs, None included. NaN with one true class, where nothing can
    correlate; 0 if all answers are the same.
    """
    import numpy as np

    rows, hits = counts.truths.sum(axis=0), counts.hits.sum(axis=0)
    covariance = hits * rows - (counts.truths * counts.answers).sum(axis=0)
    spread_of_truths = rows**2 - (counts.truths**2).sum(axis=0)
    spread_of_answers = rows**2 - (counts.answers**2).sum(axis=0)
    correlation = np.nan_to_num(share_of(covariance, np.sqrt(spread_of_truths * spread_of_answers)))
    return np.where(spread_of_truths > 0, correlation, np.nan)


def all_classes(pairs: Iterable[Pair]) -> list[str | None]:
    """Every truth and answer that occurs, in a fixed order, None last."""
    found = {name for pair in pairs for name in pair}
    named: list[str | None] = [*sorted(name for name in found if name is not None)]
    return [*named, *([None] if None in found else [])]


def true_classes(pairs: Iterable[Pair]) -> list[str]:
    """Every truth that occurs, in a fixed order."""
    return sorted({truth for truth, _ in pairs})


def class_table(pairs: Sequence[Pair], labels: Sequence[str] = ()) -> tuple[ClassRow, ...]:
    """Precision, recall and F1 of each label, or without labels of the LARGEST_CLASSES most frequent true classes.

    `support` counts the rows of a class, `answered` the answers that name it. A figure whose denominator is 0 is None.
    """
    support, answered = Counter(truth for truth, _ in pairs), Counter(answer for _, answer in pairs)
    hits = Counter(truth for truth, answer in pairs if truth == answer)
    largest = sorted(support, key=lambda name: (-support[name], name))[:LARGEST_CLASSES]

    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    return tuple(
        ClassRow(
            label=label,
            support=support[label],
            answered=answered[label],
            precision=share(hits[label], answered[label]),
            recall=share(hits[label], support[label]),
            f1=share(2 * hits[label], support[label] + answered[label]),
        )
        for label in (labels or largest)
    )


def confusion_matrix(pairs: Iterable[Pair], labels: Sequence[str]) -> ConfusionMatrix:
    """counts[i][j]: rows whose truth is labels[i] and whose answer is answers[j].

    After the labels stand "other", for truths or answers outside the label set where there are any, and "unparsed".
    """
    counts: Counter[tuple[int, int]] = Counter()
    place_of = {label: place for place, label in enumerate(labels)}
    other, unparsed = len(labels), len(labels) + 1
    for truth, answer in pairs:
        counts[place_of.get(truth, other), unparsed if answer is None else place_of.get(answer, other)] += 1
    odd_truths = [other] if any(row == other for row, _ in counts) else []
    odd_answers = [other] if any(column == other for _, column in counts) else []
    rows, columns = [*range(len(labels)), *odd_truths], [*range(len(labels)), *odd_answers, unparsed]
    names = [*labels, "other", "unparsed"]
    return ConfusionMatrix(
        labels=tuple(names[row] for row in rows),
        answers=tuple(names[column] for column in columns),
        counts=tuple(tuple(counts[row, column] for column in columns) for row in rows),
    )
