"""What every grid of runs does: each cell is a command of its own, resumed where it was broken off, skipped where its
figures are there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fedfinlora.compose import PROJECT_ROOT
from fedfinlora.errors import UserError
from fedfinlora.files import read_json, write_json

NICENESS = 10
Command = Callable[[Sequence[str], Mapping[str, str]], None]
"""Runs `python -m fedfinlora WORDS` with further environment variables; UserError when it fails."""


class Named(Protocol):
    """A cell."""

    @property
    def name(self) -> str: ...


AnyCell = TypeVar("AnyCell", bound=Named)


def fedfinlora(words: Sequence[str], variables: Mapping[str, str]) -> None:
    """The project's command in a process of its own, so that its memory is given back."""
    done = subprocess.run(
        [sys.executable, "-m", "fedfinlora", *words], cwd=PROJECT_ROOT, env=os.environ | variables, check=False
    )
    if done.returncode:
        raise UserError(f"`python -m fedfinlora {words[0]}` ended with status {done.returncode}.")


def run_cells(
    wanted: Sequence[AnyCell], file_of: Callable[[AnyCell], Path], run: Callable[[AnyCell], dict[str, Any]]
) -> list[AnyCell]:
    """Run the cells whose file is not there and write what `run` gives. Returns those that failed; the others
    continue.
    """
    failed = []
    for cell in wanted:
        if file_of(cell).is_file():
            continue
        print(f"{time.strftime('%H:%M')} {cell.name}", flush=True)
        try:
            write_json(file_of(cell), run(cell))
        except UserError as error:
            print(f"{cell.name}: {error}", file=sys.stderr)
            failed.append(cell)
    return failed


def completed(run: Path) -> bool:
    """Whether a run's folder holds a finished run."""
    return (run / "result.json").is_file() and read_json(run / "result.json")["status"] == "completed"


def begun(run: Path) -> bool:
    """Whether a run can be resumed from a checkpoint."""
    return any((run / "state").glob("round_*.safetensors"))


def machine_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The machine of a run: CPUs, GPU ("" for none) and platform."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    return {"cpus": manifest["cpus"], "gpu": gpu, "platform": manifest["platform"]}
