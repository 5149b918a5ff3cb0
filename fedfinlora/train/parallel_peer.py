"""One of the further training processes of a bank, as rank 0 sees it, and what the two say to each other."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from fedfinlora.config.schema import Config
from fedfinlora.config.train import TrainConfig
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import Vector
from fedfinlora.model.packing import Example
from fedfinlora.train.gradient_step import GradientStep
from fedfinlora.train.loop import Stretch
from fedfinlora.train.optimizers import OptimizerState

ENDED_S = 5.0
"""A broken connection is noticed before the end of the process that caused it."""


class ProcessFault(UserError):
    """One of the processes that train together ended, failed, or did not answer in time."""


@dataclass(frozen=True)
class Task:
    """A stretch of training, as the further processes get it."""

    config: Config
    """model.device is the process's own."""
    train: TrainConfig
    adapter: Vector
    """(layout.size,) float32 to begin with."""
    examples: Sequence[Example]
    """All rows of the bank: each process finds its share of a step by itself."""
    stretch: Stretch
    bank: str
    optimizer: OptimizerState | None
    gradient: GradientStep
    frozen: int


@dataclass(frozen=True)
class Ready:
    """A further process has its model."""


@dataclass(frozen=True)
class Reached:
    """It has the gradient of its share of a step."""

    step: int


@dataclass(frozen=True)
class Done:
    """It has taken all steps."""

    adapter: Vector


@dataclass(frozen=True)
class Failed:
    """It could not."""

    reason: str
    out_of_memory: bool = False


@dataclass
class Peer:
    """One of the further processes."""

    rank: int
    process: subprocess.Popen[bytes]
    connection: Connection
    is_ready: bool = False
    reached: int = -1
    """The last step whose gradient it has."""
    adapter: Vector | None = None
    """After its last step."""

    def look(self) -> None:
        """Take what it has sent. ProcessFault if it has ended or failed; MemoryError if its memory did not do."""
        try:
            while self.connection.poll():
                message = self.connection.recv()
                if isinstance(message, Failed):
                    what = f"The training process of rank {self.rank} failed: {message.reason}"
                    raise MemoryError(what) if message.out_of_memory else ProcessFault(what)
                if isinstance(message, Reached):
                    self.reached = message.step
                elif isinstance(message, Done):
                    self.adapter = message.adapter
                else:
                    self.is_ready = True
        except (EOFError, OSError) as error:
            raise self._ended() from error

    def send(self, task: Task) -> None:
        self.is_ready, self.reached, self.adapter = False, -1, None
        try:
            self.connection.send(task)
        except OSError as error:
            raise self._ended() from error

    def _ended(self) -> ProcessFault:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDED_S)
        status = self.process.returncode
        how = f"was killed by signal {-status}" if status and status < 0 else f"ended with status {status}"
        return ProcessFault(
            f"The training process of rank {self.rank} {how}. Look for its last lines in the log, and whether the "
            "system ran out of memory."
        )
