"""report.html: one self-contained file that shows one run, or several side by side, to whoever has to judge them.

It needs no network, prints, and holds what the run folder holds; what is missing there is named as missing. The score table and
every figure can be saved from it, or written beside it (`write_exports`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfinlora.errors import UserError
from fedfinlora.report.comparison import Compare
from fedfinlora.report.scores import BenchmarkInfo, Published

__all__ = ["BenchmarkInfo", "Compare", "Published", "write_exports", "write_report"]

NOTHING_PUBLISHED = Published()


def write_report(
    runs: Sequence[Path],
    output: Path,
    catalogue: Sequence[BenchmarkInfo],
    defaults: Mapping[str, Any] | None = None,
    published: Published = NOTHING_PUBLISHED,
    compare: Compare | None = None,
) -> Path:
    """Write the report of the run folders `runs` and return its path.

    `output` is a file, or a folder that gets a report.html. `catalogue` gives titles, groups and published figures in the
    order of the table, `published` says what the published columns are, `compare` compares two evaluations row by row (None leaves
    paired differences out). Configuration values are marked where they differ from `defaults` (nested plain values; None means
    those of the schema). Raises UserError if a path is no run folder or the file cannot be written.
    """
    from fedfinlora.config import Config
    from fedfinlora.config_values import to_plain
    from fedfinlora.report.page import page
    from fedfinlora.report.reading import read_runs

    content = page(read_runs(runs), catalogue, to_plain(Config()) if defaults is None else defaults, published, compare)
    file = output / "report.html" if output.is_dir() else output
    _write(file, content, "output=FILE")
    return file


def write_exports(
    runs: Sequence[Path], folder: Path, catalogue: Sequence[BenchmarkInfo], published: Published = NOTHING_PUBLISHED
) -> list[Path]:
    """Write scores.csv, scores.md, scores.tex and figures/*.svg into `folder`; return the files. Raises UserError as `write_report`."""
    from fedfinlora.report.drawing import standalone
    from fedfinlora.report.exports import all_charts, table_files
    from fedfinlora.report.reading import read_runs
    from fedfinlora.report.scores import systems_of, with_unlisted

    read = read_runs(runs)
    systems = systems_of(read)
    catalogue = with_unlisted(catalogue, systems)
    contents = {folder / name: content for name, (_, content) in table_files(read, systems, catalogue, published).items()}
    for chart in all_charts(read, systems, catalogue, published):
        contents[folder / "figures" / f"{chart.name}.svg"] = standalone(chart)
    for file, content in contents.items():
        _write(file, content, "--export DIR")
    return list(contents)


def _write(file: Path, content: str, way_out: str) -> None:
    """Replace a file as a whole."""
    unfinished = file.with_name(file.name + ".tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("w", encoding="utf-8", newline="") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        unfinished.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise UserError(f"Cannot write {file}: {error.strerror}. Choose another place with {way_out}.") from error
