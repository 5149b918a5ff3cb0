"""Was this answer right? Twice: by FinLoRA's rules, so that scores can stand beside the published ones, and honestly.

FinLoRA's evaluator (`test/test_dataset.py` and `inference.py` of its repository at commit 7e1cf82), rule by rule:

3. The text is split on "Answer:"; the last piece, stripped, is the output (`finlora_output`).
4. FiNER and FNXL: output and target are split on ","; each piece is stripped and loses its line ends; the output is cut or padded
   with "" to the target's length; all pieces of all rows make one list (`finlora_pieces`).
5. The label set is the set of all targets of that list in lower case. The label that `find` locates earliest in the lower-case
   output is the answer; it is right if it equals the lower-case target (`finlora_score_row`).
6. F1 is in `eval.metrics.finlora_f1`; 7, BERTScore, in `eval.bertscore`.
8. NWGI's targets are collapsed to negative, neutral and positive, and so is the label set.

Deviations. (a) Where two labels start at the same place, FinLoRA leaves the choice to the order of a Python set, which changes with
PYTHONHASHSEED; here the longest wins (then the alphabet decides), and the row is marked as ambiguous. (b) FiNER's and FNXL's
prompts end in "Output US GAAP tags:" and hold no "Answer:", so rule 3 taken literally would score pieces of the prompt; here the
output is always the generated text.

Nothing in this module loads or runs a model, and nothing depends on how the outputs were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data.catalog import Benchmark
from eval.parsers import PARSERS, Answer, parse_collapsed_sentiment

RELATIVE_TOLERANCE = 1e-4
"""A number is right if it is within this share of the target's size. Zero has to be met exactly."""


# --- the honest reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowScore:
    """How one output was read and judged."""

    parsed: Answer | None
    """The canonical answer; None if there is none (unparsed)."""
    expected: Answer
    """The target, read the same way."""
    correct: bool | None
    """None where right and wrong do not exist (BERTScore sets)."""
    exact: bool | None = None
    """Numbers only: equal without tolerance."""
    tag_hits: tuple[bool, ...] = ()
    """Tag lists only: one entry for each tag of the target; tags beyond them are ignored, as in FinLoRA."""


def read_answer(benchmark: Benchmark, text: str) -> Answer | None:
    """The canonical answer in a text, or None."""
    return PARSERS[benchmark.parser](text, benchmark.labels)


def score_row(benchmark: Benchmark, target: str, output: str) -> RowScore:
    """Read and judge one generated text (without its prompt).

    A target that the benchmark's own parser cannot read as a whole (a value among the tags, say) is compared as its first line
    of text, without regard to case.
    """
    parsed, expected = read_answer(benchmark, output), read_answer(benchmark, target)
    if expected is None or (isinstance(expected, list) and None in expected):
        expected, parsed = plain_text(target) or "", plain_text(output)
    if benchmark.scorer == "bertscore":
        return RowScore(parsed, expected, correct=None)
    if isinstance(expected, float):
        close = isinstance(parsed, float) and abs(parsed - expected) <= RELATIVE_TOLERANCE * abs(expected)
        return RowScore(parsed, expected, correct=close, exact=parsed == expected)
    if isinstance(expected, list):
        given = parsed if isinstance(parsed, list) else []
        given = [*given, *[None] * len(expected)][: len(expected)]
        hits = tuple(tag == wanted for tag, wanted in zip(given, expected, strict=True))
        return RowScore(parsed, expected, correct=all(hits), tag_hits=hits)
    return RowScore(parsed, expected, correct=parsed is not None and parsed == expected)


def plain_text(text: str) -> str | None:
    """The first line that is not blank, stripped, without regard to case; None if there is none."""
    return next((line.strip().casefold() for line in text.splitlines() if line.strip()), None)


# --- FinLoRA's reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
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
    if benchmark.scorer != "tag_list":
        return [(target, answer)]
    wanted, given = ([piece.strip().replace("\n", "") for piece in text.split(",")] for text in (target, answer))
    return list(zip(wanted, [*given, *[""] * len(wanted)][: len(wanted)], strict=True))


def finlora_labels(benchmark: Benchmark, targets: Sequence[str]) -> list[str]:
    """Rule 5's label set: all targets (or their pieces) of the evaluated rows in lower case, longest first, then by alphabet."""
    labels = {piece.lower() for target in targets for piece, _ in finlora_pieces(benchmark, target, "")}
    return sorted(labels, key=lambda label: (-len(label), label))


def finlora_score_row(benchmark: Benchmark, target: str, output: str, labels: Sequence[str]) -> list[FinloraPiece]:
    """The judged pieces of one row. `labels` comes from `finlora_labels` over the targets of all rows of the evaluation.

    Numbers follow the rule as well: the output "15.0" is read as "15.0" if that is a label, and as "5.0" if only that is one.
    """
    return [_judge(*pair, labels) for pair in finlora_pieces(benchmark, target, output)]


def finlora_scores(benchmark: Benchmark, targets: Sequence[str], outputs: Sequence[str]) -> list[list[FinloraPiece]]:
    """The judged pieces of each row of a whole evaluation."""
    labels = finlora_labels(benchmark, targets)
    return [finlora_score_row(benchmark, *pair, labels) for pair in zip(targets, outputs, strict=True)]


def _judge(target: str, output: str, labels: Sequence[str]) -> FinloraPiece:
    text = output.lower()
    starts = {label: start for label in labels if (start := text.find(label)) != -1}
    earliest = min(starts.values(), default=0)
    first = [label for label, start in starts.items() if start == earliest]
    return FinloraPiece(target, output, correct=first[:1] == [target.lower()], ambiguous=len(first) > 1)
