"""The table of PEFT methods for docs/results.md: the kept cells of `benchmarks.zoo`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from benchmarks.small_grid import Figures
from fedfinlora.files import read_json
from fedfinlora.run.typed import from_json

MODES = ("pooled", "federated")
BANKS, ROUNDS, STEPS = 4, 3, 120


class Entry(NamedTuple):
    """How a method is run."""

    title: str
    words: tuple[str, ...]
    learning_rate: float
    scale: int = 2
    """alpha over the rank: LoRA's is 2; methods without scaling leave it unused."""


ZOO: Mapping[str, Entry] = {
    "lora": Entry("LoRA", ("peft=lora",), 2e-3),
    "lora_plus": Entry("LoRA+, ratio 16", ("peft=lora_plus",), 5e-4),
    "pissa": Entry("PiSSA", ("peft=pissa",), 5e-4),
    "olora": Entry("OLoRA", ("peft=olora",), 5e-4),
    "vera": Entry("VeRA", ("peft=vera",), 2e-2),
    "miss": Entry("MiSS", ("peft=miss",), 1e-3),
    "qalora": Entry("QA-LoRA", ("peft=qalora",), 1e-3),
    "loftq": Entry("LoftQ", ("peft=loftq",), 2e-3),
    "lora_xs": Entry("LoRA-XS", ("peft=lora_xs",), 2e-2),
    "shira": Entry("SHiRA", ("peft=shira",), 5e-3),
    "hira": Entry("HiRA", ("peft=hira",), 1e-2),
    "ir_qlora": Entry("IR-QLoRA (connections)", ("peft=ir_qlora",), 2e-3),
    "rslora": Entry("rsLoRA", ("peft=rslora",), 1e-3),
    "dora": Entry("DoRA", ("peft=dora",), 2e-3),
}
"""Name -> method, in the order of the table."""


@dataclass(frozen=True)
class Cell(Figures):
    """One run and what it came to."""

    method: str
    mode: str
    seed: int
    model: str = ""
    rank: int = 0
    parameters: int = 0
    """Trained, and sent by each bank in each round."""
    learning_rate: float = 0.0
    bytes_up: int = 0

    @property
    def name(self) -> str:
        """Of the cell's file."""
        return f"{self.method}-{self.mode}-s{self.seed}"


def read_zoo(folder: Path) -> list[Cell]:
    """The kept cells."""
    return [from_json(Cell, read_json(file), str(file)) for file in sorted(folder.glob("*.json"))]


def zoo_section(folder: Path) -> str:
    """The table; "" where no cell is kept."""
    cells = read_zoo(folder)
    if not cells:
        return ""
    by_method = {method: [cell for cell in cells if cell.method == method] for method in ZOO}
    lines = [
        "| method | rank | parameters | learning rate | pooled | federated | seeds | KiB up a bank a round |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(method, found) for method, found in by_method.items() if found),
    ]
    return "\n".join([*lines, "", _words(cells)])


def _line(method: str, cells: Sequence[Cell]) -> str:
    first = cells[0]
    seeds = sorted({cell.seed for cell in cells})
    sent = [cell.bytes_up for cell in cells if cell.bytes_up]
    kib = f"{fmean(sent) / BANKS / ROUNDS / 1024:.0f}" if sent else "–"
    means = [_mean([cell.mean for cell in cells if cell.mode == mode]) for mode in MODES]
    return (
        f"| {ZOO[method].title} | {first.rank} | {first.parameters:,} | {first.learning_rate:g} | {means[0]} | "
        f"{means[1]} | {len(seeds)} | {kib} |"
    )


def _mean(values: Sequence[float]) -> str:
    return f"{100 * fmean(values):.1f}" if values else "–"


def _words(cells: Sequence[Cell]) -> str:
    """What the table is of, and how far two cells must be apart."""
    rows, tests = cells[0].rows, cells[0].test_rows
    mean = fmean(cell.mean for cell in cells)
    half = 1.96 * sqrt(mean * (1 - mean) / tests)
    words = [
        f"Mean accuracy over the four sentiment benchmarks, per cent, {cells[0].model} on a 4-bit base: {rows} train "
        f"rows (repeats counted), {STEPS} steps, {tests} test rows; four banks, three rounds, fedavg. Ranks are the "
        "highest with no more parameters than LoRA's at rank 8. Learning rates are each method's usual multiple of "
        "LoRA's, and not tuned.",
        f"The 95 % interval of one cell is {100 * half:.1f} points to either side.",
    ]
    for mode in MODES:
        of_mode = [cell for cell in cells if cell.mode == mode]
        lora = [cell.mean for cell in of_mode if cell.method == "lora"]
        others = [cell for cell in of_mode if cell.method != "lora"]
        if lora and others:
            near = [cell for cell in others if abs(cell.mean - fmean(lora)) <= sqrt(2) * half]
            words.append(f"{mode.capitalize()}, {len(near)} of {len(others)} are no further from LoRA than chance.")
    return " ".join([*words, "`python -m benchmarks.zoo DIR`"])
