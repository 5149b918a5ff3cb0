"""Judging FLARE's answers (PIXIU: Xie et al. 2023, arXiv 2306.05443): labels with PIXIU's rule for missing answers,
numbers by exact match, entities by F1 with seqeval.

PIXIU's own figures are there next to the strict ones: `pixiu_accuracy` and `pixiu_missing` follow its evaluator
(`src/tasks/flare.py`). Difference: in stock movement it counts an answer without a label as Fall; here such an answer
is missing, and wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eval.metrics.agreement import share_of
from eval.scoring.final_answer import said
from eval.scoring.flare_answers import DECIMALS, entity_tags, scaled_number
from eval.scoring.scorer import Reading, Scorer

if TYPE_CHECKING:
    from eval.metrics.intervals import Array


class FlareLabelScorer(Scorer):
    """Right like `exact`. `pixiu_accuracy` and `pixiu_missing` are by PIXIU's rule: of the labels in their order, the
    first one that is anywhere in the text, in any letter case, is the answer; a text without one is missing and wrong.
    """

    shares = ("pixiu_accuracy", "pixiu_missing")
    by_finlora = False

    def measures(self, row: Reading, correct: bool) -> tuple[float, ...]:
        answer = pixiu_label(row.output, row.labels)
        return (answer is not None and answer == row.target.strip().lower(), answer is None)


def pixiu_label(text: str, labels: Sequence[str]) -> str | None:
    """PIXIU's reading of an answer, in small letters; None is missing.

    >>> pixiu_label("Negative, not positive", ("positive", "negative")), pixiu_label("up", ("Rise", "Fall"))
    ('positive', None)
    """
    return next((label.lower() for label in labels if label.lower() in text.lower()), None)


class FlareNumberScorer(Scorer):
    """Exact match: right if the number, rounded to five decimals as the results of FinQA's programs are, is the
    target's, with or without the scale behind it ("million"); yes and no if the same is said.

    `accuracy_any_unit` also counts a right number that is given in percent for a fraction or the other way round;
    `pixiu_accuracy` only answers that are the target letter by letter.
    """

    shares = ("accuracy_any_unit", "pixiu_accuracy")
    classes = False
    by_finlora = False

    def is_right(self, row: Reading) -> bool:
        if row.parsed is None:
            return False
        return row.parsed == row.expected or (
            isinstance(row.parsed, float) and scaled_number(said(row.output) or "") == row.expected
        )

    def measures(self, row: Reading, correct: bool) -> tuple[float, ...]:
        any_unit = correct
        if isinstance(row.parsed, float) and isinstance(row.expected, float):
            times = {round(row.parsed * factor, DECIMALS) for factor in (0.01, 100.0)}
            any_unit = correct or row.expected in times
        return (any_unit, row.output.strip() == row.target.strip())


class EntityScorer(Scorer):
    """Entity F1 as seqeval computes it (`entity_f1`, with `entity_precision` and `entity_recall`): over all rows, an
    entity counts if its words and its type are the target's. `accuracy` are rows whose every entity is right.

    A named entity is looked for in the row's text and counts at each of its places, as in PIXIU.
    """

    counts = ("entities_right", "entities_answered", "entities_true")
    classes = False
    by_finlora = False

    def is_right(self, row: Reading) -> bool:
        right, answered, true = self.measures(row, correct=False)
        return row.parsed is not None and right == answered == true

    def measures(self, row: Reading, correct: bool) -> tuple[float, ...]:
        from seqeval.metrics.sequence_labeling import get_entities

        words, _, tags = row.reference.partition("\n")
        named = [entity for entity in row.parsed if entity] if isinstance(row.parsed, list) else []
        true = set(get_entities(tags.split()))
        answered = set(get_entities(entity_tags(words.split(), named)))
        return (float(len(true & answered)), float(len(answered)), float(len(true)))

    def figures(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        """Precision, recall and F1 of all entities together (micro average); NaN where there is none to divide by."""
        right, answered, true = (totals[name] for name in self.counts)
        return {
            "entity_f1": share_of(2 * right, answered + true),
            "entity_precision": share_of(right, answered),
            "entity_recall": share_of(right, true),
        }
