"""When can a row stop being decoded? As soon as no text that may follow can change any of its figures.

Shown for closed label sets read by `label` or `collapsed_sentiment`, whose verdicts look for the first label. The verdict stands when a
label has been found by both readings, the text does not end in the beginning of a label (a longer one could be completed) or of a list of all
labels (which is no answer, `eval.options`), and the output is not on its way to become equal to a target (FinLoRA's rule 6 takes a wrong
output for a class, and so tells such outputs apart). What is left is FinLoRA's rule 3: a second "Answer:" in the output begins it again, as
the end of a thought or an answer's own tag does for the strict reading (`eval.said`), so the tokens left in the budget must not suffice for
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data.catalog import Benchmark
from eval.options import may_become_list
from eval.said import MARKERS, said
from eval.scoring import closed_labels, finlora_labels, finlora_output, finlora_pieces, read_answer

READ_BY_FIRST_LABEL = ("label", "collapsed_sentiment")
RESTARTS = ("answer:", *MARKERS)
"""What begins an answer again, in lower case."""
BOUNDARY = 2
"""Characters behind a label that decide whether it is a whole word: "positive" against "positives" and "positive-looking"."""


@dataclass(frozen=True)
class Settling:
    """The rule for one benchmark and the rows that are evaluated."""

    benchmark: Benchmark
    labels: tuple[str, ...]
    """FinLoRA's label set: the targets of all evaluated rows in lower case (`eval.scoring.finlora_labels`)."""
    targets: tuple[str, ...]
    """Those targets as rule 6 compares outputs with them: as they are, NWGI's collapsed."""
    marker_tokens: int
    """Fewest tokens in which a model could begin its answer anew."""
    restarts: bool
    """Whether that is reckoned with (evaluation.stop=exact)."""

    @classmethod
    def of(cls, benchmark: Benchmark, targets: Sequence[str], marker_tokens: int, restarts: bool) -> Settling:
        """The rule for rows with these targets."""
        compared = {piece for target in targets for piece, _ in finlora_pieces(benchmark, target, "")}
        return cls(
            benchmark, tuple(finlora_labels(benchmark, targets)), tuple(sorted(compared)), marker_tokens, restarts=restarts
        )

    def settled(self, text: str, tokens_left: int) -> bool:
        """Whether `text`, decoded so far, gives the figures that it would give with anything that may follow."""
        if self.benchmark.parser not in READ_BY_FIRST_LABEL or not text.isascii():
            return False
        begun = any(text.lower().endswith(marker[:size]) for marker in RESTARTS for size in range(1, len(marker)))
        if self.restarts and tokens_left >= (1 if begun else self.marker_tokens):
            return False
        output = finlora_output(text)
        if not any(label in output.lower() for label in self.labels) or self._may_complete(text.lower()):
            return False
        if any(target.startswith(output) for target in self.targets):
            return False
        # The honest reading needs whole words: what follows its label must be there too.
        answer = read_answer(self.benchmark, text[:-BOUNDARY])
        if answer is None or answer != read_answer(self.benchmark, text):
            return False
        return not may_become_list(said(text) or "", closed_labels(self.benchmark))

    def _may_complete(self, lower: str) -> bool:
        """Whether the text ends in a label or the beginning of one."""
        labels = (*self.labels, *(label.lower() for label in self.benchmark.labels))
        return any(lower.endswith(label[:size]) for label in labels for size in range(1, len(label) + 1))


def fewest_marker_tokens(vocabulary: Iterable[str]) -> int:
    """Fewest tokens that can spell a text with one of RESTARTS in it: 1 where a single token holds it, else 2.

    Two is a lower bound for everything else, and the safe side: the rule only asks whether so many are left.
    """
    return 1 if any(marker in token.lower() for token in vocabulary for marker in RESTARTS) else 2
