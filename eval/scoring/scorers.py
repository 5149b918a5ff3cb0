"""Was this answer right? One class for each way to judge an answer strictly, in SCORERS; the catalogue names one for
each benchmark.

`eval.scoring.row_score` does the reading, and adds FinLoRA's verdict. To add a scorer: a subclass of `Scorer`
(`eval.scoring.scorer`) here, and its name in SCORERS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from eval.metrics.agreement import Pair
from eval.scoring.arithmetic import value_of
from eval.scoring.final_answer import said
from eval.scoring.finlora import finlora_output
from eval.scoring.flare import EntityScorer, FlareLabelScorer, FlareNumberScorer
from eval.scoring.parsers import Answer
from eval.scoring.scorer import Reading, RowScore, Scorer
from eval.scoring.tags import parse_tag, split_tags

__all__ = ["RELATIVE_TOLERANCE", "SCORERS", "Reading", "RowScore", "Scorer", "plain_text"]

RELATIVE_TOLERANCE = 1e-4
"""A number is right if it is within this share of the target's size. Zero has to be met exactly."""


class NumberScorer(Scorer):
    """Right if the number is within the relative tolerance of the target's; a target of 0 has to be met exactly.

    `accuracy_exact` counts the numbers that are equal without tolerance.
    """

    shares = ("accuracy_exact",)
    relative_tolerance = RELATIVE_TOLERANCE

    def is_right(self, row: Reading) -> bool:
        if not isinstance(row.expected, float):
            return super().is_right(row)
        return isinstance(row.parsed, float) and _close(row.parsed, row.expected)

    def measures(self, row: Reading, correct: bool) -> tuple[float, ...]:
        return (row.parsed == row.expected,)


class FormulaValueScorer(Scorer):
    """Right like `exact`; `value_accuracy` also counts other formulas of numbers whose value is within the relative
    tolerance.
    """

    shares = ("value_accuracy",)
    relative_tolerance = RELATIVE_TOLERANCE

    def measures(self, row: Reading, correct: bool) -> tuple[float, ...]:
        return (correct or _same_value(row.expected, row.parsed),)


class TagListScorer(Scorer):
    """Each tag of the target is right if the tag at its place in the output equals it; a row is right if all of its
    tags are.

    Tags beyond the target's are ignored; a place of the target that holds no tag is compared as text.
    """

    several = True
    shares = ("row_accuracy",)

    def is_right(self, row: Reading) -> bool:
        return all(truth == tag for truth, tag in self.pairs(row, correct=None))

    def pairs(self, row: Reading, correct: bool | None) -> tuple[Pair, ...]:
        wanted = split_tags(row.target)
        beyond = [None] * len(wanted)
        tags = [*(row.parsed if isinstance(row.parsed, list) else ()), *beyond]
        texts = [*split_tags(said(row.output) or ""), *beyond]
        return tuple(_tag_pair(*place) for place in zip(wanted, tags, texts, strict=False))

    def measures(self, row: Reading, correct: bool) -> tuple[float, ...]:
        return (correct,)


class BertScorer(Scorer):
    """Neither right nor wrong: BERTScore precision, recall and F1 of the output against the target."""

    judged = False
    means = ("bertscore_precision", "bertscore_recall", "bertscore_f1")

    def score(self, rows: Sequence[Reading], bertscore_model: str | None) -> list[RowScore]:
        scores = [RowScore(row.expected, row.parsed, None, self.pairs(row, None)) for row in rows]
        if bertscore_model is None:
            return scores
        from eval.metrics.bertscore import bertscore

        found = bertscore([finlora_output(row.output) for row in rows], [row.target for row in rows], bertscore_model)
        return [
            replace(score, measures=measures, encoder=found.encoder)
            for score, measures in zip(scores, found.scores, strict=True)
        ]

    def pairs(self, row: Reading, correct: bool | None) -> tuple[Pair, ...]:
        return (("", None if row.parsed is None else ""),)


def _tag_pair(wanted: str, tag: str | None, text: str | None) -> Pair:
    """(true tag, answered tag) at one place of a list, where `text` is what the output holds there."""
    truth = parse_tag(wanted)
    if truth is not None:
        return truth, tag
    truth = plain_text(wanted)
    return truth, truth if truth and plain_text(text or "") == truth else tag


def _same_value(expected: Answer, parsed: Answer | None) -> bool:
    """Whether both are formulas of numbers (`eval.scoring.arithmetic.value_of`) and their values are within the
    tolerance.
    """
    if not isinstance(expected, str) or not isinstance(parsed, str):
        return False
    wanted, given = value_of(expected), value_of(parsed)
    return wanted is not None and given is not None and _close(given, wanted)


def _close(given: float, wanted: float) -> bool:
    return abs(given - wanted) <= RELATIVE_TOLERANCE * abs(wanted)


def plain_text(text: str) -> str:
    """The first line that is not blank, stripped, without regard to case; "" if there is none."""
    return next((line.strip().casefold() for line in text.splitlines() if line.strip()), "")


SCORERS: dict[str, Scorer] = {
    "exact": Scorer(),
    "number": NumberScorer(),
    "formula_value": FormulaValueScorer(),
    "tag_list": TagListScorer(),
    "bertscore": BertScorer(),
    "flare_label": FlareLabelScorer(),
    "flare_number": FlareNumberScorer(),
    "entities": EntityScorer(),
}
"""Scorer name, as a benchmark's entry gives it -> the scorer."""
