"""Which rows of a data set are a bank's: its part of a simulated set, or its own files; which of them a round may use,
and which are held out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from client_app.facts import BankFacts
from client_app.held_out import drawn, once
from client_app.privacy_plan import declared_size
from data.catalog import select
from data.partition import hold_out, partition
from data.rows import Row
from data.sources import layout_of, load_rows
from data.validation import set_aside
from fedfinlora.config.dataset import DatasetConfig, PartitionConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.seeds import derive_seed, generator

_SetAside = tuple[tuple[str, ...], int]
"""(Benchmarks, rows of each) of the public validation rows."""
SAMPLE_KEY = "sample.key"
"""In a deployed bank's state folder."""


def bank_dataset(dataset: DatasetConfig, facts: BankFacts) -> DatasetConfig:
    """The data set that this bank reads: its own folder if it has one, else the one that the server named."""
    if not facts.data_path:
        return dataset
    path = Path(facts.data_path).expanduser()
    return replace(dataset, source=layout_of(path), root=str(path.absolute()), on_bad_row="skip", columns=facts.columns)


def divide(config: Config, banks: int) -> list[list[Row]]:
    """The train rows of each simulated bank, after public validation rows are set aside."""
    return [list(part) for part in _divided_for(config, banks).parts]


def bad_train_rows(config: Config, banks: int) -> int:
    """How many lines of the files that `divide` reads are no rows."""
    return _divided_for(config, banks).bad_rows


class _Divided(NamedTuple):
    parts: tuple[tuple[Row, ...], ...]
    bad_rows: int


def _divided_for(config: Config, banks: int) -> _Divided:
    return _divided(config.dataset, config.partition, banks, config.seed, set_aside_by(config))


def set_aside_by(config: Config) -> _SetAside:
    """What decides which rows are set aside; the same for all configurations that set none aside."""
    count = config.evaluation.validation_rows
    return (tuple(benchmark.key for benchmark in select(config.evaluation.benchmarks)), count) if count else ((), 0)


@lru_cache(maxsize=2)
def _divided(dataset: DatasetConfig, how: PartitionConfig, banks: int, seed: int, validation: _SetAside) -> _Divided:
    loaded = load_rows(dataset, "train", dataset.tasks, seed)
    rest, _ = set_aside(loaded.rows, *validation, seed)
    return _Divided(tuple(tuple(part) for part in partition(rest, banks, how, seed)), len(loaded.bad_rows))


def own_rows(config: Config, facts: BankFacts) -> tuple[list[Row], int]:
    """(rows, bad rows) of one bank: its part of the simulated set, or all of the files in its own folder, which no one
    else reads.
    """
    if facts.banks:
        parts, bad_rows = _divided_for(config, facts.banks)
        return list(parts[facts.index]), bad_rows
    dataset = bank_dataset(config.dataset, facts)
    if config.privacy.in_the_bank:  # `sampled_rows` takes its part
        dataset = replace(dataset, max_rows_per_task=0)
    loaded = load_rows(dataset, "train", dataset.tasks, config.seed)
    return list(loaded.rows), len(loaded.bad_rows)


def whole_data_set(config: Config, facts: BankFacts, rows: Sequence[Row]) -> Sequence[Row]:
    """All train rows of the bank: those of a simulated bank as they are, a bank's own files whole, also where a run
    samples them.
    """
    if facts.banks:
        return rows
    dataset = replace(bank_dataset(config.dataset, facts), max_rows_per_task=0, tasks=())
    return load_rows(dataset, "train", (), config.seed).rows


def sampled_rows(rows: Sequence[Row], config: Config, facts: BankFacts, declared: Mapping[str, int]) -> list[Row]:
    """The part of a bank's rows that dataset.max_rows_per_task and train.max_rows leave to a private round.

    Each row is in or out by its own prompt and a key: in a sample of a fixed size one row more would change which
    others are in it, and so the sum by far more than its own clipped gradient. A deployed bank's key is secret, so that
    no server can single rows out. The limits are shares of the declared sizes, so a sample has about so many rows.
    """
    per_task = 0 if facts.banks else config.dataset.max_rows_per_task
    whole = declared_size(config, declared, is_sample=bool(facts.banks), max_rows=0)
    overall = config.train.max_rows / whole if config.train.max_rows and whole else 1.0
    if not per_task and overall >= 1.0:
        return list(rows)
    key = _sample_key(facts) if facts.deployed else config.seed

    def takes_part(row: Row) -> bool:
        of_task = per_task / declared[row.task] if per_task and declared.get(row.task) else 1.0
        rate = min(of_task, 1.0) * min(overall, 1.0)
        return rate >= 1.0 or derive_seed(key, "private sample", facts.name, row.prompt) < rate * 2**63

    return [row for row in rows if takes_part(row)]


def _sample_key(facts: BankFacts) -> int:
    """The bank's secret key for samples of its rows, made once, in its state folder. UserError where it cannot be
    kept.
    """
    file = facts.state_folder / SAMPLE_KEY
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with (
            contextlib.suppress(FileExistsError),
            open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream,
        ):
            stream.write(os.urandom(32))
        key = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read or made ({error.strerror}).") from error
    if len(key) != 32:
        raise UserError(f"{file} is damaged: remove it, another one is made.")
    return int.from_bytes(key, "big")


def train_and_held_out(rows: list[Row], config: Config, bank: str) -> tuple[list[Row], list[Row]]:
    """(train rows, held-out rows) of one bank, after train.max_rows."""
    limit = config.train.max_rows
    if limit and len(rows) > limit:
        chosen = generator(config.seed, "max rows", bank).permutation(len(rows))[:limit]
        rows = [rows[index] for index in sorted(chosen.tolist())]
    if not config.train.holdout_max_rows or not config.train.holdout_fraction:
        return rows, []
    kept, held_out = hold_out(rows, config.train.holdout_fraction, config.train.holdout_max_rows, config.seed, bank)
    return list(kept), list(held_out)


def own_split(rows: Sequence[Row], config: Config, facts: BankFacts) -> tuple[list[Row], list[Row]]:
    """(train rows, held-out rows) of a deployed bank, which draws the latter from all of its rows by its own key
    (`client_app.held_out`).
    """
    limited, _ = train_and_held_out(
        list(rows), replace(config, train=replace(config.train, holdout_max_rows=0)), facts.name
    )
    if not config.train.holdout_max_rows or not config.train.holdout_fraction:
        return limited, []
    whole = whole_data_set(config, facts, rows)
    names = drawn(whole, _sample_key(facts), facts.min_rows)
    kept = [row for row in limited if (row.task, row.prompt) not in names]
    return kept, once(whole, names, config.dataset.tasks)
