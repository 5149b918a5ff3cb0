"""Multiple choice: a computed right option among the results of typical mistakes, shuffled by seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from data.sample.drawing import Draw, SampleRow

FALLBACK_FACTORS = (Decimal("1.25"), Decimal("0.8"), Decimal("1.5"), Decimal("0.6"), Decimal("2"))
"""Used when two mistakes print the same: options must differ."""


@dataclass(frozen=True)
class Problem:
    """A question whose answer is a number."""

    text: str
    right: Decimal
    wrong: tuple[Decimal, ...]
    """Results of typical mistakes, the most typical first."""
    show: Callable[[Decimal], str]
    """How an option prints its value."""


ProblemDraw = Callable[[random.Random], Problem]


def wrong_options(problem: Problem, count: int) -> list[str]:
    """`count` printed options that differ from the right one and from each other."""
    right = problem.show(problem.right)
    candidates = [*problem.wrong, *(problem.right * factor for factor in FALLBACK_FACTORS)]
    printed = [text for text in dict.fromkeys(map(problem.show, candidates)) if text != right]
    assert len(printed) >= count, f"too few different options: {printed}"
    return printed[:count]


def multiple_choice(problems: Sequence[ProblemDraw], letters: str) -> Draw:
    """A row maker: the problems take turns, and the right letter takes turns too, so that no letter is a good guess."""

    def draw(rng: random.Random, split: str, index: int) -> SampleRow:
        problem = problems[index % len(problems)](rng)
        wrong = wrong_options(problem, len(letters) - 1)
        rng.shuffle(wrong)
        place = (index + index // len(problems)) % len(letters)
        options = [*wrong[:place], problem.show(problem.right), *wrong[place:]]
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))
        context = (
            "Answer the following multiple choice question with the letter of the right option only.\n"
            f"Question: {problem.text}\n{listed}\nAnswer:"
        )
        return SampleRow(context, letters[place])

    return draw
