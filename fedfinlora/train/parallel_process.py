"""A further training process of a bank (`fedfinlora.train.parallel_group`): it takes tasks until rank 0 ends."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from fedfinlora.errors import UserError
from fedfinlora.model.adapter import read_adapter, write_adapter
from fedfinlora.model.loading import get_session
from fedfinlora.system.process_identity import ProcessIdentity
from fedfinlora.train.loop import train
from fedfinlora.train.own_columns import frozen_columns
from fedfinlora.train.parallel import ParallelStep, with_innermost
from fedfinlora.train.parallel_group import join
from fedfinlora.train.parallel_peer import Done, Failed, Reached, Ready, Task

if TYPE_CHECKING:
    import torch

log = logging.getLogger("fedfinlora.train.parallel")
WATCH_S = 0.2
"""How often it looks whether rank 0 still runs, which may be killed at any moment."""


def main(connection: Connection, rank: int, processes: int, folder: str, first: ProcessIdentity) -> None:
    """One task after the other."""
    threading.Thread(target=_end_with, args=(first, folder), daemon=True).start()
    is_joined = False
    while True:
        try:
            task: Task = connection.recv()
        except (EOFError, OSError):
            shutil.rmtree(folder, ignore_errors=True)
            return
        try:
            session = get_session(task.config)
            connection.send(Ready())
            if not is_joined:
                join(rank, processes, folder, session.device)
                is_joined = True
            write_adapter(session.model, task.adapter)
            gradient = with_innermost(task.gradient, ParallelStep(rank, processes, _adding_up(connection)))
            with frozen_columns(session.model, task.frozen, task.config.peft):
                train(
                    session.model, task.examples, task.stretch, task.train, seed=task.config.seed, bank=task.bank,
                    optimizer=task.optimizer, gradient=gradient,
                )  # fmt: skip
            connection.send(Done(read_adapter(session.model)))
        except MemoryError as error:
            connection.send(Failed(str(error) or "out of memory", True))
        except UserError as error:
            connection.send(Failed(str(error)))
        except Exception as error:
            log.exception("rank %d", rank)
            is_memory = "out of memory" in str(error).lower()
            connection.send(Failed("out of memory" if is_memory else type(error).__name__, is_memory))


def _adding_up(connection: Connection) -> Callable[[torch.Tensor, int], None]:
    """What `ParallelStep.add_up` is here."""

    def add_up(flat: torch.Tensor, step: int) -> None:
        import torch.distributed as distributed

        connection.send(Reached(step))
        try:
            distributed.all_reduce(flat)
        except RuntimeError:
            log.exception("the other processes are out of reach at step %d", step)
            threading.Event().wait()  # rank 0 finds out which one has ended, says so, and ends this one

    return add_up


def _end_with(first: ProcessIdentity, folder: str) -> None:
    """End this process when rank 0 has ended, in the middle of a step as well, and take the group's folder away."""
    while first.runs:
        time.sleep(WATCH_S)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    descriptor, own_rank, count, meeting, parent = sys.argv[1:]
    main(Connection(int(descriptor)), int(own_rank), int(count), meeting, ProcessIdentity.parse(parent))
