"""Compare the ranks that no bank trains (peft.frozen_rank, peft.trained_modules) between a run's saved adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedfinlora.errors import plural
from fedfinlora.files import sha256_of
from fedfinlora.model.adapter import Layout
from fedfinlora.provenance.deltas import start_file
from fedfinlora.provenance.findings import Findings, Round
from fedfinlora.provenance.folder import file_bytes
from fedfinlora.provenance.rules import Rules
from fedfinlora.train.own_columns import with_frozen_ranks


class FrozenRanks:
    """Takes the adapters in the order of their rounds."""

    def __init__(self, run: Path, started: str | None, rules: Rules, found: Findings) -> None:
        """`started` is the SHA-256 of the adapter that the first round starts from."""
        self.run, self.started, self.rules, self.found = run, started, rules, found
        self._first: Any = None
        """The adapter that the others are compared with, (size,) float32."""
        self._first_round = 0
        """The round that it is of; 0 = before the first one."""
        self._compared = 0
        self._unknown = 0

    def compare(self, folder: Path, one: Round, adapter: Any) -> None:
        """The adapter, (size,) float32, of a round with frozen ranks has those of the adapters before it."""
        config = one.config
        if config is None or not config.peft.frozen_rank:
            return
        layout = self.rules.layout(str(one.line.request.get("layout-id", "")))
        if layout is None or layout.size != adapter.size:
            self._unknown += 1
            return
        if self._first is None:
            self._first = self._start(layout)
        if self._first is None:
            self._first, self._first_round = adapter, one.number
            return
        self._compared += 1
        if not np.array_equal(with_frozen_ranks(adapter, self._first, layout, config), adapter):
            what = f"of round {self._first_round}" if self._first_round else "that the run starts from"
            self.found.add(
                folder,
                f"it moves ranks that peft.frozen_rank={config.peft.frozen_rank} or peft.trained_modules leaves as "
                f"they are: those of the adapter {what} differ",
            )

    def _start(self, layout: Layout) -> Any:
        """The adapter that the run starts from, (size,) float32, which only runs with kept deltas have; else None."""
        file = start_file(self.run)
        content = file_bytes(file) if file.is_file() else b""
        if sha256_of(content) != self.started or len(content) != 4 * layout.size:
            return None
        return np.frombuffer(content, "<f4").astype(np.float32)

    def sum_up(self) -> None:
        """Say what was compared, and what could not be."""
        adapters = self.run / "adapters"
        if self._first_round:
            self.found.not_proven(
                adapters,
                f"frozen ranks of round {self._first_round}: nothing in this folder has those that the run starts "
                "from (strategy.keep_deltas keeps them); later rounds are compared with this one",
            )
        if self._unknown:
            self.found.not_proven(adapters, f"frozen ranks of {plural(self._unknown, 'adapter')} were not compared")
        if self._compared:
            self.found.checked.append(f"adapters: frozen ranks are unmoved in {plural(self._compared, 'adapter')}")
