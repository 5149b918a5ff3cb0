"""Compute again what rounds.jsonl says of strategy.sync=drift: which rounds end with an average follows from the lines
before, how far a bank was from the global adapter is hashed in its reply, and the bytes follow from the requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedfinlora.errors import plural
from fedfinlora.files import sha256_of
from fedfinlora.provenance.compared import Difference, differences
from fedfinlora.provenance.evidence import NO_DELTA
from fedfinlora.provenance.findings import Findings, Round
from fedfinlora.provenance.lines import CHAIN_FILE, Attempt
from fedfinlora.provenance.rules import Plan, Rules
from fedfinlora.run.records import ROUNDS_FILE, RoundLine
from fedfinlora.run.typed import plain

SOURCE = "the rounds before, the entries and the saved adapters"


def check_drift(
    run: Path,
    rounds: Mapping[int, Round],
    lines: Sequence[RoundLine],
    size: int,
    lengths: Mapping[str, float],
    rules: Rules,
    found: Findings,
) -> None:
    """Each line's `sync`, and its requests, are those of the plan. `size` is how many numbers an adapter has (0 = not
    known), `lengths` has the norm of each that is kept (its SHA-256 -> norm).
    """
    check = _DriftCheck(run, size, lengths, rules, found)
    for number, one in rounds.items():
        if one.config is None or number > len(lines):
            continue
        line, where = lines[number - 1], f"{run / ROUNDS_FILE}, line {number}"
        if one.config.strategy.sync == "drift":
            check.take(where, one, line, lines[number - 2] if number > 1 else None)
        elif line.sync is not None:
            found.differs([Difference(where, "sync", "there", None, "strategy.sync of the configuration")])
    check.sum_up()


@dataclass
class _DriftCheck:
    run: Path
    size: int
    lengths: Mapping[str, float]
    rules: Rules
    found: Findings
    rounds: int = 0
    known: int = 0
    """Rounds whose drift was computed again."""
    silent: int = 0
    silent_unknown: int = 0

    def take(self, where: str, one: Round, line: RoundLine, last: RoundLine | None) -> None:
        assert one.config is not None
        attempt = one.line
        plan = self.rules.plan(one.config, one.number, last)
        length = self.lengths.get(attempt.start_sha256)
        said = plan.said(line, 4 * self.size, math.nan if length is None else length)
        expected, has = plain(said), plain(line.sync) or {}
        self.rounds += 1
        self.silent += not plan.averaged
        if length is not None:
            self.known += 1
        else:
            self.silent_unknown += not plan.averaged
            expected, has = ({**values, "drift": None} for values in (expected, has))
        if not self.size:
            expected, has = ({**values, "bytes_saved": None} for values in (expected, has))
        self.found.differs(differences(expected, has, where, SOURCE, "sync"))
        self._requests(one, attempt, plan)
        if not plan.averaged:
            self.found.differs(_of_silent(where, attempt, line))
            if attempt.adapter_sha256 != attempt.start_sha256:
                self.found.add(one.where, f"round {one.number} ends without an average, and its adapter is another one")

    def _requests(self, one: Round, attempt: Attempt, plan: Plan) -> None:
        """Banks that have no adapter of their own get the global one; all are asked for what the plan says."""
        for bank, part in attempt.banks.items():
            request = {**attempt.request, **part.request}
            what = f"round {one.number}: the request to {bank}"
            if bool(request.get("silent")) == plan.averaged:
                asks, wanted = ("no update", "one") if plan.averaged else ("an update", "none")
                self.found.add(one.where, f"{what} asks for {asks}, and the rounds before it ask for {wanted}")
            is_unsent = request.get("adapter-sha256") == NO_DELTA
            if is_unsent and bank not in plan.at_work:
                self.found.add(one.where, f"{what} has no adapter, and the bank has none of its own")
            elif not is_unsent and bank in plan.at_work - self.rules.lost(one.number):
                self.found.not_proven(
                    one.where,
                    f"{what} has the adapter, and the bank was to resume from its own: only an attempt in which it had "
                    "lost it explains that, and nothing shows one",
                )

    def sum_up(self) -> None:
        if not self.rounds:
            return
        self.found.checked.append(
            f"{ROUNDS_FILE}: strategy.sync=drift: which rounds end with an average and the bytes not sent were "
            f"computed again in {plural(self.rounds, 'round')}, the drift in {self.known:,}, the banks' distances in "
            f"{self.silent:,}; delta_norm of rounds with an average is the aggregator's word, for no deltas are kept"
        )
        if not self.size:
            self.found.not_proven(self.run / ROUNDS_FILE, "bytes_saved: nothing says how many numbers an adapter has")
        if self.silent_unknown:
            self.found.not_proven(
                self.run / ROUNDS_FILE,
                f"the drift of {plural(self.silent_unknown, 'round')}, by which the next one ends with an average or "
                "does not: the adapter that it is measured from is not kept",
            )


def _of_silent(where: str, attempt: Attempt, line: RoundLine) -> Iterator[Difference]:
    """Of a round without an average there is no step, and each bank has sent one float32, its distance."""
    if line.update_norm != 0.0:
        yield Difference(where, "update_norm", line.update_norm, 0.0, "a round without an average")
    if line.average is not None:
        yield Difference(where, "average", "there", None, "a round without an average")
    for entry in line.banks:
        part = attempt.banks.get(entry.bank)
        if part and entry.is_ok and not _is_hashed(entry.delta_norm, part.delta_sha256):
            key = f"delta_norm of {entry.bank}"
            yield Difference(where, key, entry.delta_norm, "another number", f"the hash of its reply in {CHAIN_FILE}")


def _is_hashed(distance: Any, sha256: str) -> bool:
    """Whether a distance is the float32 with this hash."""
    value = np.array([math.nan if distance is None else distance], "<f4")
    return float(value[0]) == distance and sha256_of(value.tobytes()) == sha256
