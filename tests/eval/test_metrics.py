"""Metrics: values worked out by hand, laws, and the cases in which a figure does not exist."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import f1_scores, finlora_f1, matthews_correlation, metrics_of_records

from data.catalog import BENCHMARKS, PUBLISHED_COLUMNS, PUBLISHED_OVERALL, select
from data.rows import Row
from eval.metrics.averages import finlora_overall, group_means, headline_score
from eval.scoring.finlora import FinloraPiece
from eval.scoring.records import score_rows
from fedfinlora.errors import UserError
from fedfinlora.run.evaluation import (
    BenchmarkMetrics,
    ClassRow,
    ConfusionMatrix,
    Estimate,
    GroupMean,
    Overall,
    RowRecord,
)
from fedfinlora.run.typed import from_json, to_json


def pieces(*triples: tuple[str, str, bool]) -> list[FinloraPiece]:
    return [FinloraPiece(target, output, correct, ambiguous=False) for target, output, correct in triples]


# --- F1 and correlation ---------------------------------------------------------------------------


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


# --- FinLoRA's F1 ---------------------------------------------------------------------------------


def test_finlora_f1_by_hand() -> None:
    # positive: 1 of 2 found, precision 1, F1 2/3, weight 2; negative: F1 1, weight 1. The wrong text is a class without
    # rows.
    judged = pieces(("positive", "Positive!", True), ("positive", "who knows", False), ("negative", "negative", True))
    assert finlora_f1(judged) == pytest.approx((2 * 2 / 3 + 1) / 3)


def test_a_wrong_output_that_spells_a_label_costs_finlora_precision() -> None:
    judged = pieces(("positive", "negative", False), ("negative", "negative", True))
    assert finlora_f1(judged) == pytest.approx((0 + 2 / 3) / 2)
    assert finlora_f1([]) is None


def test_finlora_f1_flatters_as_published() -> None:
    # FPB, LoRA: accuracy 85.64 and F1 .922 were published; wrong texts that are no row's label give 2·acc / (1 + acc) =
    # .9227.
    n, right = 10_000, 8_564
    judged = pieces(*[("positive", "", True)] * right, *[("positive", f"text {i}", False) for i in range(n - right)])
    assert finlora_f1(judged) == pytest.approx(2 * 0.8564 / 1.8564)
    assert finlora_f1(judged) == pytest.approx(BENCHMARKS["fpb"].published["lora_r8_8bit"].f1, abs=0.001)
    assert finlora_f1(judged) > 0.8564


# --- summaries ------------------------------------------------------------------------------------


def rows_of(key: str, targets: list[str]) -> list[Row]:
    return [Row(f"{key}/test/{i:06d}", key, "Answer:", target) for i, target in enumerate(targets)]


def test_summary_by_hand() -> None:
    rows = rows_of("fpb", ["positive", "positive", "negative", "neutral"])
    _, metrics = score_rows(BENCHMARKS["fpb"], rows, ["positive", "negative", "it is negative", "hm"])
    assert metrics.n == 4
    assert (metrics.unparsed, metrics.value("unparsed_share")) == (1, 0.25)
    assert metrics.value("accuracy") == metrics.value("finlora_accuracy") == 0.5
    assert metrics.bounds("accuracy") == pytest.approx([0.15, 0.85], abs=1e-4)
    # positive 2/3 (2 rows), negative 2/3 (1), neutral 0 (1)
    assert metrics.value("f1_macro") == pytest.approx(4 / 9)
    assert metrics.value("f1_weighted") == pytest.approx(1 / 2)
    assert metrics.finlora_ambiguous == 0
    # FinLoRA: negative has precision 1/2 because one wrong output spells it.
    assert metrics.value("finlora_f1") == pytest.approx(1 / 2)
    assert 0 < metrics.value("matthews") < 1
    assert metrics.classes[2] == ClassRow(
        "positive", support=2, answered=1, precision=1.0, recall=0.5, f1=pytest.approx(2 / 3)
    )
    assert metrics.confusion == ConfusionMatrix(
        labels=("negative", "neutral", "positive"),
        answers=("negative", "neutral", "positive", "unparsed"),
        counts=((1, 0, 0, 0), (0, 0, 0, 1), (1, 0, 1, 0)),
    )


FIGURES = {
    "unparsed_share", "accuracy", "f1_macro", "f1_weighted", "matthews", "finlora_accuracy", "finlora_f1",
    "accuracy_exact",
    "row_accuracy", "value_accuracy", "bertscore_precision", "bertscore_recall", "bertscore_f1", "labels_accuracy",
    "labels_f1_macro", "labels_f1_weighted", "labels_matthews",
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "of_its_own"),
    [
        ("fpb", {"matthews", "classes", "confusion"}),
        ("nwgi", {"matthews", "classes", "confusion"}),
        ("cfa_level1", {"matthews", "classes", "confusion"}),
        ("xbrl_finer", {"row_accuracy", "rows", "classes"}),
        ("xbrl_tags_extract", set()),
        ("formula", {"accuracy_exact", "relative_tolerance"}),
        ("xbrl_formula_extract", set()),
        ("xbrl_formula_calc_extract", {"value_accuracy", "relative_tolerance"}),
    ],
)
def test_every_figure_has_its_interval_and_every_benchmark_its_figures(key, of_its_own) -> None:
    targets = {"fpb": "positive", "nwgi": "strong positive", "cfa_level1": "B", "xbrl_finer": "AbcDef,Revenues"}
    wanted = [targets.get(key, "7"), "2 / 3", "negative"]
    _, metrics = score_rows(BENCHMARKS[key], rows_of(key, wanted), [wanted[0], "x", "negative"])
    figures = set(metrics.estimates)
    assert figures <= FIGURES
    common = {"unparsed_share", "accuracy", "f1_macro", "f1_weighted", "finlora_accuracy", "finlora_f1"}
    assert set(to_json(metrics)) == {
        "n",
        "unparsed",
        "finlora_ambiguous",
        *common,
        *of_its_own,
        *(f"{name}_ci95" for name in figures),
    }
    for name in figures:
        low, high = metrics.bounds(name)
        assert low <= metrics.value(name) <= high
        assert -1 <= low <= high <= 1
    json.dumps(to_json(metrics), allow_nan=False)


def test_nwgi_is_counted_in_three_classes() -> None:
    rows = rows_of("nwgi", ["strong positive", "mildly positive", "neutral", "moderately negative"])
    _, metrics = score_rows(BENCHMARKS["nwgi"], rows, ["mildly positive", "negative", "neutral", "strong negative"])
    assert metrics.confusion.labels == ("negative", "neutral", "positive")
    assert metrics.confusion.counts == ((1, 0, 0, 0), (0, 1, 0, 0), (1, 0, 1, 0))
    assert metrics.value("accuracy") == metrics.value("finlora_accuracy") == 0.75


def test_formula_calculation_is_also_judged_by_value() -> None:
    targets = ["(7 - 2) / 4", "(7 - 2) / 4", "1 / 3", "1 / 3", "5 / 0"]
    outputs = ["(7-2)/4", "5 / 4", "0.33333", "0.334", "5 / 0"]
    records, metrics = score_rows(
        BENCHMARKS["xbrl_formula_calc_extract"], rows_of("xbrl_formula_calc_extract", targets), outputs
    )
    assert [record.correct for record in records] == [True, False, False, False, True]
    assert [record.value_correct for record in records] == [True, True, True, False, True]
    assert (metrics.value("accuracy"), metrics.value("value_accuracy"), metrics.relative_tolerance) == (0.4, 0.8, 1e-4)
    assert metrics.bounds("value_accuracy") == pytest.approx([0.3755, 0.9638], abs=1e-4)
    assert "value_correct" not in to_json(score_rows(BENCHMARKS["formula"], rows_of("formula", ["1"]), ["1"])[0][0])


def test_per_tag_interval_knows_that_the_tags_of_a_row_are_not_independent() -> None:
    """Four equal verdicts a row tell as much as one: the interval is twice as wide as for 400 tags, as wide as for 100
    rows.
    """
    targets = ["AbcDef,Revenues,GoodWill,NetLoss"] * 100
    outputs = [target if place % 2 else "" for place, target in enumerate(targets)]
    _, metrics = score_rows(BENCHMARKS["xbrl_finer"], rows_of("xbrl_finer", targets), outputs)
    assert (metrics.n, metrics.rows, metrics.value("accuracy"), metrics.value("row_accuracy")) == (400, 100, 0.5, 0.5)
    for name in ("accuracy", "finlora_accuracy", "unparsed_share"):
        low, high = metrics.bounds(name)
        assert high - low == pytest.approx(2 * 1.96 * 0.05, rel=0.1), name  # sqrt(0.5 · 0.5 / 100) = 0.05


def test_no_tag_right_has_an_interval_all_the_same() -> None:
    _, metrics = score_rows(
        BENCHMARKS["xbrl_finer"], rows_of("xbrl_finer", ["AbcDef,Revenues"] * 10), ["Goodwill,NetLoss"] * 10
    )
    assert metrics.value("accuracy") == 0
    assert metrics.bounds("accuracy") == pytest.approx([0, 0.2775], abs=1e-4)  # Wilson's for 0 of 10 rows


def test_classes_of_tags_are_the_most_frequent_true_ones() -> None:
    rows = rows_of("xbrl_finer", ["AbcDef,Revenues", "AbcDef,NetLoss"])
    _, metrics = score_rows(BENCHMARKS["xbrl_finer"], rows, ["AbcDef,NetLoss", "AbcDef,NetLoss"])
    assert [(entry.label, entry.support, entry.answered) for entry in metrics.classes] == [
        ("abcdef", 2, 2), ("netloss", 1, 2), ("revenues", 1, 0),
    ]  # fmt: skip


def test_bootstrap_of_weighted_f1_has_the_width_of_independent_samples() -> None:
    draw = random.Random(0)
    labels = ["negative", "neutral", "positive"]

    def sample() -> BenchmarkMetrics:
        targets = draw.choices(labels, k=200)
        outputs = [target if draw.random() < 0.7 else draw.choice([*labels, "?"]) for target in targets]
        return score_rows(BENCHMARKS["fpb"], rows_of("fpb", targets), outputs)[1]

    samples = [sample() for _ in range(60)]
    for name in ("f1_macro", "f1_weighted", "matthews", "finlora_f1"):
        values = [metrics.value(name) for metrics in samples]
        mean = sum(values) / len(values)
        spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
        low, high = (sum(metrics.bounds(name)[end] for metrics in samples) / len(samples) for end in (0, 1))
        assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.25), name
        covered = sum(metrics.bounds(name)[0] <= mean <= metrics.bounds(name)[1] for metrics in samples)
        assert covered >= 52, name  # 57 of 60 expected


def test_metrics_of_1200_rows_take_no_time() -> None:
    draw = random.Random(0)
    tags = ["".join(draw.choices("ABCDEFGHIJKLM", k=3)).title() + "Tag" for _ in range(150)]
    targets = [",".join(draw.choices(tags, k=4)) for _ in range(1200)]
    outputs = [target if draw.random() < 0.5 else ",".join(draw.choices(tags, k=4)) for target in targets]
    records, _ = score_rows(BENCHMARKS["xbrl_finer"], rows_of("xbrl_finer", targets[:9]), outputs[:9])  # imports
    started = time.process_time()
    records, _ = score_rows(BENCHMARKS["xbrl_finer"], rows_of("xbrl_finer", targets), outputs)
    assert len(records) == 1200
    assert time.process_time() - started < 2


# --- label log-probabilities ----------------------------------------------------------------------


def with_choices(records: list[RowRecord], choices: list[str | None]) -> list[RowRecord]:
    return [
        replace(record, label_choice=choice, label_logprobs={}) for record, choice in zip(records, choices, strict=True)
    ]


def test_labels_alone_leave_the_generated_figures_out() -> None:
    targets = ["positive", "positive", "negative", "neutral"]
    records, nothing = score_rows(BENCHMARKS["fpb"], rows_of("fpb", targets), [None] * 4)
    assert to_json(nothing) == {"n": 4}
    assert [
        to_json(records[0])[name] for name in ("output", "parsed", "correct", "finlora_correct", "finlora_ambiguous")
    ] == [None] * 5
    metrics = metrics_of_records(
        BENCHMARKS["fpb"], with_choices(records, ["positive", "negative", "negative", "neutral"])
    )
    names = ("accuracy", "f1_macro", "f1_weighted", "matthews")
    assert set(to_json(metrics)) == {"n", *(f"labels_{name}{end}" for name in names for end in ("", "_ci95"))}
    assert (metrics.n, metrics.value("labels_accuracy")) == (4, 0.75)
    assert metrics.value("labels_f1_macro") == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert headline_score(metrics) is headline_score(metrics, "strict") is None
    assert group_means({"fpb": metrics})["general"].score is None
    assert "fpb" in finlora_overall({"fpb": metrics}).missing


def test_labels_and_generated_answers_stand_side_by_side() -> None:
    targets = ["strong positive", "mildly negative"]
    records, generated = score_rows(BENCHMARKS["nwgi"], rows_of("nwgi", targets), ["positive", "x"])
    both = metrics_of_records(BENCHMARKS["nwgi"], with_choices(records, ["neutral", "negative"]))
    assert {name: value for name, value in to_json(both).items() if not name.startswith("labels_")} == to_json(
        generated
    )
    assert (both.value("accuracy"), both.value("labels_accuracy")) == (0.5, 0.5)
    assert headline_score(both) == 0.5


def test_a_target_outside_the_label_set_is_a_wrong_answer() -> None:
    records, _ = score_rows(
        BENCHMARKS["fpb"], rows_of("fpb", ["mixed", "positive", "neutral"]), ["mixed?", "positive", "?"]
    )
    metrics = metrics_of_records(BENCHMARKS["fpb"], with_choices(records, ["positive", "positive", None]))
    assert metrics.value("labels_accuracy") == pytest.approx(1 / 3)
    assert metrics.confusion.labels == ("negative", "neutral", "positive", "other")
    assert metrics.unparsed == 2  # "mixed?" is no label and not the target; "?" is nothing


def test_empty_label_columns_are_no_choices() -> None:
    records, metrics = score_rows(BENCHMARKS["fpb"], rows_of("fpb", ["positive"]), ["positive"])
    assert metrics_of_records(BENCHMARKS["fpb"], with_choices(records, [None])) == metrics


def test_a_row_without_answer_among_others_counts_as_unparsed() -> None:
    records, metrics = score_rows(BENCHMARKS["fpb"], rows_of("fpb", ["positive", "negative"]), ["positive", None])
    assert records[1].output is None
    assert (metrics.n, metrics.value("accuracy"), metrics.value("unparsed_share")) == (2, 0.5, 0.5)


@pytest.mark.parametrize("key", BENCHMARKS)
def test_nothing_generated_gives_no_figures_anywhere(key) -> None:
    records, metrics = score_rows(BENCHMARKS[key], rows_of(key, ["positive", "1"]), [None, None])
    assert not metrics.estimates
    assert all(record.output is record.parsed is record.correct is None for record in records)
    assert headline_score(metrics) is None


# --- what must not break --------------------------------------------------------------------------

ODD_TEXTS = [
    "", " ", " \n ", ",", ",,", "a,b", "1,234.5", "(", "İstanbul", "ſ", "naïve 日本", "\u2028", "🙂", "us-gaap:", "Yes",
    "positive",
    "1/0", "A", "AbcDef", "AbcDef,5.0,",
]  # fmt: skip


@pytest.mark.parametrize("key", [key for key, benchmark in BENCHMARKS.items() if benchmark.scorer != "bertscore"])
def test_odd_targets_and_outputs_break_nothing(key) -> None:
    pairs = [(target, output) for target in ODD_TEXTS for output in ODD_TEXTS]
    records, metrics = score_rows(BENCHMARKS[key], rows_of(key, [t for t, _ in pairs]), [o for _, o in pairs])
    json.dumps([*map(to_json, records), to_json(metrics)], allow_nan=False)
    assert metrics.n >= len(pairs)
    for target, output in pairs[:: len(ODD_TEXTS)]:
        one = score_rows(BENCHMARKS[key], rows_of(key, [target]), [output])[1]
        assert one.n >= 1
        json.dumps(to_json(one), allow_nan=False)


def test_a_label_that_begins_another_is_distinguished() -> None:
    benchmark = replace(BENCHMARKS["fpb"], labels=("neutral", "neutral to positive", "positive"))
    rows = rows_of("fpb", ["neutral", "neutral to positive", "positive", "neutral"])
    _, metrics = score_rows(benchmark, rows, ["neutral", "neutral to positive.", "positive", "Neutral to Positive"])
    assert metrics.value("accuracy") == 0.75
    assert metrics.confusion.counts == ((1, 1, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0))
    assert (metrics.value("finlora_accuracy"), metrics.finlora_ambiguous) == (0.75, 2)


def test_number_summary_has_both_accuracies_and_no_correlation() -> None:
    _, metrics = score_rows(
        BENCHMARKS["formula"], rows_of("formula", ["10000.0", "2.5", "3.0"]), ["10000.5", "2.50", "x"]
    )
    assert metrics.value("accuracy") == pytest.approx(2 / 3)
    assert metrics.value("accuracy_exact") == pytest.approx(1 / 3)
    assert metrics.value("finlora_accuracy") == pytest.approx(1 / 3)
    assert metrics.unparsed == 1
    assert metrics.value("f1_macro") == pytest.approx(2 / 3)
    assert "matthews" not in metrics.estimates


@pytest.mark.parametrize("key", BENCHMARKS)
def test_no_rows_give_nulls(key) -> None:
    records, metrics = score_rows(BENCHMARKS[key], [], [])
    assert records == []
    assert all(estimate == Estimate(None) for estimate in metrics.estimates.values()), metrics
    assert not any((metrics.n, metrics.unparsed, metrics.finlora_ambiguous, metrics.rows))
    assert all(entry.support == 0 for entry in metrics.classes or ())
    assert metrics.confusion is None or not any(map(any, metrics.confusion.counts))


def test_one_class_one_row_and_all_unparsed() -> None:
    _, one = score_rows(BENCHMARKS["headline"], rows_of("headline", ["Yes"]), ["Yes"])
    assert [one.value(name) for name in ("accuracy", "f1_macro", "finlora_f1", "matthews")] == [1, 1, 1, None]
    _, silent = score_rows(BENCHMARKS["headline"], rows_of("headline", ["Yes", "No"]), ["", " "])
    assert [silent.value(name) for name in ("accuracy", "f1_macro", "unparsed_share", "matthews")] == [0, 0, 1, 0]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["nwgi", "xbrl_finer", "formula", "xbrl_tags_extract"]),
    st.lists(
        st.tuples(
            st.sampled_from(["positive", "5.0", "AbcDef,Revenues"]), st.sampled_from(["positive", "15.0", "AbcDef", ""])
        ),
        min_size=1,
        max_size=8,
    ),
    st.randoms(use_true_random=False),
)
def test_permuting_rows_changes_nothing(key, pairs, shuffler) -> None:
    def metrics_of(pairs):
        return score_rows(
            BENCHMARKS[key], rows_of(key, [target for target, _ in pairs]), [output for _, output in pairs]
        )[1]

    shuffled = list(pairs)
    shuffler.shuffle(shuffled)
    assert metrics_of(shuffled) == metrics_of(pairs)


def test_records_read_back_from_json_give_the_same_metrics() -> None:
    draw = random.Random(1)
    for key in ("fpb", "xbrl_finer", "formula", "xbrl_formula_extract"):
        rows = rows_of(key, draw.choices(["positive", "5.0", "AbcDef,Revenues", "us-gaap:A / us-gaap:B"], k=9))
        records, metrics = score_rows(BENCHMARKS[key], rows, draw.sample([row.target for row in rows], k=9))
        again = [from_json(RowRecord, json.loads(json.dumps(to_json(record))), key) for record in records]
        assert metrics_of_records(BENCHMARKS[key], again) == metrics
        assert from_json(BenchmarkMetrics, json.loads(json.dumps(to_json(metrics))), key) == metrics


# --- BERTScore and averages -----------------------------------------------------------------------


def bert_record(f1: float, model: str = "ProsusAI/finbert", parsed: str | None = "text") -> RowRecord:
    scores = {f"bertscore_{part}": f1 for part in ("precision", "recall", "f1")}
    return RowRecord("", "", "", "text", parsed, **scores, bertscore_model=model, bertscore_layer=10)


def test_bertscore_summary_counts_empty_answers_as_zero() -> None:
    metrics = metrics_of_records(BENCHMARKS["xbrl_term"], [bert_record(0.6), bert_record(0.0, parsed=None)])
    assert (metrics.n, metrics.unparsed, metrics.value("bertscore_f1")) == (2, 1, pytest.approx(0.3))
    assert (metrics.bertscore_model, metrics.bertscore_layer) == ("ProsusAI/finbert", 10)
    low, high = metrics.bounds("bertscore_f1")
    assert 0 <= low < 0.3 < high <= 1


def test_bertscores_of_two_encoders_are_not_averaged() -> None:
    with pytest.raises(UserError, match="different encoders"):
        metrics_of_records(BENCHMARKS["xbrl_term"], [bert_record(0.6), bert_record(0.6, model="other")])


def estimated(model: str | None = None, **values: Estimate | float | None) -> BenchmarkMetrics:
    estimates = {name: value if isinstance(value, Estimate) else Estimate(value) for name, value in values.items()}
    return BenchmarkMetrics(estimates=estimates, bertscore_model=model)


def published_as_metrics(column: str) -> dict[str, BenchmarkMetrics]:
    return {
        key: estimated("ProsusAI/finbert", bertscore_f1=cell.f1)
        if cell.accuracy is None
        else estimated(accuracy=cell.accuracy / 200, finlora_accuracy=cell.accuracy / 100)
        for key, cell in ((key, benchmark.published[column]) for key, benchmark in BENCHMARKS.items())
    }


@pytest.mark.parametrize("column", [column for column in PUBLISHED_COLUMNS if column != "best_other"])
def test_overall_average_reproduces_the_published_one(column) -> None:
    overall = finlora_overall(published_as_metrics(column))
    assert overall.value == pytest.approx(PUBLISHED_OVERALL[column], abs=0.006)
    assert (overall.missing, overall.comparable, overall.unit) == ((), True, "percent")


def test_overall_average_names_what_is_missing() -> None:
    scores = published_as_metrics("base")
    del scores["cfa_level1"]
    scores["ner"] = estimated(accuracy=None, finlora_accuracy=None)
    overall = finlora_overall(scores)
    assert overall.missing == ("ner", "cfa_level1")
    assert overall.comparable is False
    assert finlora_overall({}) == Overall(
        None, None, "percent", tuple(benchmark.key for benchmark in select(["all"])), comparable=False
    )


def test_overall_average_has_an_interval() -> None:
    scores = {
        "fpb": estimated(finlora_accuracy=Estimate(0.5, 0.4, 0.6)),
        "ner": estimated(finlora_accuracy=Estimate(0.7, 0.5, 0.9)),
    }
    overall = finlora_overall(scores)
    assert overall.value == pytest.approx(60)
    assert overall.value_ci95 == pytest.approx([60 - 50 * 0.05**0.5, 60 + 50 * 0.05**0.5])


def test_overall_average_with_another_encoder_is_not_comparable() -> None:
    scores = published_as_metrics("base")
    scores["xbrl_term"] = estimated("all-MiniLM-L6-v2 (embedded)", bertscore_f1=0.5)
    assert finlora_overall(scores).comparable is False


def test_group_means() -> None:
    scores = {
        "xbrl_finer": estimated(accuracy=Estimate(0.5, 0.4, 0.6), finlora_accuracy=0.3),
        "xbrl_term": estimated(bertscore_f1=Estimate(0.7, 0.6, 0.8)),
    }
    means = group_means(scores)
    assert means["reporting"] == GroupMean(
        score=pytest.approx(0.6),
        score_ci95=pytest.approx((0.6 - 0.02**0.5 / 2, 0.6 + 0.02**0.5 / 2)),
        finlora_score=pytest.approx(0.5),
        finlora_score_ci95=None,
        benchmarks=("xbrl_finer", "xbrl_term"),
        missing=("xbrl_fnxl",),
    )
    assert means["general"].score is None
    assert headline_score(BenchmarkMetrics()) is None
