"""What a scorer is: it makes a `RowScore` from a row's target and answer as the benchmark's parser reads them
(`Reading`), and says which metrics summarise it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.metrics.agreement import Pair
from eval.scoring.finlora import FinloraPiece
from eval.scoring.parsers import Answer

if TYPE_CHECKING:
    from eval.metrics.intervals import Array


@dataclass(frozen=True, slots=True)
class Reading:
    """A row's target and answer, read the same way."""

    target: str
    output: str
    """The generated text, without the prompt."""
    expected: Answer
    """The canonical target."""
    parsed: Answer | None
    """The canonical answer; None if there is none (unparsed)."""
    reference: str = ""
    """`data.rows.Row.reference`."""
    labels: tuple[str, ...] = ()
    """The benchmark's closed label set."""


@dataclass(frozen=True, slots=True)
class RowScore:
    """How one row was judged."""

    expected: Answer
    parsed: Answer | None
    correct: bool | None
    """By the strict rules; None where right and wrong do not exist (BERTScore sets), or nothing was generated."""
    pairs: tuple[Pair, ...]
    """(truth, answer) of the row, or of each tag of a list: what accuracy and F1 count. A number within the tolerance
    is its truth.
    """
    measures: tuple[float, ...] = ()
    """Values of the scorer's `shares`, `means` and `counts`, in their order."""
    finlora: tuple[FinloraPiece, ...] = ()
    """FinLoRA's verdicts; () where its rules do not apply."""
    scored: bool = True
    """False where nothing was generated. Among rows with answers such a row counts as unparsed."""
    encoder: tuple[str, int] | None = None
    """BERTScore's encoder and its layer."""
    choice: str | None = None
    """The most probable label (`eval.models.choice_of`), where labels were compared by their log-probabilities."""


class Scorer:
    """Right if the answer read from the output equals the one read from the target."""

    judged = True
    """Whether answers are right or wrong: they have accuracy, F1 and FinLoRA's verdict."""
    several = False
    """Whether a row has several pairs, which metrics then count in place of rows."""
    shares: tuple[str, ...] = ()
    """Further metrics that are shares of rows: each is true or false for a row."""
    means: tuple[str, ...] = ()
    """Further metrics that are means over rows of a fraction from 0 to 1."""
    counts: tuple[str, ...] = ()
    """Numbers of a row that figures add up over rows."""
    classes = True
    """Whether answers are classes, so that they have F1 over classes."""
    by_finlora = True
    """Whether FinLoRA's rules apply as well."""
    relative_tolerance: float | None = None
    """Within which numbers are equal, where numbers are compared."""

    @property
    def measured(self) -> tuple[str, ...]:
        """What `RowScore.measures` holds."""
        return (*self.shares, *self.means, *self.counts)

    def figures(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        """Further metrics from the sums of `counts` over the rows: name -> (resamples,)."""
        return {}

    def score(self, rows: Sequence[Reading], bertscore_model: str | None) -> list[RowScore]:
        """The strict scores of all rows of an evaluation."""
        return [self._score(row) for row in rows]

    def _score(self, row: Reading) -> RowScore:
        correct = self.is_right(row)
        return RowScore(row.expected, row.parsed, correct, self.pairs(row, correct), self.measures(row, correct))

    def is_right(self, row: Reading) -> bool:
        return row.parsed is not None and row.parsed == row.expected

    def pairs(self, row: Reading, correct: bool | None) -> tuple[Pair, ...]:
        """`RowScore.pairs`; also of rows whose answer was read and judged earlier."""
        truth = str(row.expected)
        return ((truth, truth if correct else None if row.parsed is None else str(row.parsed)),)

    def measures(self, row: Reading, correct: bool) -> tuple[float, ...]:
        return ()
