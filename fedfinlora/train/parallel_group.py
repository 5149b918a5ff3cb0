"""The processes of one bank that train together, as the first of them (rank 0) starts, watches and ends them; what they
compute is `fedfinlora.train.parallel`.

They meet by a file in a folder of their own and get their tasks over a socket that they inherit; the sums of their
gradients go through torch.distributed on this machine's loopback. Each wait ends with its event, with the end of a
process, which is named, or with time.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fedfinlora.errors import UserError
from fedfinlora.model.adapter import Vector
from fedfinlora.system.process_identity import this_process
from fedfinlora.train.parallel_peer import ENDED_S, Peer, ProcessFault, Task

if TYPE_CHECKING:
    import torch

START_S = 1800.0
"""Longest wait for a further process to load its base model."""
STEP_S = 1800.0
"""Longest wait for the slowest process at the end of an optimiser step."""
LATER_S = 60.0
"""The further processes wait so much longer: rank 0 names the one that is missing."""
LOOK_S = 0.001
MOST_APART = 1e-3
"""Relative distance of two processes' adapters after a stretch; the same kind of device gives 0, or rounding."""
ROOT = Path(__file__).resolve().parents[2]


class Group:
    """The processes that train together, this one being rank 0."""

    def __init__(self, processes: int, device: torch.device) -> None:
        self.processes = processes
        self.device = device
        self.folder = tempfile.mkdtemp(prefix="fedfinlora-group-")
        self._is_joined = False
        self.peers: list[Peer] = []
        try:
            for rank in range(1, processes):
                self.peers.append(_start(rank, processes, self.folder))
        except BaseException:
            self.end()
            raise

    def begin(self, task: Task) -> None:
        """Hand out a task, and wait until each process has its model."""
        for peer in self.peers:
            model = replace(task.config.model, device=_device_of(self.device, peer.rank))
            peer.send(replace(task, config=replace(task.config, model=model)))
        self._wait(lambda peer: peer.is_ready, START_S, "load its base model")
        if not self._is_joined:
            join(0, self.processes, self.folder, self.device)
            self._is_joined = True

    def add_up(self, flat: torch.Tensor, step: int) -> None:
        """Put the sum over all processes into `flat`, a float32 vector of the same size in each."""
        import torch.distributed as distributed

        work = distributed.all_reduce(flat, async_op=True)
        assert work is not None
        self._wait(lambda peer: work.is_completed() or peer.reached >= step, STEP_S, f"finish step {step}")
        deadline = time.monotonic() + LATER_S
        while not work.is_completed():  # all have their gradients: only the sum is still on its way
            self._look()
            if time.monotonic() > deadline:
                raise ProcessFault(f"The processes could not add up their gradients at step {step}: no answer.")
            time.sleep(LOOK_S)
        try:
            work.wait()
        except RuntimeError as error:
            deadline = time.monotonic() + ENDED_S
            while time.monotonic() < deadline:
                self._look()
                time.sleep(LOOK_S)
            raise ProcessFault(f"The processes could not add up their gradients at step {step}.") from error

    def finish(self, adapter: Vector) -> None:
        """Wait until each process has taken its last step. ProcessFault where one has another adapter than this one,
        (layout.size,).
        """
        self._wait(lambda peer: peer.adapter is not None, STEP_S, "finish its last step")
        for peer in self.peers:
            apart = np.linalg.norm(cast(Vector, peer.adapter) - adapter)
            if not apart <= MOST_APART * np.linalg.norm(adapter):
                raise ProcessFault(
                    f"The training process of rank {peer.rank} has another adapter than rank 0. Use GPUs of one kind, "
                    "or set train.processes=1."
                )

    def end(self) -> None:
        """End the further processes at once; they keep nothing."""
        for peer in self.peers:
            peer.process.kill()
            peer.process.wait()
            peer.connection.close()
        self.peers = []
        if self._is_joined:
            import torch.distributed as distributed

            self._is_joined = False
            with suppress(RuntimeError):
                world = distributed.group.WORLD
                if self.device.type == "cuda" and world is not None:
                    world.abort()  # a sum that waits on a GPU for a process that has ended would never end
                distributed.destroy_process_group()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def runs(self) -> bool:
        return all(peer.process.poll() is None for peer in self.peers)

    def _look(self) -> None:
        for peer in self.peers:
            peer.look()

    def _wait(self, is_there: Callable[[Peer], bool], longest_s: float, what: str) -> None:
        """Until it is so of each further process. ProcessFault that names those that are late."""
        deadline = time.monotonic() + longest_s
        while True:
            self._look()
            late = [peer.rank for peer in self.peers if not is_there(peer)]
            if not late:
                return
            if time.monotonic() > deadline:
                raise ProcessFault(
                    f"The training process of rank {', '.join(map(str, late))} did not {what} within {longest_s:g} s. "
                    "Check its GPU, or set train.processes=1."
                )
            time.sleep(LOOK_S)


def join(rank: int, processes: int, folder: str, device: torch.device) -> None:
    """Make this process one of torch's default group, which meets by a file and talks on this machine alone: NCCL
    between GPUs, Gloo between CPUs.
    """
    import torch.distributed as distributed

    loopback = "lo" if sys.platform == "linux" else "lo0"
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ[name] = loopback
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"  # it would end the bank's process, without a line
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=cast(Any, distributed).FileStore(f"{folder}/meeting", processes),
        rank=rank, world_size=processes, timeout=timedelta(seconds=STEP_S + LATER_S),
        device_id=device if device.type == "cuda" else None,
    )  # fmt: skip


def _start(rank: int, processes: int, folder: str) -> Peer:
    ours, theirs = Pipe()
    # The working directory stays, for model.path may be relative to it, and is not searched for modules.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fedfinlora.train.parallel_process", str(theirs.fileno()), str(rank),
            str(processes), folder, str(this_process())],
            pass_fds=[theirs.fileno()], env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    return Peer(rank, process, ours)


def _device_of(first: torch.device, rank: int) -> str:
    """model.device of a rank: the GPUs from rank 0's on, in order."""
    return f"cuda:{(first.index or 0) + rank}" if first.type == "cuda" else first.type


def _check_there(processes: int, device: torch.device) -> None:
    """UserError where this machine has too little for so many."""
    import torch

    if device.type == "cuda":
        there = torch.cuda.device_count() - (device.index or 0)
        what = f"GPUs from {device} on that CUDA gives to this process"
    else:
        there, what = max(2, len(os.sched_getaffinity(0))), "CPU cores here"
    if processes > there:
        raise UserError(f"train.processes={processes} is more than the {there} {what}. Set train.processes={there}.")


_group: Group | None = None


def group_of(device: torch.device, processes: int) -> Group:
    """The group of this process: the one of the last round, if it is whole and as wanted."""
    global _group
    if _group and (_group.processes, _group.device) == (processes, device) and _group.runs:
        return _group
    end_group()
    _check_there(processes, device)
    _group = Group(processes, device)
    return _group


def end_group() -> None:
    """End the further processes of this one, if it has any."""
    global _group
    ended, _group = _group, None
    if ended is not None:
        ended.end()


atexit.register(end_group)
