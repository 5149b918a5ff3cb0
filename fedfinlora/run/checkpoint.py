"""What resume needs, one safetensors file a round.

The file is written whole before the round counts as done; `rounds.jsonl` is made from it again on resume, so a process
killed at any moment loses at most the round in hand.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from fedfinlora.errors import UserError
from fedfinlora.files import read_lines, sha256_of, write_bytes
from fedfinlora.system.numbered import by_number, number_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger("fedfinlora")
UNSCORED = "unscored"
"""In the line of a round that is trained, while its scores are being made."""
KEPT = 2
"""How many checkpoints stay on disk: the last, and one before in case the last is damaged."""


FILES = "round_*.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `round` rounds."""

    round: int
    layout_id: str
    arrays: Mapping[str, NDArray[Any]]
    """`adapter` (size,) float32, and the server rule's state, (size,) float64 each."""
    line: Mapping[str, Any]
    """The round's line of rounds.jsonl; empty for round 0."""

    @property
    def closed(self) -> bool:
        """False if only its scores are missing."""
        return UNSCORED not in self.line


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and remove all but the last KEPT."""
    from safetensors.numpy import save

    values = {
        "round": str(checkpoint.round),
        "layout-id": checkpoint.layout_id,
        "line": json.dumps(dict(checkpoint.line), allow_nan=False),
    }
    content = save(dict(checkpoint.arrays), {**values, "sha256": _content_sha256(values, checkpoint.arrays)})
    write_bytes(checkpoint_file(run, checkpoint.round), content)
    for old in by_number(run / "state", FILES)[:-KEPT]:
        old.unlink(missing_ok=True)


def load_checkpoint(run: Path, saved: Mapping[str, str] = MappingProxyType({})) -> Checkpoint:
    """The newest whole checkpoint. `saved`: path in the run's folder -> SHA-256, as far as it is known. UserError when
    there is none.
    """
    damaged: list[str] = []
    for file in by_number(run / "state", FILES)[::-1]:
        name = file.relative_to(run).as_posix()
        try:
            if name in saved and sha256_of(file.read_bytes()) != saved[name]:
                raise UserError(f"{file.name} (it is not the one that was saved: provenance.jsonl has another hash)")
            return read_checkpoint(file)
        except (UserError, OSError) as error:
            damaged.append(str(error))
            log.warning("%s is damaged: %s", file, error)
    found = f"damaged: {', '.join(damaged)}" if damaged else "there is none"
    raise UserError(
        f"{run} has no checkpoint to resume from: {found}. Bring back a copy of {run / 'state'}, or start again under "
        "another run_name."
    )


def read_checkpoint(file: Path) -> Checkpoint:
    """A checkpoint; UserError with its name where it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as stream:
            values = stream.metadata()
            arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
        found = Checkpoint(int(values["round"]), values["layout-id"], arrays, json.loads(values["line"]))
        written = values.pop("sha256", None)  # older versions have none
        if written not in (None, _content_sha256(values, arrays)):
            raise ValueError("its content is not what was written")
        return found
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{file.name} ({error})") from error


def _content_sha256(values: Mapping[str, str], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Of all that a checkpoint holds: safetensors has no checksum."""
    import hashlib

    found = hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode())
    for name in sorted(arrays):
        found.update(name.encode())
        found.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def restore_rounds(run: Path, checkpoint: Checkpoint) -> None:
    """Make rounds.jsonl hold exactly the closed rounds up to the checkpoint. UserError where it has lost more."""
    file = run / "rounds.jsonl"
    lines = [line for line in read_lines(file) if line["round"] < checkpoint.round]
    for older in by_number(run / "state", FILES):  # a line that was cut off is in the checkpoint of its round
        if number_of(older) == checkpoint.round - 1 == _last(lines) + 1:
            with contextlib.suppress(UserError):
                lines += [dict(line) for line in [read_checkpoint(older).line] if line and UNSCORED not in line]
    if _last(lines) != max(0, checkpoint.round - 1):
        raise UserError(
            f"{file} is damaged: it ends with round {_last(lines)}, and the checkpoint is of round {checkpoint.round}. "
            "Bring back a copy of it, or start the run again."
        )
    if checkpoint.line and checkpoint.closed:
        lines.append(dict(checkpoint.line))
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    write_bytes(file, text.encode())


def _last(lines: Sequence[Mapping[str, Any]]) -> int:
    """The number of the last of these lines; 0 where there is none."""
    return int(lines[-1]["round"]) if lines else 0


def latest_round(run: Path) -> int:
    """The last checkpoint's; -1 without one."""
    files = by_number(run / "state", FILES)
    return number_of(files[-1]) if files else -1


def checkpoint_file(run: Path, round_number: int) -> Path:
    """Where the checkpoint of a round is."""
    return run / "state" / f"round_{round_number:04d}.safetensors"


def adapter_checksum(vector: NDArray[np.float32]) -> str:
    """SHA-256 of the vector's bytes, little-endian."""
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(vector, "<f4").data).hexdigest()
