"""Metrics: values worked out by hand, laws, and the cases in which a figure does not exist."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.catalog import BENCHMARKS, PUBLISHED_COLUMNS, PUBLISHED_OVERALL
from data.rows import Row
from eval.metrics import (
    f1_scores,
    finlora_f1,
    finlora_overall,
    group_means,
    headline_score,
    matthews_correlation,
    summarise,
    summarise_all,
    wilson_interval,
)
from eval.records import score_rows
from eval.scoring import FinloraPiece
from fedfinlora.errors import UserError


def pieces(*triples: tuple[str, str, bool]) -> list[FinloraPiece]:
    return [FinloraPiece(target, output, correct, ambiguous=False) for target, output, correct in triples]


# --- intervals ----------------------------------------------------------------------------------------------------------------


def test_wilson_interval_by_hand() -> None:
    # p = 0.5, n = 4, z² = 3.8415: centre 0.5, half = z / (1 + z²/4) · sqrt(1/16 + z²/64) = 0.3500
    assert wilson_interval(2, 4) == pytest.approx((0.1500, 0.8500), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson_interval(0, 0) is None
    with pytest.raises(ValueError):
        wilson_interval(3, 2)


@given(st.integers(1, 10**7).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_lies_in_0_1_and_contains_the_share(case) -> None:
    hits, n = case
    low, high = wilson_interval(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    mirrored = wilson_interval(n - hits, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)


@given(st.integers(1, 500), st.integers(2, 20))
def test_wilson_interval_narrows_with_more_rows(n, times) -> None:
    def width(interval):
        return interval[1] - interval[0]

    assert width(wilson_interval(n // 2 * times, n * times)) < width(wilson_interval(n // 2, n))


# --- F1 and correlation -------------------------------------------------------------------------------------------------------


def test_unparsed_costs_recall_and_is_no_class() -> None:
    # a: precision 1, recall 1/2, F1 2/3; b: precision 1/1, recall 1, F1 1.
    assert f1_scores(["a", "a", "b"], ["a", None, "b"]) == pytest.approx(((2 / 3 + 1) / 2, (2 * 2 / 3 + 1) / 3))
    # An answer outside the true classes is the same as none.
    assert f1_scores(["a", "a", "b"], ["a", "c", "b"]) == f1_scores(["a", "a", "b"], ["a", None, "b"])


def test_a_wrong_class_costs_precision_too() -> None:
    # a: precision 1, recall 1/2, F1 2/3; b: precision 1/2, recall 1, F1 2/3.
    assert f1_scores(["a", "a", "b"], ["a", "b", "b"]) == pytest.approx((2 / 3, 2 / 3))


def test_f1_of_nothing_and_of_one_class() -> None:
    assert f1_scores([], []) == (None, None)
    assert f1_scores(["a", "a"], ["a", "a"]) == (1.0, 1.0)
    assert f1_scores(["a", "a"], [None, None]) == (0.0, 0.0)


def test_matthews_correlation_by_hand() -> None:
    # TP 2, TN 1, FP 1, FN 0: (2·1 - 1·0) / sqrt(3·2·2·1)
    assert matthews_correlation(list("aabb"), list("aaba")) == pytest.approx(2 / 12**0.5)
    assert matthews_correlation(["a", "b"], ["a", "b"]) == pytest.approx(1.0)
    assert matthews_correlation(["a", "b"], ["b", "a"]) == pytest.approx(-1.0)


def test_matthews_correlation_where_it_does_not_exist() -> None:
    assert matthews_correlation([], []) is None
    assert matthews_correlation(["a", "a"], ["a", "b"]) is None
    assert matthews_correlation(["a", "b"], ["a", "a"]) == 0
    assert matthews_correlation(["a", "b"], [None, None]) == 0


# --- FinLoRA's F1 -------------------------------------------------------------------------------------------------------------


def test_finlora_f1_by_hand() -> None:
    # positive: 1 of 2 found, precision 1, F1 2/3, weight 2; negative: F1 1, weight 1. The wrong text is a class without rows.
    judged = pieces(("positive", "Positive!", True), ("positive", "who knows", False), ("negative", "negative", True))
    assert finlora_f1(judged) == pytest.approx((2 * 2 / 3 + 1) / 3)


def test_a_wrong_output_that_spells_a_label_costs_finlora_precision() -> None:
    judged = pieces(("positive", "negative", False), ("negative", "negative", True))
    assert finlora_f1(judged) == pytest.approx((0 + 2 / 3) / 2)
    assert finlora_f1([]) is None


def test_finlora_f1_flatters_as_published() -> None:
    # FPB, LoRA: accuracy 85.64 and F1 .922 were published; wrong texts that are nobody's label give 2·acc / (1 + acc) = .9227.
    n, right = 10_000, 8_564
    judged = pieces(*[("positive", "", True)] * right, *[("positive", f"text {i}", False) for i in range(n - right)])
    assert finlora_f1(judged) == pytest.approx(2 * 0.8564 / 1.8564)
    assert finlora_f1(judged) == pytest.approx(BENCHMARKS["fpb"].published["lora_r8_8bit"].f1, abs=0.001)
    assert finlora_f1(judged) > 0.8564


# --- summaries ----------------------------------------------------------------------------------------------------------------


def rows_of(key: str, targets: list[str]) -> list[Row]:
    return [Row(f"{key}/test/{i:06d}", key, "Answer:", target) for i, target in enumerate(targets)]


def test_summary_by_hand() -> None:
    rows = rows_of("fpb", ["positive", "positive", "negative", "neutral"])
    _, metrics = score_rows(BENCHMARKS["fpb"], rows, ["positive", "negative", "it is negative", "hm"])
    assert metrics["n"] == 4
    assert (metrics["unparsed"], metrics["unparsed_share"]) == (1, 0.25)
    assert metrics["accuracy"] == metrics["finlora_accuracy"] == 0.5
    assert metrics["accuracy_ci95"] == pytest.approx([0.15, 0.85], abs=1e-4)
    # positive 2/3 (2 rows), negative 2/3 (1), neutral 0 (1)
    assert metrics["f1_macro"] == pytest.approx(4 / 9)
    assert metrics["f1_weighted"] == pytest.approx(1 / 2)
    assert metrics["finlora_ambiguous"] == 0
    # FinLoRA: negative has precision 1/2 because one wrong output spells it.
    assert metrics["finlora_f1"] == pytest.approx(1 / 2)
    assert 0 < metrics["matthews"] < 1


def test_number_summary_has_both_accuracies_and_no_correlation() -> None:
    _, metrics = score_rows(BENCHMARKS["formula"], rows_of("formula", ["10000.0", "2.5", "3.0"]), ["10000.5", "2.50", "x"])
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["accuracy_exact"] == pytest.approx(1 / 3)
    assert metrics["finlora_accuracy"] == pytest.approx(1 / 3)
    assert metrics["unparsed"] == 1
    assert metrics["f1_macro"] == pytest.approx(2 / 3)
    assert "matthews" not in metrics


@pytest.mark.parametrize("key", BENCHMARKS)
def test_no_rows_give_nulls(key) -> None:
    records, metrics = score_rows(BENCHMARKS[key], [], [])
    assert records == []
    counts = {"n", "unparsed", "finlora_ambiguous", "rows"}
    assert all(value == 0 if name in counts else value is None for name, value in metrics.items()), metrics


def test_one_class_one_row_and_all_unparsed() -> None:
    _, one = score_rows(BENCHMARKS["headline"], rows_of("headline", ["Yes"]), ["Yes"])
    assert (one["accuracy"], one["f1_macro"], one["finlora_f1"], one["matthews"]) == (1, 1, 1, None)
    _, silent = score_rows(BENCHMARKS["headline"], rows_of("headline", ["Yes", "No"]), ["", " "])
    assert (silent["accuracy"], silent["f1_macro"], silent["unparsed_share"], silent["matthews"]) == (0, 0, 1, 0)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["nwgi", "xbrl_finer", "formula", "xbrl_tags_extract"]),
    st.lists(
        st.tuples(st.sampled_from(["positive", "5.0", "AbcDef,Revenues"]), st.sampled_from(["positive", "15.0", "AbcDef", ""])),
        min_size=1,
        max_size=8,
    ),
    st.randoms(use_true_random=False),
)
def test_permuting_rows_changes_nothing(key, pairs, shuffler) -> None:
    def metrics_of(pairs):
        return score_rows(BENCHMARKS[key], rows_of(key, [target for target, _ in pairs]), [output for _, output in pairs])[1]

    shuffled = list(pairs)
    shuffler.shuffle(shuffled)
    assert metrics_of(shuffled) == metrics_of(pairs)


def test_records_read_back_from_json_give_the_same_metrics() -> None:
    draw = random.Random(1)
    for key in ("fpb", "xbrl_finer", "formula", "xbrl_formula_extract"):
        rows = rows_of(key, draw.choices(["positive", "5.0", "AbcDef,Revenues", "us-gaap:A / us-gaap:B"], k=9))
        records, metrics = score_rows(BENCHMARKS[key], rows, draw.sample([row.target for row in rows], k=9))
        assert summarise(BENCHMARKS[key], json.loads(json.dumps(records))) == metrics


# --- BERTScore and averages ---------------------------------------------------------------------------------------------------


def bert_record(f1: float, model: str = "ProsusAI/finbert", parsed: str | None = "text") -> dict[str, object]:
    return {
        "parsed": parsed,
        "bertscore_precision": f1,
        "bertscore_recall": f1,
        "bertscore_f1": f1,
        "bertscore_model": model,
        "bertscore_layer": 10,
    }


def test_bertscore_summary_counts_empty_answers_as_zero() -> None:
    metrics = summarise(BENCHMARKS["xbrl_term"], [bert_record(0.6), bert_record(0.0, parsed=None)])
    assert (metrics["n"], metrics["unparsed"], metrics["bertscore_f1"]) == (2, 1, pytest.approx(0.3))
    assert (metrics["bertscore_model"], metrics["bertscore_layer"]) == ("ProsusAI/finbert", 10)


def test_bertscores_of_two_encoders_are_not_averaged() -> None:
    with pytest.raises(UserError, match="different encoders"):
        summarise(BENCHMARKS["xbrl_term"], [bert_record(0.6), bert_record(0.6, model="other")])


def published_as_metrics(column: str) -> dict[str, dict[str, object]]:
    return {
        key: {"bertscore_f1": cell.f1, "bertscore_model": "ProsusAI/finbert"}
        if cell.accuracy is None
        else {"accuracy": cell.accuracy / 200, "finlora_accuracy": cell.accuracy / 100}
        for key, cell in ((key, benchmark.published[column]) for key, benchmark in BENCHMARKS.items())
    }


@pytest.mark.parametrize("column", [column for column in PUBLISHED_COLUMNS if column != "best_other"])
def test_overall_average_reproduces_the_published_one(column) -> None:
    overall = finlora_overall(published_as_metrics(column))
    assert overall["value"] == pytest.approx(PUBLISHED_OVERALL[column], abs=0.006)
    assert (overall["missing"], overall["comparable"], overall["unit"]) == ([], True, "percent")


def test_overall_average_names_what_is_missing() -> None:
    scores = published_as_metrics("base")
    del scores["cfa_level1"]
    scores["ner"] = {"n": 0, "accuracy": None, "finlora_accuracy": None}
    overall = finlora_overall(scores)
    assert overall["missing"] == ["ner", "cfa_level1"]
    assert overall["comparable"] is False
    assert finlora_overall({}) == {"value": None, "unit": "percent", "missing": list(BENCHMARKS), "comparable": False}


def test_overall_average_with_another_encoder_is_not_comparable() -> None:
    scores = published_as_metrics("base")
    scores["xbrl_term"] = {"bertscore_f1": 0.5, "bertscore_model": "all-MiniLM-L6-v2 (embedded)"}
    assert finlora_overall(scores)["comparable"] is False


def test_group_means() -> None:
    scores = {"xbrl_finer": {"accuracy": 0.5, "finlora_accuracy": 0.3}, "xbrl_term": {"bertscore_f1": 0.7}}
    means = group_means(scores)
    assert means["reporting"] == {
        "score": pytest.approx(0.6),
        "finlora_score": pytest.approx(0.5),
        "benchmarks": ["xbrl_finer", "xbrl_term"],
        "missing": ["xbrl_fnxl"],
    }
    assert means["general"]["score"] is None
    assert headline_score({}) is None
    assert summarise_all(scores) == {"groups": means, "finlora_overall": finlora_overall(scores)}
