"""Where the figures need care, in sentences: few rows, unread answers, one answer to everything, cut prompts."""

from __future__ import annotations

from collections.abc import Sequence

from fedfinlora.report.formats import count, listed, percent, plural
from fedfinlora.report.systems import System
from fedfinlora.run.evaluation import BenchmarkMetrics

SAME_ANSWER_SHARE = 0.95
FEWEST_ANSWERS = 20
"""Of fewer rows the same answer to all may be chance."""
FEW_ROWS = 100
"""Below this a 95 % interval is wider than about 20 points."""


def cautions(systems: Sequence[System]) -> list[str]:
    """One sentence for each point, also for what was checked and is in order."""
    named = [(system, key, score) for system in systems for key, score in system.scores.items()]
    if not named:
        return []
    found = []
    few = sorted({score.n for _, _, score in named if 0 < score.n < FEW_ROWS})
    if few:
        sets = len({key for _, key, score in named if 0 < score.n < FEW_ROWS})
        found.append(
            f"Few rows: {plural(sets, 'benchmark')} with less than {FEW_ROWS} answers (as few as {few[0]}), "
            "so intervals are wide."
        )
    found += _unparsed(systems)
    found += _one_answer(systems)
    ambiguous = sum(score.ambiguous for _, _, score in named)
    if ambiguous:
        found.append(
            f"{plural(ambiguous, 'answer')} ambiguous by FinLoRA’s rules: its own verdict on them is left to chance."
        )
    metrics = [part for _, _, score in named for part in score.metrics]
    known = [item.too_long for item in metrics if item.too_long is not None]
    if known:
        long = sum(known)
        found.append(
            f"{plural(long, 'prompt')} longer than the model’s context window."
            if long
            else "No prompt was cut: all fit the context window."
        )
    encoders = {score.encoder for _, _, score in named if score.bertscore and "finbert" not in score.encoder.lower()}
    if encoders:
        found.append(
            f"BERTScore by {listed(sorted(encoders))}: not comparable with published BERTScores, which used "
            "ProsusAI/finbert."
        )
    checks = [item.decoding for item in metrics if item.decoding and item.decoding.rows_checked]
    if checks:
        checked, differ = sum(one.rows_checked for one in checks), sum(one.rows_differ for one in checks)
        found.append(f"Of {count(checked)} answers decoded again one by one, {count(differ)} differ.")
    found.append("Published figures come from another model and other rows: orientation, not comparison.")
    return found


def _one_answer(systems: Sequence[System]) -> list[str]:
    """Systems that answer nearly every row of a mixed benchmark with the same label."""
    found = []
    for system in systems:
        stuck = [key for key, score in system.scores.items() if any(map(says_one_label, score.metrics))]
        if stuck:
            found.append(
                f"{system.heading} gives one and the same label to at least {100 * SAME_ANSWER_SHARE:.0f} % of the "
                f"rows of {listed(stuck)}: accuracy is then that label’s share of the rows and says nothing of what "
                "was learned; see Matthews correlation and the confusion matrix."
            )
    return found


def says_one_label(metrics: BenchmarkMetrics) -> bool:
    """Whether one label has SAME_ANSWER_SHARE of all answers, unparsed among them, though the right ones are mixed."""
    counts = metrics.confusion.counts if metrics.confusion else ()
    total = sum(map(sum, counts))
    if total < FEWEST_ANSWERS:
        return False
    answered = max(sum(column) for column in list(zip(*counts, strict=True))[: len(counts)])
    commonest = max(map(sum, counts))
    return bool(answered >= SAME_ANSWER_SHARE * total > commonest)


def _unparsed(systems: Sequence[System]) -> list[str]:
    shares = {
        system.heading: known
        for system in systems
        if (known := [score.unparsed_share for score in system.scores.values() if score.unparsed_share is not None])
    }
    if not shares:
        return []
    if not any(map(max, shares.values())):
        return ["Every generated answer could be read."]
    means = listed([f"{heading} {percent(sum(known) / len(known))} %" for heading, known in shares.items()])
    worst = max(shares, key=lambda heading: max(shares[heading]))
    return [
        f"Answers that could not be read count as wrong. Mean over the sets: {means}; "
        f"at worst {percent(max(shares[worst]), 0)} % of one set ({worst})."
    ]
