"""What each system cost: the resources columns of papers, read from its run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedfinlora.report.content import Content
from fedfinlora.report.formats import number
from fedfinlora.report.reading import Run
from fedfinlora.report.score import mean
from fedfinlora.report.systems import System
from fedfinlora.run.events import Event, Load, Trainable
from fedfinlora.run.progress import FILE_NAME, follow


@dataclass(frozen=True)
class Resources:
    """Of one trained system; None where the run does not say."""

    parameters: float | None
    """Trainable."""
    megabytes: float | None
    """Sent and received by all banks together, 10^6 bytes."""
    seconds: float | None
    """Training, wall time: of a federated run the rounds without scoring."""
    memory_gib: float | None
    """Most memory of the training process."""
    gpu_memory_gib: float | None
    """Most memory of all GPUs of the machine together."""


def resources_of(content: Content, system: System) -> Resources | None:
    """Resources of the system's run, or the mean of its runs; None for what was not trained here."""
    runs = {run.folder: run for score in system.scores.values() for run in (one.run for one in score.sources)}
    trained = [run for run in runs.values() if run.mode in ("federated", "centralized", "local")]
    if system.kind == "base" or not trained or not content.runs:
        return None
    every = [_of_run(run) for run in trained]
    return Resources(*(mean(getattr(one, name) for one in every) for name in Resources.__dataclass_fields__))


def events_of(folder: Path) -> list[Event]:
    """All events of a run folder; [] where it has none."""
    return list(follow(folder, stop=lambda: True)) if (folder / FILE_NAME).is_file() else []


def _of_run(run: Run) -> Resources:
    result, events = run.result, events_of(run.folder)
    loads = [event for event in events if isinstance(event, Load) and event.of == "round"]
    sizes = [event.parameters for event in events if isinstance(event, Trainable) and event.parameters]
    moved = None if result.bytes_up is None else result.bytes_up + (result.bytes_down or 0)
    return Resources(
        number(sizes[-1]) if sizes else None,
        None if moved is None else moved / 1e6,
        number(result.wall_s.train),
        max((load.rss_gib for load in loads if load.rss_gib is not None), default=None),
        max((load.gpu_memory_gib for load in loads if load.gpu_memory_gib is not None), default=None),
    )
