"""report.html: one self-contained file that shows one run, or several side by side.

It needs no network; what is missing in a run folder is named as missing. The score table and every chart can be saved
from it, or written as files (`write_exports`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfinlora.errors import choose
from fedfinlora.files import write_bytes
from fedfinlora.report.benchmarks import BenchmarkInfo, Published
from fedfinlora.report.comparison import Compare

__all__ = ["BenchmarkInfo", "Compare", "Published", "write_exports", "write_paper", "write_report"]

NOTHING_PUBLISHED = Published()


def write_report(
    runs: Sequence[Path],
    output: Path,
    catalogue: Sequence[BenchmarkInfo],
    defaults: Mapping[str, Any] | None = None,
    published: Published = NOTHING_PUBLISHED,
    compare: Compare | None = None,
) -> Path:
    """Write the report of the run folders `runs` into `output`, a file or a folder that gets a report.html.

    `catalogue` is in the order of the table, `compare` compares two evaluations row by row (None leaves paired
    differences out). Configuration values are marked where they differ from `defaults` (nested plain values; None means
    those of the schema). UserError if a path is no run folder or the file cannot be written.
    """
    from fedfinlora.config.schema import Config
    from fedfinlora.config.values import to_plain
    from fedfinlora.report.content import read_content
    from fedfinlora.report.page import page
    from fedfinlora.run.folder import flatten

    flat = flatten(to_plain(Config()) if defaults is None else defaults)
    html = page(read_content(runs, catalogue, published), flat, compare)
    file = output / "report.html" if output.is_dir() else output
    write_bytes(file, html.encode())
    return file


def write_exports(
    runs: Sequence[Path], folder: Path, catalogue: Sequence[BenchmarkInfo], published: Published = NOTHING_PUBLISHED
) -> list[Path]:
    """Write scores.csv, scores.md, scores.tex and figures/*.svg into `folder`; return the files. UserError as
    `write_report`.
    """
    from fedfinlora.report.content import read_content
    from fedfinlora.report.drawing import standalone
    from fedfinlora.report.exports import all_charts, score_files

    content = read_content(runs, catalogue, published)
    files = {folder / name: text for name, _, _, text in score_files(content)}
    for chart in all_charts(content):
        files[folder / "figures" / f"{chart.name}.svg"] = standalone(chart)
    for file, written in files.items():
        write_bytes(file, written.encode())
    return list(files)


def write_paper(
    runs: Sequence[Path],
    folder: Path,
    catalogue: Sequence[BenchmarkInfo],
    published: Published = NOTHING_PUBLISHED,
    names: Sequence[str] = (),
) -> list[Path]:
    """Write figures for papers (paper/*.png and .pdf) and tables (paper/*.tex) into `folder`; return the files.

    `names` are keys of FIGURES and TABLES in `fedfinlora.report.paper`; all if empty. Tables come first: they need no
    matplotlib, whose absence is a UserError. So is an unknown name.
    """
    from fedfinlora.report.content import read_content
    from fedfinlora.report.paper import FIGURES, TABLES, figure_files, table_files

    wanted = [choose(name, [*TABLES, *FIGURES], "figure") for name in names] or [*TABLES, *FIGURES]
    content, written = read_content(runs, catalogue, published), []
    for name in wanted:
        for file, form in (table_files if name in TABLES else figure_files)(content, name).items():
            write_bytes(folder / "paper" / file, form)
            written.append(folder / "paper" / file)
    return written
