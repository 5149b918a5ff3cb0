"""Runs of the round loop behind a grid without processes: started, resumed, their replies changed on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fake_grid import FakeGrid, Tamper, simulated_banks
from keys import Consortium
from tiny_runs import overrides

from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from server_app.federated import run_federated


@dataclass
class Runs:
    """Starts runs of one test, each with its own states of the banks."""

    rows: Path
    folder: Path
    grid: FakeGrid | None = field(default=None, repr=False)
    """Of the last run."""
    consortium: Consortium | None = None
    """Whose keys the banks have; None = a simulation, without keys."""

    def config(self, name: str, *more: str, rounds: int = 2, banks: int = 2) -> Config:
        return compose(overrides(self.rows, self.folder, *more, name=name, rounds=rounds, banks=banks))

    def nodes(self, banks: int) -> dict[int, dict[str, Any]]:
        nodes = simulated_banks(banks, self.folder / "states")
        return self.consortium.nodes(nodes) if self.consortium else nodes

    def start(
        self, name: str, *more: str, rounds: int = 2, banks: int = 2, tamper: Tamper | None = None, order: Any = sorted
    ) -> Path:
        self.grid = FakeGrid(self.nodes(banks), tamper, order)
        return run_federated(self.grid, self.config(name, *more, rounds=rounds, banks=banks))

    def resume(self, run: Path, *, banks: int = 2, tamper: Tamper | None = None, asked: Sequence[str] = ()) -> Path:
        words = [*asked, f"resume={run}"]
        from server_app.app import config_of

        self.grid = FakeGrid(self.nodes(banks), tamper)
        own = {"resume": str(run), "overrides": " ".join(words[:-1])}
        return run_federated(self.grid, config_of(own))


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        raise error

    return call
