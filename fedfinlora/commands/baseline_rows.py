"""What a baseline trains on, and how long: the rows and optimiser steps of the banks of a federated run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from client_app.own_rows import bad_train_rows, divide, train_and_held_out
from data.encode import encode_rows
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.model.base_checks import context_tokens
from fedfinlora.model.loading import Session
from fedfinlora.model.packing import Example
from fedfinlora.train.loop import (
    stretch_of_round,
    total_steps,
)


@dataclass(frozen=True)
class RunRows:
    """What a baseline trains on, and how long."""

    train: list[Example]
    held_out: list[Example]
    skipped: int
    """Bad rows in the files and rows too long for the context window."""
    steps: int
    """Optimiser steps of the whole run."""
    rows_per_step: float


RowsOf = Callable[[Config, Session], RunRows]


def pooled_rows(config: Config, session: Session) -> RunRows:
    """The rows and steps of all banks of the federated run with this configuration."""
    return rows_of_banks(config, session, range(config.banks))


def rows_of_banks(config: Config, session: Session, banks: Iterable[int]) -> RunRows:
    """The rows and steps of some of the banks."""
    dataset = config.dataset
    how = (context_tokens(config.model), dataset.on_bad_row, dataset.chat_template, dataset.answer_space)
    parts = divide(config, config.banks)
    train: list[Example] = []
    held_out: list[Example] = []
    sizes: list[int] = []
    skipped = bad_train_rows(config, config.banks)
    for index in banks:
        for_training, for_holdout = train_and_held_out(parts[index], config, f"bank-{index}")
        kept = encode_rows(session.tokenizer, for_training, *how)
        kept_out = encode_rows(session.tokenizer, for_holdout, *how)
        train += kept.examples
        held_out += kept_out.examples
        skipped += len(kept.too_long) + len(kept_out.too_long)
        sizes.append(len(kept.examples))
    if not train:
        raise UserError("No row fits the context window: raise model.context_tokens.")
    numbered = [replace(example, index=place) for place, example in enumerate(train)]
    return RunRows(numbered, held_out, skipped, *_steps_of([size for size in sizes if size], config))


def _steps_of(sizes: Sequence[int], config: Config) -> tuple[int, float]:
    """(optimiser steps, rows of a step) that take as many steps and rows as banks of these sizes do together.

    A bank with fewer rows than a step asks for takes all that it has; a pooled step is as large as the banks' are on
    average.
    """
    rounds = config.num_server_rounds
    steps = [total_steps(size, rounds, config.train) for size in sizes]
    asked = [
        stretch_of_round(1, rounds, count, size, config.train).rows_per_step
        for count, size in zip(steps, sizes, strict=True)
    ]
    if len(sizes) == 1:  # to the byte the steps of that bank
        return steps[0], asked[0]
    drawn = [  # whole rows, as the banks draw them
        math.floor(count * max(1.0, min(rows, size)) + 1e-9)
        for count, rows, size in zip(steps, asked, sizes, strict=True)
    ]
    return sum(steps), sum(drawn) / sum(steps)
