"""Compatibility with FinLoRA's evaluator: the golden files, the project and an independent writing of the rules, held
against each other.

The files are made by `tests/golden/make.py`, the independent rules are `tests/helpers/finlora_reference.py`. No model
is loaded here.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from finlora_reference import (
    BERTSCORES,
    TAG_LISTS,
    Example,
    Piece,
    accuracy,
    decoded_answer,
    evaluate,
    fixed_order,
    label_set,
    long_lists,
    weighted_f1,
)
from golden.make import FOLDER, examples_of, hand_made_rows, verdicts
from hypothesis import given
from hypothesis import strategies as st
from scored import finlora_f1

from data.catalog import BENCHMARKS
from data.rows import Row
from eval.scoring.finlora import finlora_labels, finlora_output, finlora_pieces, finlora_scores
from eval.scoring.records import make_record, score_rows
from eval.scoring.row_score import score_answers

ROOT = Path(__file__).resolve().parents[2]
REAL_ROWS = ROOT.parent / "shared" / "data"
PUBLISHED = [key for key in BENCHMARKS if (FOLDER / f"{key}.jsonl").is_file()]
"""FinLoRA's 19; the catalogue may hold more."""
SCORED = [key for key in PUBLISHED if key not in BERTSCORES]
HASH_SEEDS = range(1, 21)


@cache
def golden(key: str) -> list[dict[str, Any]]:
    """The rows of one file."""
    lines = (
        (FOLDER / f"{key}.jsonl").read_text(encoding="utf-8").split("\n")
    )  # not splitlines(): outputs may hold U+2028
    return [json.loads(line) for line in lines if line]


def column(key: str, name: str) -> list[Any]:
    return [row[name] for row in golden(key)]


@cache
def reference(key: str) -> list[list[Piece]]:
    return evaluate(key, examples_of(key, golden(key)))


def flat(values: list[Any]) -> list[Any]:
    """The entries of FinLoRA's long list: a row's value, or those of its tags."""
    return [entry for value in values for entry in (value if isinstance(value, list) else [value])]


# --- the files ------------------------------------------------------------------------------------


def test_there_is_a_file_for_each_of_the_nineteen_and_all_are_small() -> None:
    files = sorted(FOLDER.glob("*.jsonl"))
    assert [file.stem for file in files] == sorted(PUBLISHED)
    assert len(files) == 19
    assert sum(file.stat().st_size for file in files) < 300_000


@pytest.mark.parametrize("key", PUBLISHED)
def test_a_file_holds_outputs_of_both_models_and_the_hand_made_cases(key) -> None:
    rows = golden(key)
    assert len({row["id"] for row in rows}) == len(rows)
    for name in ("base", "adapter"):
        assert sum(row["id"].endswith(f"/{name}") for row in rows) >= 4
    assert [row for row in rows if "why" in row] == hand_made_rows(key)
    assert all(("why" in row) != ("prompt" in row) for row in rows)


@pytest.mark.parametrize("key", PUBLISHED)
def test_every_prompt_is_one_of_the_bundled_sample(key) -> None:
    file = ROOT / "data" / "sample" / "test" / f"{BENCHMARKS[key].test_file}.jsonl"
    sample = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for row in golden(key):
        if "prompt" in row:
            source = sample[int(row["id"].split("/")[2])]
            assert (row["prompt"], row["target"]) == (source["context"], source["target"]), (
                f"{row['id']}: the sample has changed; run tests/golden/make.py"
            )


def test_no_prompt_is_one_of_the_real_rows() -> None:
    files = sorted(REAL_ROWS.rglob("*.jsonl"))
    if not files:
        pytest.skip("no real rows next to the project: prompts were not compared with them")
    prompts = {row["prompt"].strip() for key in PUBLISHED for row in golden(key) if "prompt" in row}
    compared = 0
    for path in files:
        with path.open(encoding="utf-8") as file:
            for line in file:
                compared += 1
                row = json.loads(line)  # FinLoRA's layout calls the prompt `context`, FLARE's `query`
                assert str(row.get("context", row.get("query", ""))).strip() not in prompts, (
                    f"a prompt of {path.name} is in a golden file"
                )
    assert compared > 0


# --- the project and the reference give the frozen verdicts ---------------------------------------


@pytest.mark.parametrize("key", SCORED)
def test_project_gives_the_frozen_verdicts(key) -> None:
    judged = finlora_scores(BENCHMARKS[key], column(key, "target"), column(key, "output"))
    for row, pieces in zip(golden(key), judged, strict=True):
        correct, ambiguous = [piece.correct for piece in pieces], [piece.ambiguous for piece in pieces]
        given_verdict = (correct, ambiguous) if key in TAG_LISTS else (correct[0], ambiguous[0])
        assert len(correct) == 1 or key in TAG_LISTS
        assert given_verdict == (row["finlora_correct"], row["finlora_ambiguous"]), row["id"]


@pytest.mark.parametrize("key", PUBLISHED)
def test_records_of_a_run_carry_the_frozen_verdicts(key) -> None:
    benchmark = BENCHMARKS[key]
    scores = score_answers(benchmark, column(key, "target"), column(key, "output"), bertscore_model=None)
    for row, score in zip(golden(key), scores, strict=True):
        record = make_record(benchmark, Row(row["id"], key, row.get("prompt", ""), row["target"]), row["output"], score)
        correct, ambiguous = row["finlora_correct"], row["finlora_ambiguous"]
        if key in TAG_LISTS:
            correct, ambiguous = all(correct), any(ambiguous)
        assert (record.finlora_correct, record.finlora_ambiguous) == (correct, ambiguous), row["id"]


@pytest.mark.parametrize("key", sorted(BERTSCORES))
def test_project_compares_the_frozen_texts_by_bertscore(key) -> None:
    assert [finlora_output(output) for output in column(key, "output")] == column(key, "finlora_output")


@pytest.mark.parametrize("key", PUBLISHED)
def test_reference_gives_the_frozen_verdicts(key) -> None:
    for row, verdict in zip(golden(key), verdicts(key, golden(key)), strict=True):
        assert {name: row[name] for name in verdict} == verdict, row["id"]


@pytest.mark.parametrize("key", SCORED)
def test_accuracy_f1_and_ambiguity_of_each_file_equal_the_references(key) -> None:
    expected = [piece for pieces in reference(key) for piece in pieces]
    rows = [Row(row["id"], key, row.get("prompt", ""), row["target"]) for row in golden(key)]
    _, metrics = score_rows(BENCHMARKS[key], rows, column(key, "output"))
    assert metrics.value("finlora_accuracy") == pytest.approx(accuracy(expected), abs=1e-12)
    assert metrics.value("finlora_f1") == pytest.approx(weighted_f1(expected), abs=1e-12)
    assert metrics.finlora_ambiguous == sum(piece.ambiguous for piece in expected)
    judged = finlora_scores(BENCHMARKS[key], column(key, "target"), column(key, "output"))
    assert finlora_f1([piece for pieces in judged for piece in pieces]) == pytest.approx(
        weighted_f1(expected), abs=1e-12
    )


# --- laws -----------------------------------------------------------------------------------------

LABEL_PARTS = [
    "a",
    "ab",
    "abc",
    "b",
    "A",
    "us-gaap:Assets",
    "Current",
    "5.0",
    "1",
    "5",
    ".",
    " ",
    "-",
    "\u0130",
    "\ufb01",
    "\u03a3",
]
TARGETS = {
    "fpb": st.lists(st.sampled_from([*LABEL_PARTS, ","]), min_size=1, max_size=3).map("".join),
    "xbrl_value_extract": st.lists(st.sampled_from(["1", "5", "0", ".", "5.0", "-", ","]), min_size=1, max_size=4).map(
        "".join
    ),
    "xbrl_finer": st.lists(st.sampled_from([*LABEL_PARTS, ",", ",", "\n"]), min_size=1, max_size=6).map("".join),
    "nwgi": st.sampled_from(BENCHMARKS["nwgi"].labels),
}
"""Benchmark -> targets, one for each way in which the rules treat a row."""
NOISE = [
    "",
    " ",
    "\n",
    "\r",
    ",",
    ", ",
    "Answer:",
    "answer:",
    "x",
    "1",
    "0",
    "\u2212",
    "\u017f",
    "strong ",
    "pos",
    "\uff0c",
    "\u2028",
]


@st.composite
def evaluations(draw: st.DrawFn, key: str) -> list[Example]:
    """A few rows whose outputs are made of targets, halves of targets, other cases of them and noise."""
    targets = draw(st.lists(TARGETS[key], min_size=1, max_size=5))
    pieces = [
        piece for target in targets for piece in (target, target.lower(), target.upper(), target[: len(target) // 2])
    ]
    outputs = st.lists(st.sampled_from(pieces + NOISE + LABEL_PARTS), max_size=6).map("".join)
    ending = "Output US GAAP tags:" if key in TAG_LISTS else draw(st.sampled_from(["Answer:", "Answer: "]))
    question = draw(st.sampled_from(["", "A question. ", "Answer: the question, a\n", "Answer"]))
    return [Example(question + ending, target, draw(outputs)) for target in targets]


@pytest.mark.parametrize("key", TARGETS)
@given(data=st.data())
def test_project_and_reference_agree_on_random_evaluations(key, data) -> None:
    examples = data.draw(evaluations(key))
    targets, outputs = [example.target for example in examples], [example.output for example in examples]
    expected = evaluate(key, examples)
    judged = finlora_scores(BENCHMARKS[key], targets, outputs)
    for ours, theirs in zip(judged, expected, strict=True):
        assert [(piece.target, piece.output, piece.correct, piece.ambiguous) for piece in ours] == [
            (piece.target, piece.output, piece.correct, piece.ambiguous) for piece in theirs
        ]
    assert finlora_labels(BENCHMARKS[key], targets) == fixed_order(label_set(long_lists(key, examples)[1]))
    pieces = [piece for row in judged for piece in row]
    assert finlora_f1(pieces) == pytest.approx(weighted_f1([piece for row in expected for piece in row]), abs=1e-12)


def test_ambiguous_is_exactly_what_changes_with_the_hash_seed() -> None:
    program = """
import json, sys
from finlora_reference import find_label
evaluations = json.load(sys.stdin)
print(json.dumps([[find_label(output, set(labels)) for output in outputs] for labels, outputs in evaluations]))
"""
    lists = [long_lists(key, examples_of(key, golden(key)))[1:] for key in SCORED]
    evaluations = json.dumps([([target.lower() for target in targets], outputs) for targets, outputs in lists])
    chosen: list[list[str | None]] = []
    for seed in HASH_SEEDS:
        ran = subprocess.run(
            [sys.executable, "-c", program],
            input=evaluations,
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT / "tests" / "helpers")},
            capture_output=True,
            text=True,
            check=True,
        )
        chosen.append(flat(json.loads(ran.stdout)))
    ambiguous = flat([flat(column(key, "finlora_ambiguous")) for key in SCORED])
    changes = [len(set(labels)) > 1 for labels in zip(*chosen, strict=True)]
    assert changes == ambiguous
    assert sum(ambiguous) > 10


def test_an_empty_tag_of_a_target_is_a_label_that_every_output_begins_with() -> None:
    rows = [("Assets,,Goodwill", "Assets,,Goodwill"), ("Assets", "none"), ("Goodwill", "")]
    expected = [
        [(True, True), (True, False), (True, True)],  # "" starts where the tag does; the longer one wins
        [(False, False)],  # "" alone
        [(False, False)],
    ]
    finer = BENCHMARKS["xbrl_finer"]
    ours = finlora_scores(finer, [target for target, _ in rows], [output for _, output in rows])
    theirs = evaluate("xbrl_finer", [Example("Output US GAAP tags:", *row) for row in rows])
    for judged in (ours, theirs):
        assert [[(piece.correct, piece.ambiguous) for piece in pieces] for pieces in judged] == expected


# --- the reference itself -------------------------------------------------------------------------


def test_reference_imports_nothing_of_the_project() -> None:
    tree = ast.parse((ROOT / "tests" / "helpers" / "finlora_reference.py").read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert modules == {"__future__", "random", "collections.abc", "typing", "sklearn.metrics"}


def test_weighted_f1_flatters_as_published_for_fpb() -> None:
    examples = [Example("Answer:", "positive", "positive" if row < 8564 else f"text {row}") for row in range(10_000)]
    pieces = [row[0] for row in evaluate("fpb", examples)]
    assert accuracy(pieces) == 0.8564
    assert round(weighted_f1(pieces), 3) == 0.923


def test_rule_3_works_on_prompt_and_output() -> None:
    assert decoded_answer("fpb", Example("Answer: old\nAnswer:", "x", " new ")) == "new"
    assert decoded_answer("xbrl_finer", Example("Output US GAAP tags:", "x", " new ")) == "new"
    assert finlora_pieces(BENCHMARKS["fpb"], "x", " new ") == [("x", "new")]
