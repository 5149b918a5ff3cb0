"""`report`: report.html of one run or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.report import write_run_report
from fedfinlora.errors import UserError


def report(runs: Sequence[Path], output: Path | None) -> int:
    """Write the report and print where it is."""
    for run in runs:
        if not (run / "result.json").is_file() and not (run / "rounds.jsonl").is_file():
            raise UserError(f"{run} is not the folder of a run: neither result.json nor rounds.jsonl is there.")
    print(write_run_report(runs, output or runs[0] / "report.html"))
    return 0
