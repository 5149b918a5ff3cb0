"""Judging FLARE's answers: against seqeval and scikit-learn where they have the figure, by hand where not."""

from __future__ import annotations

import json
from random import Random

import pytest
from scored import metrics_of_records, score_row

from benchmarks.flare_published import FLARE_MODELS, FLARE_PUBLISHED
from data.catalog import BENCHMARKS, select
from data.rows import Row
from data.sources.flare import reference_of
from eval.metrics.averages import finlora_overall, group_means, headline_score
from eval.scoring.flare_answers import entity_tags
from eval.scoring.records import score_rows
from fedfinlora.run.evaluation import RowRecord
from fedfinlora.run.typed import from_json, to_json

SENTENCE = "Ann Lee of Bank of Alba , Alba , wrote to Ben Ray and Ann Lee of Graz ."
WORDS = SENTENCE.split()
NAMES = ("Ann Lee, PER", "Bank of Alba, ORG", "Alba, LOC", "Ben Ray, PER", "Graz, LOC")


def rows_of(key: str, targets: list[str]) -> list[Row]:
    return [Row(f"{key}/test/{place:06d}", key, f"Q {place}\nAnswer:", target) for place, target in enumerate(targets)]


def entity_rows(targets: list[str]) -> list[Row]:
    rows = []
    for place, target in enumerate(targets):
        prompt = f"Question {place}\nText: {' '.join(WORDS)}\nAnswer:"
        rows.append(Row(f"flare_ner/test/{place:06d}", "flare_ner", prompt, target,
                        reference=reference_of(prompt, target)))  # fmt: skip
    return rows


# --- numbers


@pytest.mark.parametrize(
    ("target", "output", "correct", "any_unit", "letters"),
    [
        ("0.935", "0.935", True, True, True),
        ("0.935", "93.5 %", True, True, False),
        ("0.935", "93.5", False, True, False),
        ("-0.035", "-3.5 %", True, True, False),
        ("-1234.0", "($1,234)", True, True, False),
        ("0.14136", "0.141359", True, True, False),  # five decimals, as FinQA's programs round
        ("0.14136", "0.1414", False, False, False),
        ("2057.0", "$ 2,057 million", True, True, False),
        ("2000000.0", "$ 2 million", True, True, False),
        ("2057.0", "2.057 billion", False, False, False),
        ("yes", "Yes", True, True, False),
        ("yes", "yes", True, True, True),
        ("yes", "no", False, False, False),
        ("yes", "1.0", False, False, False),
        ("0.0", "-0.0", True, True, False),
        ("5.0", "|5.0|", True, True, False),
        ("5.0", "", False, False, False),
        ("5.0", "1e999", False, False, False),
    ],
)
def test_numbers_match_at_five_decimals(target: str, output: str, correct: bool, any_unit: bool, letters: bool) -> None:
    score = score_row(BENCHMARKS["finqa"], target, output)
    assert (score.correct, score.measures) == (correct, (any_unit, letters))


def test_number_rows_have_accuracy_and_no_f1_and_nothing_of_finlora() -> None:
    records, metrics = score_rows(BENCHMARKS["convfinqa"], rows_of("convfinqa", ["1.0", "yes"]), ["1", "hm"])
    assert (metrics.value("accuracy"), metrics.value("unparsed_share")) == (0.5, 0.5)
    assert not [name for name in metrics.estimates if name.startswith(("f1", "finlora"))]
    assert metrics.finlora_ambiguous is None
    assert [record.finlora_correct for record in records] == [None, None]


# --- labels


@pytest.mark.parametrize(
    ("key", "target", "output", "strict", "pixiu", "missing"),
    [
        ("acl18", "Fall", "Fall", True, True, False),
        ("acl18", "Fall", "fall, not rise", True, False, False),  # PIXIU: Rise comes first among the labels
        ("acl18", "Fall", "down", False, False, True),  # PIXIU's code says Fall
        ("acl18", "Fall", "", False, False, True),
        ("flare_fpb", "negative", "NEGATIVE.", True, True, False),
        ("flare_fpb", "positive", "positively", False, True, False),
    ],
)
def test_labels_by_pixius_rule(key, target, output, strict, pixiu, missing) -> None:
    score = score_row(BENCHMARKS[key], target, output)
    assert (score.correct, score.measures) == (strict, (pixiu, missing))


def test_movement_has_the_matthews_correlation_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, matthews_corrcoef

    rng = Random(4)
    targets = [rng.choice(("Rise", "Fall")) for _ in range(60)]
    outputs = [rng.choice((target, "Rise", "Fall", "who knows")) for target in targets]
    _, metrics = score_rows(BENCHMARKS["cikm18"], rows_of("cikm18", targets), outputs)
    assert metrics.value("matthews") == pytest.approx(matthews_corrcoef(targets, outputs))
    assert metrics.value("accuracy") == pytest.approx(accuracy_score(targets, outputs))
    missing = outputs.count("who knows") / 60
    assert metrics.value("pixiu_missing") == metrics.value("unparsed_share") == pytest.approx(missing)


# --- entities


@pytest.mark.parametrize(
    ("named", "tagged"),
    [
        (["Ann Lee, PER"], {0: "B-PER", 1: "I-PER", 14: "B-PER", 15: "I-PER"}),  # every place of a name
        (["Alba, LOC", "Bank of Alba, ORG"], {3: "B-ORG", 4: "I-ORG", 5: "I-ORG", 7: "B-LOC"}),  # nested
        (["Ann Lee, PER", "Ann Lee, ORG"], {0: "B-PER", 1: "I-PER", 14: "B-PER", 15: "I-PER"}),  # two types: the first
        (["Graz., LOC"], {17: "B-LOC"}),  # punctuation
        (["Nobody, PER", ", PER"], {}),
    ],
)
def test_entities_are_tagged_where_they_are(named: list[str], tagged: dict[int, str]) -> None:
    assert {place: tag for place, tag in enumerate(entity_tags(WORDS, named)) if tag != "O"} == tagged


def test_entity_f1_is_that_of_seqeval() -> None:
    from seqeval.metrics import f1_score, precision_score, recall_score

    rng = Random(2)
    targets = ["\n".join(name for name in NAMES[::2] if rng.random() < 0.8) or NAMES[0] for _ in range(30)]
    outputs = ["\n".join(rng.choice(NAMES) for _ in range(rng.randrange(4))) for _ in targets]
    rows = entity_rows(targets)
    records, metrics = score_rows(BENCHMARKS["flare_ner"], rows, outputs)
    true = [row.reference.split("\n")[1].split() for row in rows]
    said = [entity_tags(WORDS, output.split("\n")) for output in outputs]
    assert metrics.value("entity_f1") == pytest.approx(f1_score(true, said))
    assert metrics.value("entity_precision") == pytest.approx(precision_score(true, said))
    assert metrics.value("entity_recall") == pytest.approx(recall_score(true, said))
    low, high = metrics.bounds("entity_f1")
    assert low < metrics.value("entity_f1") < high
    assert headline_score(metrics) == metrics.value("entity_f1")
    read = [from_json(RowRecord, json.loads(json.dumps(to_json(record))), "x") for record in records]
    assert metrics_of_records(BENCHMARKS["flare_ner"], read) == metrics


def test_a_sentence_is_right_if_all_its_entities_are() -> None:
    rows = entity_rows(["Ben Ray, PER\nGraz, LOC"] * 4)
    outputs = ["Graz, LOC\nBen Ray, PER", "Ben Ray, PER", "Ben Ray, PER\nGraz, LOC\nAlba, ORG", "none"]
    records, metrics = score_rows(BENCHMARKS["flare_ner"], rows, outputs)
    assert [record.correct for record in records] == [True, False, False, False]
    assert metrics.unparsed == 1
    assert records[3].measures == {"entities_right": 0.0, "entities_answered": 0.0, "entities_true": 2.0}


# --- all together


def test_flare_stays_out_of_finloras_averages() -> None:
    _, metrics = score_rows(BENCHMARKS["finqa"], rows_of("finqa", ["1.0", "2.0"]), ["1", "3"])
    means = group_means({"finqa": metrics})
    assert (means["flare"].score, means["flare"].benchmarks) == (0.5, ("finqa",))
    assert "flare" not in group_means({})
    assert finlora_overall({"finqa": metrics}).value is None


def test_the_published_table_is_of_the_benchmarks() -> None:
    assert {key for key, _ in FLARE_PUBLISHED} == {benchmark.key for benchmark in select(["flare"])}
    assert all(len(cells) == len(FLARE_MODELS) for cells in FLARE_PUBLISHED.values())
