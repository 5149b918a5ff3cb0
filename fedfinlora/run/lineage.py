"""lineage.json: where an adapter comes from that was computed from another run's updates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedfinlora.files import write_json
from fedfinlora.run.records import SCHEMA_VERSION
from fedfinlora.run.typed import to_json

LINEAGE_FILE = "lineage.json"
EXACT, REPLAY = "exact", "replay"


@dataclass(frozen=True, slots=True)
class Lineage:
    """Another run without one bank (`python -m fedfinlora forget`)."""

    schema_version: int = SCHEMA_VERSION
    run: str = ""
    """Name of the run whose updates were taken."""
    config_sha256: str = ""
    """Of that run's configuration."""
    adapter_sha256: str = ""
    """Of that run's final adapter, as a float32 vector."""
    without: tuple[str, ...] = ()
    """Banks whose updates were removed."""
    kind: str = REPLAY
    """exact: no update that was kept was computed from an adapter that the bank had a part in, so this is the adapter
    of the same rounds without it. replay: the server's rule on the other banks' recorded updates, of which later ones
    were computed from such adapters.
    """
    rounds: int = 0
    """Replayed."""
    first_round: int = 0
    """With an update of the bank in it."""
    updates_left_out: int = 0
    updates_influenced: int = 0
    """Of other banks, computed from an adapter that the bank had a part in."""
    distance: float = 0.0
    """Euclidean norm of this adapter minus that run's, over all parameters."""
    relative_distance: float | None = None
    """The same over the norm of what that run changed of its first adapter; None where it changed nothing."""


def write_lineage(run: Path, lineage: Lineage) -> None:
    write_json(run / LINEAGE_FILE, to_json(lineage))
