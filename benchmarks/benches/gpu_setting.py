"""What `bench gpu` runs on: configurations made without Hydra, rows of drawn tokens, and medians of timed steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from fedfinlora.config.dataset import DatasetConfig
from fedfinlora.config.model import ModelConfig
from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.schema import Config
from fedfinlora.config.train import TrainConfig
from fedfinlora.model.packing import Example
from fedfinlora.seeds import generator

SMALL, LARGE = "memory:llama-4-layers", "memory:llama-3.1-8b"
PRECISIONS: Mapping[str, tuple[str, str]] = {
    "fp32": ("none", "float32"),
    "bf16": ("none", "bfloat16"),
    "nf4": ("nf4", "auto"),
    "int8": ("int8", "auto"),
}
"""Name -> (model.quantization, model.dtype)."""
WARM_UP_STEPS, TIMED_STEPS = 2, 5
NEEDED = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "numpy", "psutil", "pyarrow")
WHEELS = ("bitsandbytes",)
"""Packages that images with CUDA often lack; without them nf4 and int8 cannot be checked."""


@dataclass(frozen=True)
class RowSet:
    """Rows of drawn tokens with the shape of a kind of benchmark."""

    common_tokens: int
    """Tokens that every row of a group begins with."""
    own_tokens: tuple[int, int]
    """Fewest and most tokens of a row's own prompt."""
    answer_tokens: int
    groups: int
    """Beginnings that differ: filings, or instructions."""
    rows: int
    """Rows of a group in one step."""

    def examples(self, vocabulary: int, seed: int, share: float = 1.0, steps: int = 1) -> tuple[Example, ...]:
        """The rows of `steps` steps, `share` times as long. No token id is below 2 (padding and the end)."""
        rng = generator(seed, "bench gpu rows", self.common_tokens, self.own_tokens[1])

        def tokens(count: float) -> tuple[int, ...]:
            return tuple(rng.integers(2, vocabulary, max(1, round(count))).tolist())

        found: list[Example] = []
        for _ in range(self.groups):
            common = tokens(share * self.common_tokens)
            for _ in range(self.rows * steps):
                own = int(rng.integers(*self.own_tokens, endpoint=True))
                found.append(Example(common + tokens(share * own), tokens(self.answer_tokens), len(found)))
        return tuple(found)


SETS: Mapping[str, tuple[RowSet, ...]] = {
    "short": (RowSet(24, (20, 56), 2, 1, 16),),
    "filings": (RowSet(6800, (30, 90), 8, 1, 8),),
    "mixed": (RowSet(24, (20, 56), 2, 2, 4), RowSet(1500, (40, 400), 12, 1, 4), RowSet(300, (200, 900), 30, 1, 2)),
}
"""Name -> its parts: 16 headlines with one instruction (some 650 computed tokens), 8 questions on one filing, and both
kinds with reports of middle length in one step."""


def rows_of(name: str, vocabulary: int, seed: int, share: float = 1.0, steps: int = 1) -> tuple[Example, ...]:
    """The rows of a set, numbered from 0."""
    found = [row for part in SETS[name] for row in part.examples(vocabulary, seed, share, steps)]
    return tuple(Example(row.prompt_ids, row.answer_ids, number) for number, row in enumerate(found))


def config_of(path: str, precision: str, device: str = "auto", freeze_a: bool = False, seed: int = 0) -> Config:
    """A run's configuration for a model, in one of PRECISIONS; LoRA of rank 8 without dropout on q, k and v."""
    quantization, dtype = PRECISIONS[precision]
    name = path.split(":")[-1].rsplit("/", 1)[-1]
    model = ModelConfig(name=name, path=path, quantization=quantization, dtype=dtype, device=device, unpack="no")
    train = TrainConfig(learning_rate=1e-4, warmup_steps=0, schedule="constant", batch_rows=16, batch_tokens=16384)
    peft = PeftConfig(dropout=0.0, freeze_a=freeze_a)
    return Config(seed=seed, model=model, peft=peft, train=train, dataset=DatasetConfig(source="sample"))


def missing(packages: Sequence[str]) -> list[str]:
    """Which of the packages are not installed."""
    return [name for name in packages if find_spec(name) is None]


def synchronize(device: torch.device) -> None:
    """Wait for the device: its work is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(device: torch.device, work: Callable[[], object]) -> float:
    """Wall seconds of `work`, the device's included."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def median_seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Median seconds of TIMED_STEPS calls after WARM_UP_STEPS."""
    return statistics.median([seconds_of(device, work) for _ in range(WARM_UP_STEPS + TIMED_STEPS)][WARM_UP_STEPS:])


def free(device: torch.device) -> None:
    """Drop the models of this process, and give torch's reserve back to the device."""
    import gc

    from fedfinlora.model import loading

    loading.forget()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
