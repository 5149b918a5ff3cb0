"""report.html of one run or of several side by side, with the published figures of the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.catalog import BENCHMARKS
from fedfinlora.config import Config, to_plain
from fedfinlora.report import BenchmarkInfo, write_report

PUBLISHED_HEADINGS = {"Base": "base", "LoRA 8-bit": "lora_r8_8bit", "QLoRA 4-bit": "qlora_r4_4bit"}
"""Column of the report -> column of the catalogue, all three of Llama 3.1 8B Instruct."""


def write_run_report(runs: Sequence[Path], output: Path) -> Path:
    """Write the report and return its path."""
    catalogue = [
        BenchmarkInfo(
            benchmark.key,
            benchmark.title,
            benchmark.group,
            {heading: benchmark.published[column] for heading, column in PUBLISHED_HEADINGS.items()},
        )
        for benchmark in BENCHMARKS.values()
    ]
    return write_report(runs, output, catalogue, defaults=to_plain(Config()))
