"""Few-shot prompts: solved examples from the train part in front of every row, as in FinLoRA's 3-shot baseline.

An example is a train row's prompt and its target; blank lines separate examples and the row's own prompt, which comes
last, so FinLoRA's rule holds (what follows the last "Answer:" is the output). The examples are one common beginning of
all rows, which is read once (`fedfinlora.model.packing`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from data.catalog import Benchmark
from data.rows import Row
from data.sources import load_rows
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.model.base_checks import context_tokens
from fedfinlora.seeds import generator

SEPARATOR = "\n\n"
LOOKED_AT = 500
"""Most train rows whose length is measured for one benchmark."""

Length = Callable[[str], int]
"""Tokens of a text."""


@dataclass(frozen=True)
class ShotRows:
    """The rows of one benchmark with their examples in front, or why there are none."""

    rows: tuple[Row, ...]
    """As given, but for the prompt. Empty where `skipped` says why."""
    examples: tuple[Row, ...]
    """The train rows used, in their order in the prompt."""
    shortage: str
    """Why there are fewer examples than asked for; empty where there are as many."""
    skipped: str
    """Why the benchmark has no few-shot prompts: a score without examples is never shown as one with examples."""


def few_shot_rows(config: Config, benchmark: Benchmark, rows: Sequence[Row], length: Length | None = None) -> ShotRows:
    """`with_shots` with evaluation.shots examples from the train part of the configured data set."""
    try:
        train_rows = load_rows(config.dataset, "train", (benchmark.key,), config.seed).rows
    except UserError as error:  # no train rows at all, or bad ones with dataset.on_bad_row=stop
        if config.dataset.on_bad_row == "stop":
            raise
        return ShotRows((), (), "", f"no examples for evaluation.shots={config.evaluation.shots}: {error}")
    room_tokens = context_tokens(config.model) - benchmark.budget_tokens
    return with_shots(rows, train_rows, config.evaluation.shots, config.seed, benchmark, length, room_tokens)


def with_shots(
    rows: Sequence[Row],
    train_rows: Sequence[Row],
    shots: int,
    seed: int,
    benchmark: Benchmark,
    length: Length | None = None,
    room_tokens: int = 0,
) -> ShotRows:
    """Put the same `shots` seeded examples in front of the prompt of every row; ids and targets stay.

    No example has the prompt of a row that is evaluated; which rows those are changes nothing else in the draw. Where
    the label set is closed, examples take turns over the labels. With `length`, each example gets an equal share of
    what the longest prompt leaves of `room_tokens`, prompts that are too long by themselves aside; longer examples are
    passed over.

    Fewer usable train rows than `shots` are used as they are, with a `shortage`; without any the benchmark is
    `skipped`.
    """
    if shots == 0 or not rows:
        return ShotRows(tuple(rows), (), "", "")
    evaluated = {row.prompt.strip() for row in rows}
    distinct = _once_each(train_rows, benchmark.key)
    order = generator(seed, "shots", benchmark.key).permutation(len(distinct)).tolist()
    candidates = [distinct[index] for index in order if distinct[index].prompt.strip() not in evaluated]
    if not candidates:
        return ShotRows(
            (), (), "", f"no examples for evaluation.shots={shots}: no train row that is not evaluated itself"
        )
    share_tokens = _share_tokens(rows, shots, length, room_tokens)
    examples = _draw(candidates, shots, benchmark, length, share_tokens)
    limits = "" if length is None else f" of at most {share_tokens} tokens each next to the longest prompt"
    if not examples:
        return ShotRows(
            (), (), "", f"too long: no example{limits} for evaluation.shots={shots}. Raise model.context_tokens"
        )
    shortage = "" if len(examples) == shots else f"{len(examples)} of {shots} examples: no more train rows{limits}"
    prefix = "".join(_solved(example) for example in examples)
    return ShotRows(tuple(replace(row, prompt=prefix + row.prompt) for row in rows), tuple(examples), shortage, "")


def _solved(example: Row) -> str:
    """Prompt, one blank, target, and a blank line: "… Answer: positive", whether or not the prompt ended in a blank."""
    return f"{example.prompt.rstrip()} {example.target.strip()}{SEPARATOR}"


def _once_each(train_rows: Sequence[Row], key: str) -> list[Row]:
    """The first row of each prompt: FinLoRA's train files and dataset.equalize_tasks repeat rows."""
    first: dict[str, Row] = {}
    for row in train_rows:
        if row.task == key:
            first.setdefault(row.prompt.strip(), row)
    return list(first.values())


def _share_tokens(rows: Sequence[Row], shots: int, length: Length | None, room_tokens: int) -> int:
    """Most tokens of one example. 0 without `length`, where it is not used."""
    if length is None:
        return 0
    fitting = [tokens for tokens in map(length, [row.prompt for row in rows]) if tokens <= room_tokens]
    return (room_tokens - max(fitting, default=room_tokens)) // shots


def _draw(
    candidates: Sequence[Row], shots: int, benchmark: Benchmark, length: Length | None, share_tokens: int
) -> list[Row]:
    """Examples in the order of the candidates: each time the first one of a label that was used least."""
    waiting = list(candidates)
    used: Counter[str] = Counter()
    examples: list[Row] = []
    looks = 0

    def label(row: Row) -> str:
        return row.target.strip().lower() if benchmark.labels else ""

    while waiting and len(examples) < shots and looks < LOOKED_AT:
        least = min(used[label(row)] for row in waiting)
        place = next(place for place, row in enumerate(waiting) if used[label(row)] == least)
        row = waiting.pop(place)
        if length is not None:
            looks += 1
            if length(_solved(row)) > share_tokens:
                continue
        used[label(row)] += 1
        examples.append(row)
    return examples
