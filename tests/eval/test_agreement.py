"""F1, correlation, per-class table and confusion matrix: by hand, and against scikit-learn, for a sample and for its
resamples.
"""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import f1_scores, matthews_correlation
from sklearn import metrics as sklearn_metrics

from eval.metrics.agreement import (
    LARGEST_CLASSES,
    all_classes,
    class_counts,
    class_table,
    confusion_matrix,
    macro_and_weighted_f1,
    matthews,
    true_classes,
)
from eval.metrics.intervals import sample_and_resamples
from fedfinlora.run.evaluation import ConfusionMatrix

UNPARSED = "\x00unparsed"
PAIRS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", "c", "d", None])), min_size=1, max_size=25
)


def reference(pairs) -> tuple[float, float, float | None]:
    """(macro F1, weighted F1, Matthews correlation) by scikit-learn."""
    truths = [truth for truth, _ in pairs]
    answers = [UNPARSED if answer is None else answer for _, answer in pairs]
    classes = sorted(set(truths))
    macro, weighted = (
        sklearn_metrics.f1_score(truths, answers, labels=classes, average=average, zero_division=0)
        for average in ("macro", "weighted")
    )
    return macro, weighted, sklearn_metrics.matthews_corrcoef(truths, answers) if len(classes) > 1 else None


@given(PAIRS)
def test_figures_of_a_sample_are_scikit_learns(pairs) -> None:
    truths, answers = zip(*pairs, strict=True)
    macro, weighted, correlation = reference(pairs)
    assert f1_scores(truths, answers) == pytest.approx((macro, weighted))
    assert matthews_correlation(truths, answers) == (
        None if correlation is None else pytest.approx(correlation, abs=1e-12)
    )


def test_figures_of_every_resample_are_scikit_learns() -> None:
    draw = random.Random(3)
    # A row is one pair or several, as for tag lists.
    rows = [
        tuple((draw.choice("abc"), draw.choice(["a", "b", "c", "d", None])) for _ in range(draw.randint(1, 4)))
        for _ in range(12)
    ]
    times = sample_and_resamples([1] * len(rows))[:60]
    pairs = [pair for row in rows for pair in row]
    macro, weighted = macro_and_weighted_f1(class_counts(rows, true_classes(pairs), times))
    correlation = matthews(class_counts(rows, all_classes(pairs), times))
    for resample, of_row in enumerate(times.astype(int)):
        drawn = [pair for row, count in zip(rows, of_row, strict=True) for pair in row * count]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = reference(drawn)
        assert (macro[resample], weighted[resample]) == pytest.approx(expected[:2])
        assert correlation[resample] == pytest.approx(
            np.nan if expected[2] is None else expected[2], nan_ok=True, abs=1e-12
        )


def test_figures_without_rows_do_not_exist() -> None:
    assert f1_scores([], []) == (None, None)
    assert matthews_correlation([], []) is None
    times = sample_and_resamples([])
    assert np.isnan(macro_and_weighted_f1(class_counts([], [], times))).all()
    assert np.isnan(matthews(class_counts([], [], times))).all()


@given(PAIRS)
def test_class_table_is_scikit_learns(pairs) -> None:
    table = class_table(pairs, "abcd")
    answers = [UNPARSED if answer is None else answer for _, answer in pairs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sklearn_metrics.precision_recall_fscore_support(
            [t for t, _ in pairs], answers, labels=list("abcd"), zero_division=0
        )
    for place, entry in enumerate(table):
        precision, recall, f1, support = (column[place] for column in expected)
        assert (entry.label, entry.support) == ("abcd"[place], support)
        assert entry.answered == sum(answer == entry.label for _, answer in pairs)
        assert (entry.precision or 0, entry.recall or 0, entry.f1 or 0) == pytest.approx((precision, recall, f1))
        assert (entry.precision is None, entry.recall is None) == (entry.answered == 0, support == 0)


def test_class_table_of_open_answers_holds_the_most_frequent() -> None:
    pairs = [(f"tag{number:02d}", None) for number in range(40) for _ in range(1 + number // 20)]
    table = class_table(pairs)
    assert len(table) == LARGEST_CLASSES
    assert [entry.label for entry in table] == [f"tag{number:02d}" for number in range(20, 40)]
    assert {entry.support for entry in table} == {2}


@given(PAIRS)
def test_confusion_matrix_is_scikit_learns(pairs) -> None:
    found = confusion_matrix(pairs, "abcd")
    answers = [UNPARSED if answer is None else answer for _, answer in pairs]
    expected = sklearn_metrics.confusion_matrix([t for t, _ in pairs], answers, labels=[*"abcd", UNPARSED])
    assert found.labels == tuple("abcd")
    assert found.answers == (*"abcd", "unparsed")
    assert [list(row) for row in found.counts] == expected[:4].tolist()


def test_confusion_matrix_keeps_what_is_no_label_apart() -> None:
    found = confusion_matrix([("a", "a"), ("a", "x"), ("y", "b"), ("y", None), ("b", None)], ["a", "b"])
    assert found == ConfusionMatrix(
        labels=("a", "b", "other"),
        answers=("a", "b", "other", "unparsed"),
        counts=((1, 0, 1, 0), (0, 0, 0, 1), (0, 1, 0, 1)),
    )
    assert confusion_matrix([], ["a"]) == ConfusionMatrix(("a",), ("a", "unparsed"), ((0, 0),))


def test_classes_are_in_a_fixed_order() -> None:
    assert all_classes([("b", None), ("a", "c")]) == ["a", "b", "c", None]
    assert true_classes([("b", None), ("a", "c")]) == ["a", "b"]
