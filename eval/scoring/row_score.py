"""A row's answer, read and judged once: generated text -> `eval.scoring.scorers.RowScore`. Metrics summarise these, and
files keep them.

It is judged twice: strictly, by the answer that the benchmark's parser reads, and by FinLoRA's rules on the raw text
(`eval.scoring.finlora`). Nothing here loads or runs a model under test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from data.catalog import Benchmark
from eval.scoring.final_answer import said
from eval.scoring.finlora import FinloraPiece, finlora_scores
from eval.scoring.parsers import PARSERS, Answer
from eval.scoring.scorers import SCORERS, Reading, RowScore, plain_text


def read_answer(benchmark: Benchmark, text: str) -> Answer | None:
    """The canonical answer in a text, or None; thoughts and wrappings are left aside (`eval.scoring.final_answer`)."""
    answer = said(text)
    return None if answer is None else PARSERS[benchmark.parser](answer, benchmark.labels)


def closed_labels(benchmark: Benchmark) -> tuple[str, ...]:
    """The labels as answers are read, each once: of NWGI's seven levels the three they collapse to. () where answers
    are open.
    """
    return tuple(dict.fromkeys(str(read_answer(benchmark, label) or label) for label in benchmark.labels))


def read_row(benchmark: Benchmark, target: str, output: str, reference: str = "") -> Reading:
    """Read a target and an answer by the benchmark's parser.

    A target that the parser cannot read (a value where a tag should be, say) is compared as its first line of text,
    without regard to case; any other answer stays what the parser reads.
    """
    expected, parsed = read_answer(benchmark, target), read_answer(benchmark, output)
    if expected is None:
        expected = plain_text(target)
        if expected and plain_text(said(output) or "") == expected:
            parsed = expected
    return Reading(target, output, expected, parsed, reference, benchmark.labels)


def score_answers(
    benchmark: Benchmark,
    targets: Sequence[str],
    outputs: Sequence[str | None],
    choices: Sequence[str | None] | None = None,
    bertscore_model: str | None = "auto",
    references: Sequence[str] = (),
) -> list[RowScore]:
    """Read and judge the rows of one evaluation.

    `outputs` are generated texts without their prompts, None where nothing was generated; `choices` the most probable
    labels, where they were compared. `bertscore_model` is used by BERTScore sets only
    (`eval.metrics.bertscore.find_encoder`); None leaves their scores out. `references` are those of the rows, where
    they have any.
    """
    known_rows = zip(targets, outputs, references or [""] * len(targets), strict=True)
    rows = [read_row(benchmark, target, output or "", reference) for target, output, reference in known_rows]
    written = any(output is not None for output in outputs)
    scores = SCORERS[benchmark.scorer].score(rows, bertscore_model if written else None)
    verdicts = finlora_verdicts(benchmark, targets, outputs)
    known = zip(scores, outputs, verdicts, choices or [None] * len(rows), strict=True)
    return [
        replace(
            score,
            correct=None if output is None else score.correct,
            finlora=verdict,
            choice=choice,
            scored=output is not None,
        )
        for score, output, verdict, choice in known
    ]


def finlora_verdicts(
    benchmark: Benchmark, targets: Sequence[str], outputs: Sequence[str | None]
) -> list[tuple[FinloraPiece, ...]]:
    """FinLoRA's verdicts on each row, by the label set of the rows given; () where its rules do not apply, or nothing
    was generated.
    """
    scorer = SCORERS[benchmark.scorer]
    if not (scorer.judged and scorer.by_finlora) or all(output is None for output in outputs):
        return [()] * len(targets)
    return finlora_scores(benchmark, targets, [output or "" for output in outputs])
