"""strategy.sync=drift at the server: which rounds end with an average (after Kamp, Adilova, Sicking, Hüger, Schlicht,
Wirtz and Wrobel 2018, arXiv 1807.03210, algorithm 1).

The paper bounds the divergence of the banks' models, (1/N) sum_k |w_k - mean w|^2, by their distances from the last
average r, which each knows on its own: (1/N) sum_k |w_k - r|^2 is at least as large, for any r. Here the banks report
|w_k - r|, and once the root mean square over |r| has reached strategy.drift_limit the next round ends with an average;
so does every strategy.drift_ceiling-th and the run's last. Differences: the server decides, on the mean, and all banks
are averaged; the paper's first bank beyond the limit starts a growing subset.

Each decision follows from rounds.jsonl, so a resumed run decides alike; banks that had lost their adapters in a failed
attempt are in state/lost.json.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedfinlora.config.schema import Config
from fedfinlora.files import read_json, write_json
from fedfinlora.model.adapter import Layout, Vector, norm
from fedfinlora.model.parts import DistanceOnly
from fedfinlora.run.records import BankEntry, RoundLine, Synchronisation, read_rounds
from fedfinlora.wire.messages import TrainRequest, pack_requests
from server_app.strategies.strategy import ServerState

if TYPE_CHECKING:
    from flwr.app import RecordDict

NOTHING = np.zeros(0, np.float32)
LOST = "lost.json"
LOST_CODES = ("local-adapter", "local-layout")
"""With which a bank says that it has no adapter of its own to resume from."""


@dataclass(frozen=True)
class RoundPlan:
    """How a round ends, and who needs the global adapter in it."""

    averaged: bool
    rounds: int
    """Since the last average, this one counted."""
    at_work: frozenset[str]
    """Banks that replied in the round before, which ended without an average: they resume from their own adapters."""

    def part(self, layout: Layout) -> DistanceOnly | None:
        """What the banks send; None = their updates."""
        return None if self.averaged else DistanceOnly((), layout.size)

    def packed(self, request: TrainRequest, banks: Sequence[str]) -> dict[str, RecordDict]:
        """A request for each bank, in their order, with the adapter for those that need it."""
        request = replace(request, silent=not self.averaged)
        made = pack_requests(request, [bank for bank in banks if bank not in self.at_work])
        made |= pack_requests(replace(request, adapter=NOTHING), [bank for bank in banks if bank in self.at_work])
        return {bank: made[bank] for bank in banks}

    def bytes_down(self, bank: str, adapter: Vector) -> int:
        """Of the adapter in a bank's request."""
        return 0 if bank in self.at_work else adapter.nbytes

    def line(self, line: RoundLine, adapter: Vector) -> Synchronisation:
        """What the round's line says. `adapter`: the global one before the round, (size,) float32."""
        return self.said(line, adapter.nbytes, norm(adapter))

    def said(self, line: RoundLine, size_bytes: int, length: float) -> Synchronisation:
        """The same, of an adapter of so many bytes and with this norm."""
        replied = [bank for bank in line.banks if bank.is_ok]
        whole = size_bytes * (len(line.banks) + len(replied))
        distances = [bank.delta_norm or 0.0 for bank in replied]
        saved = whole - line.bytes_up - line.bytes_down
        return Synchronisation(self.averaged, self.rounds, drift_of(distances, length), saved)


def plan_of(folder: Path, number: int, config: Config) -> RoundPlan:
    """Of round `number` (from 1), from what the run's `folder` has of the rounds before it."""
    last = next((line for line in reversed(read_rounds(folder)) if line.round == number - 1), None)
    return plan_after(last, number, config, lost_in(folder / "state", number))


def plan_after(last: RoundLine | None, number: int, config: Config, lost: frozenset[str] = frozenset()) -> RoundPlan:
    """Of round `number` (from 1), after the line of the round before. `lost`: the banks that have lost their adapters
    in a failed attempt.
    """
    strategy = config.strategy
    since, drift, at_work = 1, 0.0, frozenset[str]()
    if last is not None and last.sync is not None and not last.sync.averaged:
        since = last.sync.rounds + 1
        drift = math.inf if last.sync.drift is None else last.sync.drift
        at_work = frozenset(bank.bank for bank in last.banks if bank.is_ok) - lost
    averaged = drift >= strategy.drift_limit or since >= strategy.drift_ceiling or number == config.num_server_rounds
    return RoundPlan(averaged, since, at_work)


def note_lost(folder: Path, number: int, entries: Iterable[BankEntry]) -> None:
    """Keep in `folder` which banks have lost their adapters: a repeated round sends them the global one. UserError
    where the disk does not take it.
    """
    if lost := sorted(entry.bank for entry in entries if entry.code in LOST_CODES):
        write_json(folder / LOST, {"round": number, "banks": lost})


def lost_in(folder: Path, number: int) -> frozenset[str]:
    """The banks that `note_lost` has kept of this round."""
    kept = read_json(folder / LOST) if (folder / LOST).is_file() else {}
    return frozenset(kept.get("banks", ())) if kept.get("round") == number else frozenset()


def drift_of(distances: Iterable[float], length: float) -> float | None:
    """Root mean square of the banks' distances from the last global adapter, over its norm; None where there is
    neither.

    >>> drift_of([3.0, 4.0], 5.0) == math.sqrt(12.5) / 5.0, drift_of([], 5.0), drift_of([1.0], 0.0)
    (True, None, None)
    """
    squares = [distance**2 for distance in distances]
    return math.sqrt(math.fsum(squares) / len(squares)) / length if squares and length else None


def unmoved(state: ServerState) -> ServerState:
    """The state after a round without an average."""
    return replace(state, round=state.round + 1, step_norm=0.0)
