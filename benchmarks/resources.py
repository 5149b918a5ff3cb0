"""What runs cost, as a table: `python -m benchmarks.resources RUN… [--euros-per-hour X] [--out FILE] [--json FILE]`.

`python -m benchmarks.results --keep resources figures=FILE` puts what --json wrote into docs/results.md.

Read from run folders: batch and adapter from the run's own files, time from rounds.jsonl and eval/*/metrics.json,
memory, use and watts from the `load` events of progress.jsonl (`fedfinlora.run.monitor`). Device hours count each
bank's training and the evaluation once, as on one device each; FinLoRA's table 5 has the same columns. A column that no
run measured is left out, a single value that is missing is a dash.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.provenance import shown_command
from fedfinlora.errors import UserError
from fedfinlora.files import read_json, write_bytes, write_json
from fedfinlora.model.adapter_folder import WEIGHTS_FILE
from fedfinlora.report.reading import Run, read_runs
from fedfinlora.run.events import Load
from fedfinlora.run.progress import follow
from fedfinlora.run.which_run import folder_or_run

ADAPTERS = ("final", "best")


@dataclass(frozen=True)
class Resources:
    """One run's; None = not measured."""

    name: str
    model: str
    banks: int
    batch_rows: int | None
    rss_gib: float | None
    """Highest of the process that wrote the events: the trainer of a baseline, the server of a federation."""
    memory_gib: float | None
    """Highest of the whole machine."""
    gpu_memory_gib: float | None
    gpu_share: float | None
    gpu_watts: float | None
    device_hours: float | None
    adapter_bytes: int | None
    inference_s: float | None
    """Seconds a row of the last evaluation."""


def resources_of(run: Run) -> Resources:
    """What a run folder says."""
    load = loads(run.folder)
    train_s = [bank.train_s for line in run.rounds for bank in line.timings.banks.values() if bank.train_s is not None]
    train_s = train_s or [line.timings.train_s for line in run.rounds if line.timings.train_s]
    evaluate_s = sum(sum(found.seconds.values()) for found in run.evaluations.values())
    batch = run.settings.train.batch_rows if run.settings else 0
    return Resources(
        name=run.name,
        model=run.model,
        banks=len(run.banks),
        batch_rows=batch or None,
        rss_gib=_highest(load, "rss_gib"),
        memory_gib=_highest(load, "memory_gib"),
        gpu_memory_gib=_highest(load, "gpu_memory_gib"),
        gpu_share=_mean(load, "gpu_share"),
        gpu_watts=_mean(load, "gpu_watts"),
        device_hours=(sum(train_s) + evaluate_s) / 3600 if train_s else None,
        adapter_bytes=_adapter_bytes(run.folder),
        inference_s=_inference_s(run),
    )


def loads(folder: Path) -> list[Load]:
    """The `load` events of a run; none where it has no progress.jsonl."""
    return [event for event in follow(folder, lambda: True) if isinstance(event, Load)]


def _highest(load: Sequence[Load], name: str) -> float | None:
    return max(_known(load, name), default=None)


def _mean(load: Sequence[Load], name: str) -> float | None:
    found = _known(load, name)
    return sum(found) / len(found) if found else None


def _known(load: Sequence[Load], name: str) -> list[float]:
    return [value for event in load if (value := getattr(event, name)) is not None]


def _adapter_bytes(folder: Path) -> int | None:
    files = (folder / "adapters" / label / WEIGHTS_FILE for label in ADAPTERS)
    return next((file.stat().st_size for file in files if file.is_file()), None)


def _inference_s(run: Run) -> float | None:
    rates = [found.rows_per_s for found in run.evaluations.values() if found.rows_per_s]
    return 1 / rates[-1] if rates else None


Column = tuple[str, Callable[[Resources], str]]


def columns(euros_per_hour: float | None) -> list[Column]:
    """Heading and how a value is shown; "" for one that is missing."""

    def shown(name: str, form: str, factor: float = 1.0) -> Callable[[Resources], str]:
        def value(one: Resources) -> str:
            found = getattr(one, name)
            return "" if found is None else form.format(found * factor)

        return value

    def energy(one: Resources) -> str:
        known = one.gpu_watts is not None and one.device_hours is not None
        return f"{(one.gpu_watts or 0.0) * (one.device_hours or 0.0) / 1000:.3f}" if known else ""

    def euros(one: Resources) -> str:
        known = euros_per_hour is not None and one.device_hours is not None
        return f"{(euros_per_hour or 0.0) * (one.device_hours or 0.0):.2f}" if known else ""

    return [
        ("run", lambda one: one.name),
        ("model", lambda one: one.model),
        ("banks", lambda one: str(one.banks)),
        ("batch", shown("batch_rows", "{:d}", 1)),
        ("process memory, GiB", shown("rss_gib", "{:.2f}")),
        ("machine memory, GiB", shown("memory_gib", "{:.1f}")),
        ("GPU memory, GiB", shown("gpu_memory_gib", "{:.1f}")),
        ("GPU use", shown("gpu_share", "{:.0%}")),
        ("device hours", shown("device_hours", "{:.3f}")),
        ("GPU watts", shown("gpu_watts", "{:.0f}")),
        ("GPU kWh", energy),
        (f"euros at {euros_per_hour:g} an hour" if euros_per_hour is not None else "euros", euros),
        ("adapter, MB", shown("adapter_bytes", "{:.2f}", 1e-6)),
        ("inference, s a row", shown("inference_s", "{:.3f}")),
    ]


def table(found: Sequence[Resources], euros_per_hour: float | None = None) -> str:
    """The table in Markdown."""
    used = [(title, shown) for title, shown in columns(euros_per_hour) if any(shown(one) for one in found)]
    lines = [f"| {' | '.join(title for title, _ in used)} |", "|---" * len(used) + "|"]
    lines += [f"| {' | '.join(shown(one) or '–' for _, shown in used)} |" for one in found]
    return "\n".join(lines)


def figures_of(runs: Sequence[Run], euros_per_hour: float | None, note: str = "") -> dict[str, Any]:
    """What docs/results keeps: each run's figures and where they come from."""
    found = []
    for run in runs:
        manifest = read_json(run.folder / "manifest.json")
        origin = {"command": shown_command(manifest["command"]), "git_commit": manifest["git_commit"] or "unknown"}
        found.append({"resources": asdict(resources_of(run)), **origin, "cpus": manifest["cpus"]})
    price = f" --euros-per-hour {euros_per_hour:g}" if euros_per_hour is not None else ""
    command = f"python -m benchmarks.resources RUN…{price}"
    return {"command": command, "euros_per_hour": euros_per_hour, "note": note, "runs": found}


def section(figures: Mapping[str, Any]) -> str:
    """The section of docs/results.md."""
    found = [Resources(**run["resources"]) for run in figures["runs"]]
    origins = [
        f"- {run['resources']['name']}: `{run['command']}`, commit `{run['git_commit']}`, {run['cpus']} CPUs."
        for run in figures["runs"]
    ]
    words = (
        "Device hours are the training of all banks and the evaluation, as on one device each; memory is the highest "
        "that was seen, of the process that trained and of the whole machine."
    )
    words += f" {figures['note']}" if figures["note"] else ""
    return "\n".join([table(found, figures["euros_per_hour"]), "", words, "", *origins])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resources", description="What runs cost, as a table.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders or names of runs")
    parser.add_argument("--euros-per-hour", type=float, metavar="X", help="price of one device for an hour")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the table there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there, for docs/results.md")
    parser.add_argument("--note", default="", metavar="TEXT", help="with --json: how the runs were measured")
    asked = parser.parse_args(arguments)
    try:
        runs = read_runs([folder_or_run(run) for run in asked.runs])
        text = table([resources_of(run) for run in runs], asked.euros_per_hour)
        if asked.out is not None:
            write_bytes(asked.out, (text + "\n").encode())
        if asked.json is not None:
            write_json(asked.json, figures_of(runs, asked.euros_per_hour, asked.note))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
