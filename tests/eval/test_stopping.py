"""A row that leaves because nothing can change any more has the figures that it would have with anything that may
follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import score_row

from data.catalog import BENCHMARKS, Benchmark
from eval.decoding.stopping import NAMING, READ_BY_FIRST_LABEL, RESTARTS, StoppingRule, fewest_marker_tokens
from eval.scoring.finlora import finlora_labels, finlora_score_row, finlora_scores

STOPPING = [benchmark for benchmark in BENCHMARKS.values() if benchmark.parser in READ_BY_FIRST_LABEL]
ODD = replace(BENCHMARKS["fpb"], labels=("no", "north", "non-cash", "new york", "new", "Cash"))
"""Labels within labels, with a hyphen and a blank."""
ODD_TARGETS = (
    "POSITIVE", "Positive.", "strong positive", "n/a", "neutral\nyes", "a positive b", "no ", " No", "x no ",
    "positives",
    "negative, really", "NEUTRAL", "mildly negative", "new york city", "non", "nonpositive",
)  # fmt: skip
"""Targets as data sets may hold them: not in the labels' spelling, longer than a label, or unreadable."""


PLAIN = (
    "Answer:",
    "Answ",
    "er:",
    "A",
    "Output",
    "The ",
    "strong ",
    "non",
    " ",
    "\n",
    "\t",
    "\x1c",
    ".",
    ",",
    "-",
    "-a",
    "'s",
    "_",
    "s",
    "o",
    "",
)
FOREIGN = ("é", "ſ", "\u212a", "İ", "\u0301", "\u2028", "中", "\ufffd")


def fragments(benchmark: Benchmark, *more: str) -> st.SearchStrategy[str]:
    labels = [*benchmark.labels, "negative", "neutral", "positive"]
    halves = [half for label in labels for half in (label[: len(label) // 2], label[len(label) // 2 :])]
    pieces = [*labels, *(label.upper() for label in labels), *halves, *PLAIN, *more]
    return st.lists(st.sampled_from(pieces), max_size=5).map("".join)


class Case(NamedTuple):
    benchmark: Benchmark
    targets: list[str]
    """Of all rows."""
    rule: StoppingRule
    texts: list[str]
    """Those of the drawn ones that stop early."""
    left: int
    """Tokens left."""


@st.composite
def stopping_texts(draw: st.DrawFn, restarts: bool) -> Case:
    benchmark = draw(st.sampled_from([*STOPPING, ODD]))
    targets = draw(st.lists(st.sampled_from([*benchmark.labels, *ODD_TARGETS]), min_size=1, max_size=4))
    rule = StoppingRule.of(benchmark, targets, draw(st.sampled_from([1, 2])), restarts=restarts)
    left = draw(st.integers(0, 2)) if restarts else 9
    parts = fragments(benchmark)
    around = st.one_of(st.just(""), parts)
    label = st.sampled_from([*benchmark.labels, *targets])
    behind = st.sampled_from(["", " ", "-", ".", "\nO", ". ", "-\n", " - ", "\nOutput", ". The ", " it is"])
    texts = draw(st.lists(st.tuples(around, label, behind, around).map("".join), min_size=8, max_size=8))
    return Case(benchmark, targets, rule, [text for text in texts if rule.stops(text, left)], left)


def verdicts(benchmark: Benchmark, targets: Sequence[str], output: str) -> list[tuple[object, ...]]:
    """All that the figures take from an output, whichever row's it is."""
    labels = finlora_labels(benchmark, targets)
    compared = {piece.target for pieces in finlora_scores(benchmark, targets, [""] * len(targets)) for piece in pieces}
    found: list[tuple[object, ...]] = []
    for target in targets:
        strict = score_row(benchmark, target, output)
        found.append((strict.parsed, strict.expected, strict.correct))
        for piece in finlora_score_row(benchmark, target, output, labels):
            response = piece.target if piece.correct else piece.output
            found.append((piece.correct, piece.ambiguous, response if response in compared else None))
    return found


@given(stopping_texts(restarts=False), st.data())
@settings(max_examples=300)
def test_without_a_second_marker_nothing_that_follows_changes_a_figure(case: Case, data: st.DataObject) -> None:
    following = data.draw(st.lists(st.one_of(fragments(case.benchmark, *FOREIGN), st.text(max_size=6)), max_size=8))
    for text in case.texts:
        before = verdicts(case.benchmark, case.targets, text)
        for more in following:
            if all(
                (text + more).lower().count(marker) == text.lower().count(marker) for marker in (*RESTARTS, *NAMING)
            ):
                assert verdicts(case.benchmark, case.targets, text + more) == before, (text, more)


@given(stopping_texts(restarts=True), st.data())
@settings(max_examples=300)
def test_nothing_that_the_tokens_left_can_spell_changes_a_figure(case: Case, data: st.DataObject) -> None:
    """A token spells any fragment; no fewer than `marker_tokens` of them spell the marker."""
    for text in case.texts:
        before = verdicts(case.benchmark, case.targets, text)
        for _ in range(4):
            tokens = data.draw(st.lists(fragments(case.benchmark, *FOREIGN), max_size=case.left))
            if case.rule.marker_tokens <= len(tokens) or not any(
                marker in token.lower() for token in tokens for marker in RESTARTS
            ):
                more = "".join(tokens)
                assert verdicts(case.benchmark, case.targets, text + more) == before, (text, more)


@pytest.mark.parametrize("restarts", [True, False])
def test_the_cases_above_are_many(restarts: bool) -> None:
    """With most label sets, with and without a second marker in mind."""
    found: list[Case] = []

    @given(stopping_texts(restarts=restarts))
    @settings(max_examples=600)
    def collect(case: Case) -> None:
        found.append(case)

    collect()
    assert sum(bool(case.texts) for case in found) > 20
    assert len({case.benchmark.labels for case in found if case.texts}) >= 4


@given(st.sampled_from(STOPPING), st.data())
def test_text_that_stops_under_exact_stops_without_it(benchmark: Benchmark, data: st.DataObject) -> None:
    text = data.draw(st.tuples(st.sampled_from(benchmark.labels), fragments(benchmark)).map(" ".join))
    one, other = (StoppingRule.of(benchmark, benchmark.labels, 2, restarts=restarts) for restarts in (True, False))
    assert other.stops(text, 1) or not one.stops(text, 1)
    assert other.stops(text, 1) == other.stops(text, 9), "without it the budget does not matter"
    assert not one.stops(text, 2)


# --- the plain cases ------------------------------------------------------------------------------


@pytest.mark.parametrize("benchmark", STOPPING, ids=lambda benchmark: benchmark.key)
def test_a_label_and_what_models_write_after_it_stop_early(benchmark: Benchmark) -> None:
    rule = StoppingRule.of(benchmark, benchmark.labels, 2, restarts=False)
    for label in benchmark.labels:
        for text in (
            f"{label}\nOutput",
            f" {label}\n\nInput",
            f"{label}. The ",
            f"{label.upper()}, bec",
            f"The {label} one, ",
        ):
            assert rule.stops(text, 8), text


@pytest.mark.parametrize("benchmark", STOPPING, ids=lambda benchmark: benchmark.key)
def test_exact_stopping_waits_until_no_second_marker_fits_the_budget(benchmark: Benchmark) -> None:
    rule = StoppingRule.of(benchmark, benchmark.labels, 2, restarts=True)
    for label in benchmark.labels:
        assert rule.stops(f"{label}\nOutput", 1)
        assert not rule.stops(f"{label}\nOutput", 2)
        assert not rule.stops(f"{label}\nOutput A", 1), "one token could make it a marker"
        assert not rule.stops(f"{label}\nOutput Answer", 1)
    assert not replace(rule, marker_tokens=1).stops(f"{benchmark.labels[0]}\nOutput", 1)


@pytest.mark.parametrize(
    "text",
    [
        "", "positive", "positive\n", "positive\n\n", "positi", "It is", "positives a", "positive-l",
        "positive-looking but",
        "nonpositive it", "positive-", "positive ", "positive é", "positive \ufffd", "Answer: ", "positive. Answer:",
        "positive\nOutput neu",
    ],
)  # fmt: skip
def test_text_that_may_still_change_does_not_stop_early(text: str) -> None:
    assert not StoppingRule.of(BENCHMARKS["fpb"], BENCHMARKS["fpb"].labels, 2, restarts=False).stops(text, 9)


@pytest.mark.parametrize(
    "text",
    [
        "positive: 0.1", "It is positive or", "~~positive it", "Not negative. Positive o", "The sentiment: neutral it",
        "It may be positive, but the answer is",
    ],
)  # fmt: skip
def test_text_that_a_denial_or_decision_may_change_does_not_stop_early(text: str) -> None:
    assert not StoppingRule.of(BENCHMARKS["fpb"], BENCHMARKS["fpb"].labels, 2, restarts=False).stops(text, 9)


@pytest.mark.parametrize("text", ["No. ", "No dou", "no  ", "There is no ", "No. 1", "No rea"])
def test_a_no_that_a_noun_may_follow_does_not_stop_early(text: str) -> None:
    rule = StoppingRule.of(BENCHMARKS["headline"], BENCHMARKS["headline"].labels, 2, restarts=False)
    assert not rule.stops(text, 9)
    assert rule.stops("No. The ", 9)


def test_a_decision_for_another_label_is_reckoned_with() -> None:
    """The words that name it take two tokens, or one where they have begun."""
    rule = StoppingRule.of(BENCHMARKS["fpb"], BENCHMARKS["fpb"].labels, 2, restarts=True)
    assert rule.stops("It is positive, yet", 1)
    assert not rule.stops("It is positive, yet", 2)
    assert not rule.stops("It is positive, yet the sentiment", 1)
    assert score_row(BENCHMARKS["fpb"], "neutral", "It is positive, yet the sentiment is neutral").correct


def test_a_possible_target_of_another_row_does_not_stop_early() -> None:
    """FinLoRA's F1 takes a wrong output for a class, and one that equals a target for that target's."""
    rule = StoppingRule.of(BENCHMARKS["fpb"], ["positive", "neutral POSITIVE outlook"], 2, restarts=False)
    assert not rule.stops("neutral POSITIVE out", 9)
    assert rule.stops("neutral positive outing, ", 9)
    assert rule.stops("neutral POSITIVE outing, ", 9)
    assert not StoppingRule.of(BENCHMARKS["fpb"], ["POSITIVE", "NEGATIVE"], 2, restarts=False).stops("POSITIVE\n\n", 9)


def test_a_label_that_is_no_rows_target_does_not_stop_early() -> None:
    """FinLoRA's label set is that of the evaluated rows: "neutral" could be followed by a label."""
    rule = StoppingRule.of(BENCHMARKS["fpb"], ["positive", "negative"], 2, restarts=False)
    assert not rule.stops("neutral\nOutput", 9)
    assert rule.stops("positive\nOutput", 9)


@pytest.mark.parametrize(
    "benchmark", [b for b in BENCHMARKS.values() if b not in STOPPING], ids=lambda benchmark: benchmark.key
)
def test_other_ways_to_read_answers_never_stop_early(benchmark: Benchmark) -> None:
    rule = StoppingRule.of(benchmark, ["A", "positive", "1"], 2, restarts=False)
    assert not any(rule.stops(text, left) for text in ("A\nOutput", "positive\nOutput", "1\nOutput") for left in (1, 9))


def test_a_marker_takes_two_tokens_unless_one_holds_it() -> None:
    assert fewest_marker_tokens(["A", "ns", "wer", ":"]) == 2
    assert fewest_marker_tokens(["Answer", ":"]) == 2
    assert fewest_marker_tokens([]) == 2
    assert fewest_marker_tokens(["a", "ĠAnswer:"]) == 1
    assert fewest_marker_tokens(["\nAnswer:\n"]) == 1
