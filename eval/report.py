"""report.html of one run or of several side by side, and its figures for other programs, with the published ones of the
catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.catalog import BENCHMARKS, ON_REQUEST, PUBLISHED_FEDERATED, PUBLISHED_FEDERATED_TASKS, Benchmark
from eval.metrics.compare import compare_runs
from fedfinlora.config.schema import Config
from fedfinlora.config.values import to_plain
from fedfinlora.report import BenchmarkInfo, Published, write_exports, write_paper, write_report

PUBLISHED_HEADINGS = {
    "Base": "base",
    "LoRA 8-bit": "lora_r8_8bit",
    "QLoRA 4-bit": "qlora_r4_4bit",
    "DoRA 8-bit": "dora_r8_8bit",
    "rsLoRA 8-bit": "rslora_r8_8bit",
    "Best other": "best_other",
}
"""Column of the report -> column of the catalogue, all but the last of Llama 3.1 8B Instruct."""

FEDERATED_HEADING = "FinLoRA federated"

PUBLISHED = Published(
    titles={
        "Base": "Llama 3.1 8B Instruct, untouched",
        "LoRA 8-bit": "the same, rank 8, like DoRA and rsLoRA",
        "QLoRA 4-bit": "the same, rank 4",
        "Best other": "the best other model, named in each row",
        FEDERATED_HEADING: "its own federated run, 4 nodes, four benchmarks",
    },
    band=("LoRA 8-bit", "QLoRA 4-bit", "DoRA 8-bit", "rsLoRA 8-bit"),
    pin="Base",
    federated_keys=PUBLISHED_FEDERATED_TASKS,
    federated_means={system: figures["mean"] for system, figures in PUBLISHED_FEDERATED.items()},
)


def write_run_report(runs: Sequence[Path], output: Path) -> Path:
    """Write the report and return its path."""
    catalogue = _catalogue(runs)
    return write_report(runs, output, catalogue, to_plain(Config()), PUBLISHED, compare_runs)


def write_run_exports(runs: Sequence[Path], folder: Path) -> list[Path]:
    """Write the score table as CSV, Markdown and LaTeX and every figure as SVG; return the files."""
    return write_exports(runs, folder, _catalogue(runs), PUBLISHED)


def write_paper_files(runs: Sequence[Path], folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Write figures and LaTeX tables for papers, all or those named; return the files (`write_paper`)."""
    return write_paper(runs, folder, _catalogue(runs), PUBLISHED, names)


def _catalogue(runs: Sequence[Path]) -> list[BenchmarkInfo]:
    """All benchmarks; those of ON_REQUEST where a run has scores of them."""
    scored = {file.stem for run in runs for file in (run / "eval").glob("*/*.jsonl")}
    return [_info(entry) for entry in BENCHMARKS.values() if entry.group not in ON_REQUEST or entry.key in scored]


def _info(benchmark: Benchmark) -> BenchmarkInfo:
    published: dict[str, tuple[float | None, float | None]] = {
        heading: benchmark.published[column] for heading, column in PUBLISHED_HEADINGS.items()
    }
    if benchmark.key in PUBLISHED_FEDERATED["federated"]:
        published[FEDERATED_HEADING] = (PUBLISHED_FEDERATED["federated"][benchmark.key], None)
    models = {"Best other": benchmark.best_other_name}
    return BenchmarkInfo(benchmark.key, benchmark.title, benchmark.group, published, models, benchmark.notes)
