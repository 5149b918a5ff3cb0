"""`report`: report.html of one run or of several side by side, and on demand its tables and figures as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.report import write_run_exports, write_run_report
from fedfinlora.errors import UserError


def report(runs: Sequence[Path], output: Path | None, export: Path | None = None) -> int:
    """Write the report and what was asked for next to it, and print where they are."""
    for run in runs:
        if not (run / "result.json").is_file() and not (run / "rounds.jsonl").is_file():
            raise UserError(f"{run} is not the folder of a run: neither result.json nor rounds.jsonl is there.")
    if export is not None and export.exists() and not export.is_dir():
        raise UserError(f"{export} is a file. Name a folder with --export DIR.")
    print(write_run_report(runs, output or runs[0] / "report.html"))
    if export is not None:
        for file in write_run_exports(runs, export):
            print(file)
    return 0
