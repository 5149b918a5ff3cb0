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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from data.catalog import Benchmark
from eval.arithmetic import value_of
from eval.parsers import PARSERS, Answer, parse_collapsed_sentiment, parse_tag, split_tags
from eval.said import said

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
    value_correct: bool | None = None
    """Benchmarks judged by value only: the formula is right, or another one of the same value."""
    tag_pairs: tuple[tuple[str, str | None], ...] = ()
    """Tag lists only: (tag, answered tag or None) for each tag of the target; tags beyond them are ignored, as in FinLoRA."""

    @property
    def tag_hits(self) -> tuple[bool, ...]:
        """Tag lists only: whether each tag of the target was answered."""
        return tuple(wanted == given for wanted, given in self.tag_pairs)


def read_answer(benchmark: Benchmark, text: str) -> Answer | None:
    """The canonical answer in a text, or None; thoughts and wrappings are left aside (`eval.said`)."""
    answer = said(text)
    return None if answer is None else PARSERS[benchmark.parser](answer, benchmark.labels)


def closed_labels(benchmark: Benchmark) -> tuple[str, ...]:
    """The labels as answers are read, each once: of NWGI's seven levels the three they collapse to. () where answers are open."""
    return tuple(dict.fromkeys(str(read_answer(benchmark, label) or label) for label in benchmark.labels))


def score_row(benchmark: Benchmark, target: str, output: str) -> RowScore:
    """Read and judge one generated text (without its prompt).

    A target that the benchmark's own parser cannot read (a value where a tag should be, say) is compared as its first line of text,
    without regard to case; any other answer stays what the parser reads.
    """
    score = SCORERS[benchmark.scorer](*_read_alike(benchmark, target, output), target, said(output) or "")
    if benchmark.judged_by_value:
        return replace(score, value_correct=bool(score.correct) or _same_value(score.expected, score.parsed))
    return score


def _read_alike(benchmark: Benchmark, target: str, output: str) -> tuple[Answer, Answer | None]:
    """(expected, parsed)."""
    parsed, expected = read_answer(benchmark, output), read_answer(benchmark, target)
    if expected is not None:
        return expected, parsed
    expected, answer = plain_text(target) or "", plain_text(said(output) or "")
    return expected, (answer if answer == expected else parsed)


def _score_exact(expected: Answer, parsed: Answer | None, target: str, output: str) -> RowScore:
    """Right if the answer read from the output equals the one read from the target."""
    return RowScore(parsed, expected, correct=parsed is not None and parsed == expected)


def _score_number(expected: Answer, parsed: Answer | None, target: str, output: str) -> RowScore:
    """Right if the number is within the relative tolerance of the target's; a target of 0 has to be met exactly.

    `exact` says whether it is equal without tolerance.
    """
    if not isinstance(expected, float):
        return replace(_score_exact(expected, parsed, target, output), exact=parsed == expected)
    close = isinstance(parsed, float) and _close(parsed, expected)
    return RowScore(parsed, expected, correct=close, exact=parsed == expected)


def _score_tag_list(expected: Answer, parsed: Answer | None, target: str, output: str) -> RowScore:
    """Each tag of the target is right if the tag at its place in the output equals it; a row is right if all of its tags are.

    Tags beyond the target's are ignored; a place of the target that holds no tag is compared as text.
    """
    wanted, given = split_tags(target), split_tags(output)
    pairs: list[tuple[str, str | None]] = []
    for place, piece in enumerate(wanted):
        answer = given[place] if place < len(given) else ""
        truth, tag = parse_tag(piece), parse_tag(answer)
        if truth is None:
            truth = plain_text(piece) or ""
            tag = truth if truth and plain_text(answer) == truth else tag
        pairs.append((truth, tag))
    return RowScore(parsed, expected, correct=all(truth == tag for truth, tag in pairs), tag_pairs=tuple(pairs))


def _score_bertscore(expected: Answer, parsed: Answer | None, target: str, output: str) -> RowScore:
    """Neither right nor wrong: BERTScore precision, recall and F1 of the output against the target."""
    return RowScore(parsed, expected, correct=None)


SCORERS: dict[str, Callable[[Answer, Answer | None, str, str], RowScore]] = {
    "exact": _score_exact,
    "number": _score_number,
    "tag_list": _score_tag_list,
    "bertscore": _score_bertscore,
}
"""Scorer name, as a benchmark's entry gives it -> function of (expected, parsed, target, output)."""


def _same_value(expected: Answer, parsed: Answer | None) -> bool:
    """Whether both are formulas of numbers (`eval.arithmetic.value_of`) and their values are within the tolerance."""
    if not isinstance(expected, str) or not isinstance(parsed, str):
        return False
    wanted, given = value_of(expected), value_of(parsed)
    return wanted is not None and given is not None and _close(given, wanted)


def _close(given: float, wanted: float) -> bool:
    return abs(given - wanted) <= RELATIVE_TOLERANCE * abs(wanted)


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
