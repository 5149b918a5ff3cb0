"""FinLoRA's own verdict on an answer, for comparison with published scores.

Its evaluator (`test/test_dataset.py` and `inference.py` of the repository Open-Finance-Lab/FinLoRA at commit 7e1cf82),
rule by rule:

3. The text is split on "Answer:"; the last piece, stripped, is the output (`finlora_output`).
4. FiNER and FNXL: output and target are split on ","; each piece is stripped and loses its line ends; the output is cut
   or padded
   with "" to the target's length; all pieces of all rows make one list (`finlora_pieces`).
5. The label set is the set of all targets of that list in lower case. The label that `find` locates earliest in the
   lower-case
   output is the answer; it is right if it equals the lower-case target (`finlora_score_row`).
6. F1 is in `eval.metrics.benchmark`; 7, BERTScore, in `eval.metrics.bertscore`.
8. NWGI's targets are collapsed to negative, neutral and positive, and so is the label set.

Differences. (a) Where two labels start at the same place, FinLoRA leaves the choice to the order of a Python set, which
changes with PYTHONHASHSEED; here the longest wins (then the alphabet decides), and the row is marked as ambiguous. (b)
FiNER's and FNXL's prompts end in "Output US GAAP tags:" and hold no "Answer:", so rule 3 taken literally would score
pieces of the prompt; here the output is always the generated text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data.catalog import Benchmark
from eval.scoring.parsers import parse_collapsed_sentiment


@dataclass(frozen=True, slots=True)
class FinloraPiece:
    """One entry of FinLoRA's list of outputs: a row, or one tag of a row."""

    target: str
    output: str
    correct: bool
    ambiguous: bool
    """Two or more labels start at the earliest place, so that FinLoRA's own verdict may depend on the hash seed."""


def finlora_output(text: str) -> str:
    """Rule 3 on the generated text alone: equal to the rule on prompt + text, because prompts end in "Answer:"."""
    return text.split("Answer:")[-1].strip()


def finlora_pieces(benchmark: Benchmark, target: str, output: str) -> list[tuple[str, str]]:
    """Rules 3, 4 and 8: the (target, output) pairs of one row, one pair, or one for each tag of the target."""
    answer = finlora_output(output)
    if benchmark.parser == "collapsed_sentiment":
        return [(parse_collapsed_sentiment(target, ()) or target, answer)]
    if benchmark.parser != "tag_list":
        return [(target, answer)]
    wanted, given = ([piece.strip().replace("\n", "") for piece in text.split(",")] for text in (target, answer))
    return list(zip(wanted, [*given, *[""] * len(wanted)][: len(wanted)], strict=True))


def finlora_labels(benchmark: Benchmark, targets: Sequence[str]) -> list[str]:
    """Rule 5's label set: all targets (or their pieces) of the evaluated rows in lower case, longest first, then by
    alphabet.
    """
    labels = {piece.lower() for target in targets for piece, _ in finlora_pieces(benchmark, target, "")}
    return sorted(labels, key=lambda label: (-len(label), label))


def finlora_score_row(
    benchmark: Benchmark, target: str, output: str, labels: Sequence[str]
) -> tuple[FinloraPiece, ...]:
    """The judged pieces of one row. `labels` comes from `finlora_labels` over the targets of all rows of the
    evaluation.

    Numbers follow the rule as well: the output "15.0" is read as "15.0" if that is a label, and as "5.0" if only that
    is one.
    """
    return tuple(_judge(*pair, labels) for pair in finlora_pieces(benchmark, target, output))


def finlora_scores(
    benchmark: Benchmark, targets: Sequence[str], outputs: Sequence[str]
) -> list[tuple[FinloraPiece, ...]]:
    """The judged pieces of each row of a whole evaluation."""
    labels = finlora_labels(benchmark, targets)
    return [finlora_score_row(benchmark, *pair, labels) for pair in zip(targets, outputs, strict=True)]


def _judge(target: str, output: str, labels: Sequence[str]) -> FinloraPiece:
    text = output.lower()
    starts = {label: start for label in labels if (start := text.find(label)) != -1}
    earliest = min(starts.values(), default=0)
    first = [label for label, start in starts.items() if start == earliest]
    return FinloraPiece(target, output, correct=first[:1] == [target.lower()], ambiguous=len(first) > 1)
