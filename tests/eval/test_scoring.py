"""Parsers, strict scoring and FinLoRA's rules: hand-checked answers, an independent oracle, and real rows where there
are some.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import score_row

from benchmarks.answer_examples import EXAMPLES, LABELS
from data.catalog import BENCHMARKS
from data.rows import Row
from eval.scoring.final_answer import said
from eval.scoring.finlora import finlora_labels, finlora_output, finlora_pieces, finlora_score_row, finlora_scores
from eval.scoring.parsers import PARSERS, parse_choice, parse_collapsed_sentiment, parse_label, parse_number
from eval.scoring.records import score_rows
from eval.scoring.row_score import closed_labels
from eval.scoring.scorers import RowScore
from fedfinlora.run.typed import to_json

ROOT = Path(__file__).resolve().parents[2]
REAL_ROWS = ROOT.parent / "shared" / "data" / "finlora"
SENTIMENT = ("negative", "neutral", "positive")
SCORED = [key for key, benchmark in BENCHMARKS.items() if benchmark.scorer != "bertscore"]


# --- what is said at last -------------------------------------------------------------------------


READ = [
    pytest.param(parser, example.text, example.answer, id=f"{parser}-{kind}-{number}".replace(" ", "_"))
    for parser, kinds in EXAMPLES.items()
    for kind, examples in kinds.items()
    for number, example in enumerate(examples)
]


@pytest.mark.parametrize(("parser", "text", "answer"), READ)
def test_each_example_of_the_page_is_read_as_it_says(parser, text, answer) -> None:
    final = said(text)
    assert (None if final is None else PARSERS[parser](final, LABELS.get(parser, ()))) == answer


def test_every_parser_has_examples_of_both_kinds() -> None:
    assert set(EXAMPLES) == set(PARSERS)
    for kinds in EXAMPLES.values():
        answers = [example.answer for examples in kinds.values() for example in examples]
        assert None in answers
        assert any(answer is not None for answer in answers)


@pytest.mark.parametrize(
    ("key", "target", "text"),
    [
        ("fpb", "positive", "<think>negative?</think>positive"),
        ("cfa_level1", "B", "A is wrong. So it is \\boxed{\\text{B}}."),
        ("xbrl_formula_extract", "7 / 2", "<reasoning>5 / 2</reasoning> \\boxed{7 / 2}"),
        (
            "xbrl_finer",
            "us-gaap:Revenues,us-gaap:Assets",
            "<think>Assets, Goodwill</think>us-gaap:Revenues,us-gaap:Assets",
        ),
    ],
)
def test_a_row_is_judged_by_what_is_said_at_last(key, target, text) -> None:
    assert score_row(BENCHMARKS[key], target, text).correct
    assert not score_row(BENCHMARKS[key], target, text.replace("</", "<").replace("boxed", "text{no}")).correct


def test_finlora_reads_thoughts_as_it_always_did() -> None:
    labels = finlora_labels(BENCHMARKS["fpb"], ["negative", "positive"])
    pieces = finlora_score_row(BENCHMARKS["fpb"], "positive", "<think>negative?</think>positive", labels)
    assert not pieces[0].correct


# --- parsers --------------------------------------------------------------------------------------


def test_longest_label_wins_where_two_start_together() -> None:
    labels = ("mild", "mild negative", "negative")
    assert parse_label("mild negative", labels) == "mild negative"
    assert parse_label("negative, mild", labels) == "negative"
    assert parse_label("no", ("Yes", "No")) == "No"
    assert parse_label("nothing", ("Yes", "No")) is None
    assert parse_label("x", ()) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("There is no doubt: yes", "Yes"),
        ("No doubt, yes.", "Yes"),
        ("No question - yes", "Yes"),
        ("No. 1 reason: Yes", "Yes"),
        ("There is no mention of a price", None),
        ("No.", "No"),
        ("No, it does not.", "No"),
        ("No because prices rose", "No"),
        ("not yes", None),
    ],
)
def test_no_in_front_of_a_noun_is_not_the_answer_no(text, answer) -> None:
    assert parse_label(text, BENCHMARKS["headline"].labels) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Not an organization but a person.", "person"),
        ("The entity is neither a location nor an organization; it's a person", "person"),
        ("Rather than a person or a location, an organization", "organization"),
    ],
)
def test_a_denied_entity_is_not_the_answer(text, answer) -> None:
    assert parse_label(text, BENCHMARKS["ner"].labels) == answer


def test_nwgi_is_collapsed_to_three() -> None:
    answers = [parse_collapsed_sentiment(label, ()) for label in BENCHMARKS["nwgi"].labels]
    assert answers == ["negative"] * 3 + ["neutral"] + ["positive"] * 3
    assert parse_collapsed_sentiment("mild", ()) is None


def test_choice_knows_only_the_letters_on_offer() -> None:
    assert parse_choice("D", ("A", "B", "C")) is None
    assert parse_choice("A", ()) is None


@pytest.mark.parametrize("name", PARSERS)
@given(
    text=st.text(
        alphabet=st.one_of(st.characters(), st.sampled_from("ABab0123456789.,()-+*/= \n$%:us-gaap")), max_size=60
    )
)
def test_no_text_breaks_a_parser(name, text) -> None:
    PARSERS[name](text, ("A", "B", "Yes", "No"))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_written_number_is_read_back(value) -> None:
    assert parse_number(repr(value)) == value


# --- strict scoring -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "target", "output", "correct"),
    [
        ("fpb", "positive", "The sentiment is positive", True),
        ("fpb", "positive", "negative", False),
        ("fpb", "positive", "up", False),
        ("nwgi", "mildly positive", "strong positive", True),
        ("headline", "No", "no.", True),
        ("cfa_level1", "C", "(C) because", True),
        ("xbrl_tags_extract", "us-gaap:Assets", "us-gaap:assets", True),
        ("xbrl_tags_extract", "us-gaap:Assets", "us-gaap:AssetsCurrent", False),
        ("xbrl_tags_extract", "21276000000.0", "21276000000.0", True),
        ("xbrl_tags_extract", "21276000000.0", "us-gaap:Assets", False),
        ("xbrl_value_extract", "15.0", "15", True),
        ("xbrl_value_extract", "15.0", "5.0", False),
        ("xbrl_formula_extract", "us-gaap:A / us-gaap:B", "(us-gaap:A/us-gaap:B)", True),
        ("xbrl_formula_extract", "(us-gaap:A / us-gaap:B) * 100", "us-gaap:A / us-gaap:B", False),
        ("xbrl_finer", "AbcDef,Revenues", "AbcDef, Revenues, Goodwill", True),
        ("xbrl_finer", "AbcDef,Revenues", "Revenues,AbcDef", False),
    ],
)
def test_verdicts_match_the_ledger(key, target, output, correct) -> None:
    assert score_row(BENCHMARKS[key], target, output).correct is correct


def test_number_tolerance_is_relative_and_exactness_is_reported() -> None:
    benchmark = BENCHMARKS["formula"]
    inside = score_row(benchmark, "10000.0", "10,000.99")
    assert (inside.correct, inside.measures) == (True, (False,))
    assert score_row(benchmark, "10000.0", "10001.01").correct is False
    assert score_row(benchmark, "10000.0", "$10,000").measures == (True,)
    assert score_row(benchmark, "0.0", "0.0001").correct is False
    assert score_row(benchmark, "0.0", "0").correct is True
    assert score_row(benchmark, "5.0", "unknown").measures == (False,)


def hits(score: RowScore) -> list[bool]:
    """Whether each tag of the target was answered."""
    return [truth == tag for truth, tag in score.pairs]


def test_tags_are_judged_one_by_one() -> None:
    score = score_row(BENCHMARKS["xbrl_finer"], "NetIncomeLoss,Revenues,Goodwill", "NetIncomeLoss,Assets")
    assert hits(score) == [True, False, False]
    assert hits(score_row(BENCHMARKS["xbrl_finer"], "NetIncomeLoss,Revenues", "")) == [False, False]


@pytest.mark.parametrize("kind", EXAMPLES["tag_list"])
def test_a_list_is_right_wherever_it_is_read_as_the_target(kind) -> None:
    for example in EXAMPLES["tag_list"][kind]:
        if example.answer is not None and None not in example.answer:
            target = ",".join(f"us-gaap:{tag.title()}" for tag in example.answer)
            assert score_row(BENCHMARKS["xbrl_finer"], target, example.text).correct, example.text


def test_a_tag_that_is_a_value_is_compared_at_its_place() -> None:
    finer = BENCHMARKS["xbrl_finer"]
    assert score_row(finer, "NetIncomeLoss,5.0", "NetIncomeLoss, 5.0").pairs == (("netincomeloss",) * 2, ("5.0",) * 2)
    assert hits(score_row(finer, "NetIncomeLoss,5.0", "NetIncomeLoss, Revenues")) == [True, False]
    assert hits(score_row(finer, "NetIncomeLoss,,Revenues", "NetIncomeLoss,,Revenues")) == [True, False, True]


def test_a_target_that_is_no_answer_leaves_the_reading_of_answers_alone() -> None:
    score = score_row(BENCHMARKS["fpb"], "mixed", "Negative, I say")
    assert (score.expected, score.parsed, score.correct) == ("mixed", "negative", False)
    assert score_row(BENCHMARKS["fpb"], "mixed", " Mixed\n").correct
    assert score_row(BENCHMARKS["fpb"], " ", "").correct is False


@pytest.mark.parametrize(
    ("target", "output", "correct", "by_value"),
    [
        ("(7 - 2) / 4", "(7-2)/4", True, True),
        ("(7 - 2) / 4", "5 / 4", False, True),
        ("(7 - 2) / 4", "1.25", False, True),
        ("(7 - 2) / 4", "1.2501", False, True),
        ("(7 - 2) / 4", "1.2502", False, False),
        ("(7 - 2) / 4", "(7 - 2) / 4 * 100", False, False),
        ("1 / 0", "2 / 0", False, False),
        ("1 / 0", "1 / 0", True, True),
        ("1 - 1", "0", False, True),
        ("1 - 1", "0.0001", False, False),
        ("1 / 2", "no idea", False, False),
        ("us-gaap:Assets / 2", "us-gaap:Goodwill / 2", False, False),
    ],
)
def test_formulas_are_judged_by_value_too(target, output, correct, by_value) -> None:
    score = score_row(BENCHMARKS["xbrl_formula_calc_extract"], target, output)
    assert (score.correct, score.measures) == (correct, (by_value,))
    assert score_row(BENCHMARKS["xbrl_formula_extract"], target, output).measures == ()


def test_closed_labels_are_those_that_answers_are_read_as() -> None:
    assert closed_labels(BENCHMARKS["fpb"]) == SENTIMENT
    assert closed_labels(BENCHMARKS["nwgi"]) == SENTIMENT
    assert closed_labels(BENCHMARKS["headline"]) == ("Yes", "No")
    assert closed_labels(BENCHMARKS["cfa_level1"]) == ("A", "B", "C", "D")
    assert closed_labels(BENCHMARKS["xbrl_finer"]) == ()


# --- FinLoRA's rules ------------------------------------------------------------------------------


@given(st.text(max_size=20), st.text(alphabet="Answer: \nx", max_size=30), st.sampled_from(["Answer:", "Answer: "]))
def test_rule_3_on_the_generated_text_equals_the_rule_on_prompt_and_text(question, generated, ending) -> None:
    prompt = question + ending
    assert finlora_output(generated) == (prompt + generated).split("Answer:")[-1].strip()


def test_rule_4_cuts_and_pads_to_the_target() -> None:
    finer = BENCHMARKS["xbrl_finer"]
    assert finlora_pieces(finer, "A,B ,C", " a\nb , c,d,e") == [("A", "ab"), ("B", "c"), ("C", "d")]
    assert finlora_pieces(finer, "A,B,C", "a") == [("A", "a"), ("B", ""), ("C", "")]
    assert finlora_pieces(BENCHMARKS["fpb"], "positive", "a, b") == [("positive", "a, b")]


@pytest.mark.parametrize(
    ("output", "correct", "ambiguous"),
    [
        ("positive", True, False),
        ("It is POSITIVE, not negative", True, False),
        ("negative or positive", False, False),
        ("nonpositively", True, False),
        ("up", False, False),
        ("", False, False),
    ],
)
def test_rule_5_takes_the_label_that_starts_first(output, correct, ambiguous) -> None:
    judged = finlora_scores(BENCHMARKS["fpb"], ["positive", "negative", "neutral"], [output, "", ""])[0][0]
    assert (judged.correct, judged.ambiguous) == (correct, ambiguous)


def test_rule_5_knows_only_labels_that_are_targets() -> None:
    assert finlora_labels(BENCHMARKS["fpb"], ["Positive", "negative", "positive"]) == ["negative", "positive"]
    judged = finlora_scores(BENCHMARKS["fpb"], ["positive", "positive"], ["neutral, then positive", ""])
    assert judged[0][0].correct


def test_numbers_inside_numbers_follow_the_rule() -> None:
    value = BENCHMARKS["xbrl_value_extract"]
    judged = finlora_scores(value, ["5.0", "7.0"], ["15.0", "7"])
    assert [row[0].correct for row in judged] == [True, False]
    assert [score_row(value, target, output).correct for target, output in [("5.0", "15.0"), ("7.0", "7")]] == [
        False,
        True,
    ]


def test_tie_goes_to_the_longest_label_and_is_counted() -> None:
    tags = BENCHMARKS["xbrl_tags_extract"]
    targets = ["us-gaap:Assets", "us-gaap:AssetsCurrent"]
    long, short = finlora_scores(tags, targets, ["us-gaap:AssetsCurrent", "us-gaap:Assets"])
    assert (long[0].correct, long[0].ambiguous) == (False, True)
    assert (short[0].correct, short[0].ambiguous) == (False, False)
    right = finlora_scores(tags, targets, ["us-gaap:Assets", "us-gaap:AssetsCurrent"])
    assert [row[0].correct for row in right] == [True, True]
    assert [row[0].ambiguous for row in right] == [False, True]


def test_rule_8_collapses_nwgi() -> None:
    judged = finlora_scores(
        BENCHMARKS["nwgi"], ["mildly negative", "neutral", "strong positive"], ["strong negative"] * 3
    )
    assert [row[0].target for row in judged] == ["negative", "neutral", "positive"]
    assert [row[0].correct for row in judged] == [True, False, False]


def oracle(targets: list[str], texts: list[str], batched: bool) -> list[tuple[bool, bool]]:
    """The rules written down a second time, differently: (correct, ambiguous) of each entry of the long list."""
    wanted, given = [], []
    for target, text in zip(targets, texts, strict=True):
        answer = ("prompt Answer:" + text).rsplit("Answer:", 1)[1].strip()
        if not batched:
            wanted, given = [*wanted, target], [*given, answer]
            continue
        pieces = [p.strip().replace("\n", "") for p in answer.split(",")]
        goals = [p.strip().replace("\n", "") for p in target.split(",")]
        for place, goal in enumerate(goals):
            wanted.append(goal)
            given.append(pieces[place] if place < len(pieces) else "")
    labels = {target.lower() for target in wanted}
    verdicts = []
    for goal, answer in zip(wanted, given, strict=True):
        for start in range(len(answer) + 1):
            here = [label for label in labels if answer.lower().startswith(label, start)]
            if here:
                verdicts.append((max(here, key=len) == goal.lower(), len(here) > 1))
                break
        else:
            verdicts.append((False, False))
    return verdicts


def test_rules_agree_with_an_independent_writing_of_them() -> None:
    draw = random.Random(0)
    words = ["Ab", "AbC", "ab", "b", "5.0", "15.0", "Answer:", ",", " ", "\n", "C", ""]
    for _ in range(2000):
        n = draw.randint(1, 4)
        targets = [
            "".join(draw.choices(["Ab", "AbC", "b", "5.0", "15.0", ","], k=draw.randint(1, 3))) for _ in range(n)
        ]
        texts = ["".join(draw.choices(words, k=draw.randint(0, 6))) for _ in range(n)]
        for key in ("fpb", "xbrl_finer"):
            ours = [(p.correct, p.ambiguous) for row in finlora_scores(BENCHMARKS[key], targets, texts) for p in row]
            assert ours == oracle(targets, texts, batched=key == "xbrl_finer"), (targets, texts)


# --- records --------------------------------------------------------------------------------------


def rows_of(key: str, targets: list[str]) -> list[Row]:
    return [Row(f"{key}/test/{i:06d}", key, f"Question {i}\nAnswer:", target) for i, target in enumerate(targets)]


def test_records_carry_what_the_run_folder_promises() -> None:
    records, metrics = score_rows(BENCHMARKS["fpb"], rows_of("fpb", ["positive", "neutral"]), ["Positive", "?"])
    assert to_json(records[0]) == {
        "id": "fpb/test/000000",
        "prompt_sha256": hashlib.sha256(b"Question 0\nAnswer:").hexdigest(),
        "target": "positive",
        "output": "Positive",
        "parsed": "positive",
        "correct": True,
        "finlora_correct": True,
        "finlora_ambiguous": False,
    }
    assert records[1].parsed is None
    assert (metrics.n, metrics.unparsed, metrics.value("accuracy")) == (2, 1, 0.5)
    json.dumps([*map(to_json, records), to_json(metrics)], allow_nan=False)


def test_tag_records_count_tags_and_rows() -> None:
    rows = rows_of("xbrl_finer", ["NetIncomeLoss,Revenues", "GrossProfit,Goodwill"])
    records, metrics = score_rows(BENCHMARKS["xbrl_finer"], rows, ["NetIncomeLoss,Goodwill", "GrossProfit,Goodwill"])
    assert [(r.correct, r.tags_correct, r.tags) for r in records] == [(False, 1, 2), (True, 2, 2)]
    assert records[0].parsed == ["netincomeloss", "goodwill"]
    assert (metrics.n, metrics.value("accuracy"), metrics.rows, metrics.value("row_accuracy")) == (4, 0.75, 2, 0.5)
    assert (metrics.value("finlora_accuracy"), metrics.finlora_ambiguous) == (0.75, 0)


def test_outputs_and_rows_have_to_match() -> None:
    with pytest.raises(ValueError):
        score_rows(BENCHMARKS["fpb"], rows_of("fpb", ["positive"]), [])


def test_scores_do_not_depend_on_the_hash_seed() -> None:
    program = """
from data.catalog import BENCHMARKS
from eval.scoring.row_score import score_answers
targets = ["us-gaap:Assets", "us-gaap:AssetsCurrent", "us-gaap:A", "us-gaap:AssetsNet", "us-gaap:AssetsNetCurrent"]
outputs = ["us-gaap:AssetsCurrent", "us-gaap:AssetsNetCurrent", "us-gaap:Ab", "us-gaap:AssetsNet", "Assets"]
tags = BENCHMARKS["xbrl_tags_extract"]
print(score_answers(tags, targets, outputs))
"""
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def real_rows(key: str) -> list[Row]:
    path = REAL_ROWS / "test" / f"{BENCHMARKS[key].test_file}.jsonl"
    if not path.is_file():
        pytest.skip(f"no real rows at {path}")
    with path.open(encoding="utf-8") as file:  # not splitlines(): some rows hold U+2028
        lines = [json.loads(line) for line in file]
    return [Row(f"{key}/test/{i:06d}", key, line["context"], line["target"]) for i, line in enumerate(lines)]


@pytest.mark.parametrize("key", SCORED)
def test_perfect_outputs_on_real_rows_score_one(key) -> None:
    rows = real_rows(key)
    records, metrics = score_rows(BENCHMARKS[key], rows, [f" {row.target}\n" for row in rows])
    assert all(record.correct and record.finlora_correct for record in records)
    for figure in ("accuracy", "f1_macro", "f1_weighted", "finlora_accuracy", "finlora_f1"):
        assert metrics.value(figure) == pytest.approx(1.0), figure
    assert metrics.unparsed == 0


@pytest.mark.parametrize("key", SCORED)
def test_silent_outputs_on_real_rows_score_zero_and_are_unparsed(key) -> None:
    rows = real_rows(key)
    _, metrics = score_rows(BENCHMARKS[key], rows, [""] * len(rows))
    assert (metrics.value("accuracy"), metrics.value("finlora_accuracy"), metrics.value("unparsed_share")) == (0, 0, 1)
    assert metrics.bounds("accuracy")[0] == 0


def test_real_prompts_end_in_the_marker_of_their_benchmark() -> None:
    for key in SCORED:
        if BENCHMARKS[key].group == "certificate":
            continue
        marker = "Output US GAAP tags:" if BENCHMARKS[key].scorer == "tag_list" else "Answer:"
        assert all(row.prompt.rstrip().endswith(marker) for row in real_rows(key)), key
        if marker == "Answer:":
            assert all(
                (row.prompt + row.target).split("Answer:")[-1].strip() == row.target.strip() for row in real_rows(key)
            ), key
