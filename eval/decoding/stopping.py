"""A row stops being decoded as soon as no text that may follow can change any of its figures.

Shown for closed label sets read by `label` or `collapsed_sentiment`, whose verdicts look for the first label. The
verdict is final when four things hold. A label has been found by both readings. The text does not end in the beginning
of a label (a longer one could be completed) or of a list of options (which decides nothing, `eval.scoring.options`).
Nothing in it could still strike the label out or give it a score. The output cannot become equal to a target
(FinLoRA's rule 6 takes a wrong output for a class, and so distinguishes such outputs). What is left is FinLoRA's
rule 3: a second "Answer:" in the output begins it again, as the end of a thought, an answer's own tag
(`eval.scoring.final_answer`) or a word that names the answer (`eval.scoring.parsers.LEADS`) does for the strict
reading. So the tokens left in the budget must not suffice for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data.catalog import Benchmark
from eval.scoring.final_answer import MARKERS, said
from eval.scoring.finlora import finlora_labels, finlora_output, finlora_pieces
from eval.scoring.options import may_become_denial, may_become_list, without_denials
from eval.scoring.parsers import LAST_LINES, LEADS
from eval.scoring.row_score import closed_labels, read_answer

READ_BY_FIRST_LABEL = ("label", "collapsed_sentiment")
RESTARTS = ("answer:", *MARKERS)
"""What begins an answer again, in lower case."""
NAMING = (*LEADS, *LAST_LINES)
"""What names another label for the answer, in lower case; the label takes one more token."""
BOUNDARY = 2
"""Characters behind a label that decide whether it is a whole word: "positive" against "positives" and
"positive-looking".
"""


@dataclass(frozen=True)
class StoppingRule:
    """The rule for one benchmark and the rows that are evaluated."""

    benchmark: Benchmark
    labels: tuple[str, ...]
    """FinLoRA's label set: the targets of all evaluated rows in lower case (`eval.scoring.finlora.finlora_labels`)."""
    targets: tuple[str, ...]
    """Those targets as rule 6 compares outputs with them: as they are, NWGI's collapsed."""
    marker_tokens: int
    """Fewest tokens in which a model could begin its answer again."""
    restarts: bool
    """Whether that is reckoned with (evaluation.stop=exact)."""

    @classmethod
    def of(cls, benchmark: Benchmark, targets: Sequence[str], marker_tokens: int, restarts: bool) -> StoppingRule:
        """The rule for rows with these targets."""
        compared = {piece for target in targets for piece, _ in finlora_pieces(benchmark, target, "")}
        return cls(
            benchmark,
            tuple(finlora_labels(benchmark, targets)),
            tuple(sorted(compared)),
            marker_tokens,
            restarts=restarts,
        )

    def stops(self, text: str, tokens_left: int) -> bool:
        """Whether `text`, decoded so far, gives the figures that it would give with anything that may follow."""
        if self.benchmark.parser not in READ_BY_FIRST_LABEL or not text.isascii():
            return False
        if self.restarts and tokens_left >= (1 if _ends_in_begun_marker(text.lower()) else self.marker_tokens):
            return False
        output = finlora_output(text)
        if not any(label in output.lower() for label in self.labels) or self._may_complete(text.lower()):
            return False
        if any(target.startswith(output) for target in self.targets):
            return False
        # The strict reading needs whole words: what follows its label must be there too.
        answer = read_answer(self.benchmark, text[:-BOUNDARY])
        if answer is None or answer != read_answer(self.benchmark, text):
            return False
        final, labels = said(text) or "", closed_labels(self.benchmark)
        if any(name in final.lower() for name in NAMING) or text.endswith("_") or may_become_denial(final, labels):
            return False
        return not may_become_list(without_denials(final, labels), labels)

    def _may_complete(self, lower: str) -> bool:
        """Whether the text ends in a label or the beginning of one."""
        labels = (*self.labels, *(label.lower() for label in self.benchmark.labels))
        return any(lower.endswith(label[:size]) for label in labels for size in range(1, len(label) + 1))


def _ends_in_begun_marker(lower: str) -> bool:
    """Whether a text ends in the beginning of one of RESTARTS.

    >>> _ends_in_begun_marker("positive. the answ"), _ends_in_begun_marker("positive it is")
    (True, False)
    """
    return any(lower.endswith(marker[:size]) for marker in RESTARTS for size in range(1, len(marker)))


def fewest_marker_tokens(vocabulary: Iterable[str]) -> int:
    """Fewest tokens that can spell a text with one of RESTARTS in it: 1 where a single token holds it, else 2.

    Two is a lower bound, and the safe side.
    """
    return 1 if any(marker in token.lower() for token in vocabulary for marker in RESTARTS) else 2
