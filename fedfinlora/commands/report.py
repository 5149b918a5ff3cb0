"""`report`: report.html of one run or of several side by side, and on demand its tables and figures as files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from eval.report import write_paper_files, write_run_exports, write_run_report
from fedfinlora.errors import UserError
from fedfinlora.report.paper import TABLES
from fedfinlora.report.paper_drawing import require_matplotlib
from fedfinlora.run.ended import how_to_resume
from fedfinlora.run.listing import is_run, runs_now


def report(runs: Sequence[Path], output: Path, export: Path | None = None, figures: Sequence[str] = ()) -> int:
    """Write the report and what was asked for next to it, and print where they are; with `figures` these alone."""
    for run in runs:
        if not (run / "result.json").is_file() and not (run / "rounds.jsonl").is_file():
            if is_run(run):
                why = "It has closed no round and written no result, so there is nothing to report"
                raise UserError(f"{run}: {why}; {how_to_resume(run)}" if not runs_now(run) else f"{run}: {why} yet.")
            raise UserError(f"{run} is not the folder of a run: neither result.json nor rounds.jsonl is there.")
    if export is not None and export.exists() and not export.is_dir():
        raise UserError(f"{export} is a file. Name a folder with --export DIR.")
    if figures and export is None:
        raise UserError("--figure writes into the folder of --export. Add --export DIR.")
    if export is not None and figures:
        return _print(write_paper_files(runs, export, figures))
    print(write_run_report(runs, output))
    if export is not None:
        _print(write_run_exports(runs, export))
        try:
            require_matplotlib()
        except UserError as error:  # the rest of the export does not need it
            _print(write_paper_files(runs, export, list(TABLES)))
            print(error, file=sys.stderr)
        else:
            _print(write_paper_files(runs, export))
    return 0


def _print(files: Sequence[Path]) -> int:
    for file in files:
        print(file)
    return 0
