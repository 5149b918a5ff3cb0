"""`bench ledger`: seconds of a booking and bytes on the disk with 100,000 rows after 1,000 rounds.

Two ledgers: every round on the same rows, and one per cent of the rows, drawn at random, replaced by new ones before
each round. The rounds before the measured ones are written through the ledger's own chain, without the sums for each;
then whole bookings are timed, with rows that are hashed in them and Poisson-sampled steps, so that the accountant is
asked too.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedfinlora.errors import ConfigError
from fedfinlora.privacy.accounting import Steps, epsilon
from fedfinlora.privacy.cohorts import Rows, cohort_of, hash_rows
from fedfinlora.privacy.ledger import Spending, book
from fedfinlora.privacy.ledger_chain import Entry, opened
from fedfinlora.seeds import generator

MEASURED = 5
STEPS, DELTA = Steps(0.05, 2.0, 1), 1e-6


@dataclass(frozen=True)
class LedgerBench:
    """The sizes that can be given as key=value."""

    rows: int = 100_000
    rounds: int = 1_000
    """Before the measured ones."""


class _ChangingRows:
    """Texts of rows, some of which are replaced by new ones at each turn."""

    def __init__(self, sizes: LedgerBench, replaced: int) -> None:
        self.texts = [f"row {number}" for number in range(sizes.rows)]
        self.replaced, self.turns, self.draw = replaced, 0, generator(0, "bench ledger")

    def change(self) -> None:
        """Replace some."""
        self.turns += 1
        for place in self.draw.choice(len(self.texts), self.replaced, replace=False).tolist():
            self.texts[place] = f"row {place} of round {self.turns}"

    def rows(self) -> Rows:
        """All of now."""
        return Rows(tuple(self.texts))


def bench_ledger(overrides: Sequence[str]) -> dict[str, Any]:
    """Seconds a booking (the median of the last ones), on the clock and of the processor, and bytes on the disk, of
    both ledgers.
    """
    sizes = _sizes(overrides)
    ledgers = {
        name: _measured(sizes, replaced)
        for name, replaced in (("same_rows", 0), ("one_per_cent_new", sizes.rows // 100))
    }
    started = time.monotonic()
    epsilon([Steps(STEPS.sampling_rate, STEPS.noise_multiplier, sizes.rounds + 2 * MEASURED)], DELTA)
    return {"rows": sizes.rows, "rounds": sizes.rounds, **ledgers, "accountant_s": time.monotonic() - started}


def _measured(sizes: LedgerBench, replaced: int) -> dict[str, Any]:
    changing, seconds, processor = _ChangingRows(sizes, replaced), [], []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "ledger"
        _fill(home, changing, sizes.rounds)
        for number in range(sizes.rounds + 1, sizes.rounds + MEASURED + 1):
            changing.change()
            rows, started, used = changing.rows(), time.monotonic(), time.process_time()
            book(
                home,
                rows,
                Spending("bench", number, "north", "bench", "example", STEPS),
                delta=DELTA,
                budget_epsilon=8.0,
            )
            seconds.append(time.monotonic() - started)
            processor.append(time.process_time() - used)
        files = [file for file in home.rglob("*") if file.is_file()]
        return {
            "booking_s": statistics.median(seconds),
            "booking_range_s": [min(seconds), max(seconds)],
            "booking_processor_s": statistics.median(processor),
            "size_bytes": sum(file.stat().st_size for file in files),
            "index_bytes": (home / "index").stat().st_size,
            "cohort_files": sum(file.parent.name == "cohorts" for file in files),
        }


def _fill(home: Path, changing: _ChangingRows, rounds: int) -> None:
    """Write the rounds before the measured ones."""
    with opened(home) as ledger:
        for number in range(1, rounds + 1):
            if number == 1 or changing.replaced:
                changing.change()
                hashed = hash_rows(changing.rows(), ledger.key)
                cohort = cohort_of(hashed, False, np.ones(len(hashed.rows), dtype=bool))
            ledger.append(Entry("bench", number, "north", "bench", "example", STEPS, cohort))
            if number % 100 == 0:
                print(f"{number} rounds written", file=sys.stderr)
        ledger.commit()


def _sizes(overrides: Sequence[str]) -> LedgerBench:
    given: dict[str, int] = {}
    for word in overrides:
        key, _, value = word.partition("=")
        if key not in ("rows", "rounds") or not value.isdecimal() or int(value) < 100:
            raise ConfigError(f"bench ledger: {word!r} is none of rows=NUMBER and rounds=NUMBER, from 100.")
        given[key] = int(value)
    return LedgerBench(**given)
