"""What the machine did during a run, from the `load` events of progress.jsonl: its rounds and its evaluations.

Figures are of the machine on which the server or the baseline ran, all simulated banks included; a deployed bank does
not send its own. What was not measured, such as GPUs where there are none, has no column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fedfinlora.report.formats import DASH, percent
from fedfinlora.report.tables import Table
from fedfinlora.run.events import Load
from fedfinlora.run.progress import FILE_NAME, follow

PARTS = {"round": "Rounds", "evaluation": "Evaluation"}
"""`of` of an event -> its row."""


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


COLUMNS: dict[str, tuple[str, Callable[[Sequence[float]], float], Callable[[float], str]]] = {
    "cpu_share": ("CPU use", mean, lambda share: f"{percent(share, 0)} %"),
    "rss_gib": ("Process memory", max, "{:.2f} GiB".format),
    "memory_gib": ("Machine memory", max, "{:.1f} GiB".format),
    "gpu_share": ("GPU use", mean, lambda share: f"{percent(share, 0)} %"),
    "gpu_memory_gib": ("GPU memory", max, "{:.1f} GiB".format),
    "gpu_watts": ("GPU power", mean, "{:.0f} W".format),
}
"""Field of `Load` -> its heading, what stands for several events (mean use and power, highest memory), and how it is
shown.
"""


def load_table(folder: Path) -> Table:
    """A row for the rounds and one for the evaluation of a run folder; no row where nothing was measured."""
    events = follow(folder, stop=lambda: True) if (folder / FILE_NAME).is_file() else ()
    loads = [event for event in events if isinstance(event, Load)]
    measured = [name for name in COLUMNS if any(getattr(load, name) is not None for load in loads)]
    rows = [
        [title, *(_shown([load for load in loads if load.of == part], name) for name in measured)]
        for part, title in PARTS.items()
        if any(load.of == part for load in loads)
    ]
    return Table("Load of the machine", ("During", *(COLUMNS[name][0] for name in measured)), rows if measured else [])


def _shown(loads: Sequence[Load], name: str) -> str:
    _, of_several, form = COLUMNS[name]
    values = [value for load in loads if (value := getattr(load, name)) is not None]
    return form(of_several(values)) if values else DASH
