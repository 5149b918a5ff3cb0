"""report.html: one self-contained file that shows one run, or several side by side, to whoever has to judge them.

It needs no network, prints, and holds what the run folder holds; what is missing there is named as missing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfinlora.errors import UserError
from fedfinlora.report.scores import BenchmarkInfo

__all__ = ["BenchmarkInfo", "write_report"]


def write_report(
    runs: Sequence[Path],
    output: Path,
    catalogue: Sequence[BenchmarkInfo],
    defaults: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report of the run folders `runs` and return its path.

    `output` is a file, or a folder that gets a report.html. `catalogue` gives titles, groups and published figures in the
    order of the table. Configuration values are marked where they differ from `defaults` (nested plain values; None means
    those of the schema). Raises UserError if a path is no run folder or the file cannot be written.
    """
    from fedfinlora.config import Config, to_plain
    from fedfinlora.report.page import page
    from fedfinlora.report.reading import read_runs

    content = page(read_runs(runs), catalogue, to_plain(Config()) if defaults is None else defaults)
    file = output / "report.html" if output.is_dir() else output
    unfinished = file.with_name(file.name + ".tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("w", encoding="utf-8") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        unfinished.replace(file)
    except OSError as error:
        raise UserError(f"Cannot write the report {file}: {error.strerror}. Choose another place with output=FILE.") from error
    return file
