"""Where a run keeps the deltas of its rounds with strategy.keep_deltas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedfinlora.files import write_bytes

DELTAS = "deltas"


def delta_file(run: Path, round_number: int, bank: str) -> Path:
    """A round's delta of a bank: its bytes as sent, little-endian float32."""
    return run / DELTAS / f"round_{round_number:06d}" / f"{bank}.f32"


def keep_delta(run: Path, round_number: int, bank: str, delta: Any) -> None:
    """Write a checked delta, (size,) float32."""
    _keep(delta_file(run, round_number, bank), delta)


def start_file(run: Path) -> Path:
    """The adapter that the first round starts from."""
    return run / DELTAS / "start.f32"


def keep_start(run: Path, adapter: Any) -> None:
    """Write the run's first adapter, (size,) float32."""
    _keep(start_file(run), adapter)


def _keep(file: Path, vector: Any) -> None:
    import numpy as np

    write_bytes(file, np.ascontiguousarray(vector, "<f4").tobytes())
    for path, mode in ((file, 0o600), (file.parent, 0o700)):
        path.chmod(mode)
