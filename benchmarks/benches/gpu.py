"""`bench gpu`: right first, then fast, on one card and without the hub. At most so many minutes.

    python -m fedfinlora bench gpu --minutes 8 --json gpu.json

| section | what it does |
|---|---|
| machine | card, packages, copy bandwidth, one matrix product |
| correctness | four layers with grouped heads against a float32 reference, in each precision (`gpu_correctness`) |
| round | two banks and the server's mean, through the functions that the apps call; `simulate` where Flower is there |
| train nf4 … | Llama 3.1 8B with drawn weights: steps next to Hugging Face Trainer, peak memory, private steps |
| evaluate nf4 … | its decoding next to `generate`, and vLLM where that is installed |

Each section is tried by itself, and the JSON file is written after each. A section is skipped, by name and reason, once
the minutes are over. On a CPU the round is one of the small model, and the sections of the large one are skipped unless
model.path names a smaller one. Nothing of Flower, Ray, Hydra or Opacus is imported. The exit code is 1 if any result is
wrong or a section fails.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.benches.gpu_setting import LARGE, NEEDED, PRECISIONS, SMALL, WHEELS, free, missing
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.files import write_json
from fedfinlora.run.origin import installed_versions, origin_of_this_process

MEASURED = ("nf4", "bf16", "int8")
"""Precisions of the large model, in the order in which they are measured."""
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "tokenizers", "vllm", "flwr")


@dataclass
class GpuBench:
    """The sections so far, and the time that is left."""

    minutes: float
    file: Path | None
    header: dict[str, Any]
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    started_s: float = field(default_factory=time.monotonic)

    def run(self, name: str, work: Callable[[], dict[str, Any]], needs_s: float = 0.0, skip: str = "") -> None:
        """Run a section, unless there is a reason to skip it or fewer than `needs_s` seconds are left."""
        left_s = 60 * self.minutes - (time.monotonic() - self.started_s)
        if not skip and left_s < needs_s:
            skip = f"{max(0.0, left_s):.0f} s of --minutes {self.minutes:g} are left, it takes about {needs_s:.0f} s"
        if skip:
            self.sections[name] = {"status": "skipped", "reason": skip}
        else:
            started_s = time.monotonic()
            try:
                found = work()
                found["status"] = "wrong" if found.get("wrong") else "ok"
            except Exception as error:
                traceback.print_exc()
                found = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
            self.sections[name] = {**found, "seconds": round(time.monotonic() - started_s, 2)}
        self._report(name)

    def _report(self, name: str) -> None:
        section = self.sections[name]
        wrong = [f"  wrong: {item}" for item in section.get("wrong", ())]
        shown = " ".join(
            str(part) for part in (section["status"], section.get("reason", ""), section.get("seconds", ""))
        )
        print("\n".join([f"{name}: {shown}", *section.get("shown", ()), *wrong]), file=sys.stderr, flush=True)
        if self.file is not None:
            write_json(self.file, self.figures)

    @property
    def figures(self) -> dict[str, Any]:
        """All that was found so far."""
        return {**self.header, "wrong": self.wrong, "sections": self.sections}

    @property
    def wrong(self) -> list[str]:
        """What is wrong, and the sections that failed."""
        checks = [f"{name}: {item}" for name, found in self.sections.items() for item in found.get("wrong", ())]
        return checks + [f"{name}: {found['reason']}" for name, found in self.sections.items()
                         if found["status"] == "failed"]  # fmt: skip


def bench_gpu(words: Sequence[str], file: Path | None, minutes: float) -> int:
    """The command. Exit code 0, or 1 where something is wrong. Settings: model.path and model.device alone."""
    asked = _settings(words)
    lacking = missing(NEEDED)
    if lacking:
        raise UserError(f"`bench gpu` needs {', '.join(lacking)} on this machine: install or bring their wheels.")
    import torch

    from benchmarks.benches.gpu_correctness import correctness
    from benchmarks.benches.gpu_evaluation import evaluation, vllm
    from benchmarks.benches.gpu_machine import machine
    from benchmarks.benches.gpu_round import federated_round
    from benchmarks.benches.gpu_training import training
    from fedfinlora.model.devices import pick_device

    device_name = asked.get("model.device", "auto")
    device = pick_device(device_name)
    path = asked.get("model.path", LARGE)
    no_wheels = missing(WHEELS)
    precisions = [name for name in PRECISIONS if not (no_wheels and name in ("nf4", "int8"))]
    bench = GpuBench(
        minutes,
        file,
        {
            "bench": "gpu",
            **origin_of_this_process(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "model": path,
            "versions": installed_versions(PACKAGES),
            "wheels_to_bring": no_wheels,
        },
    )
    too_large = (
        "" if device.type == "cuda" or path != LARGE else f"{path} needs a GPU; model.path=memory:llama-4-layers"
    )
    if no_wheels:
        print(f"nf4 and int8 are skipped: bring the wheel of {', '.join(no_wheels)}.", file=sys.stderr)
    bench.run("machine", lambda: machine(device))
    rate = bench.sections["machine"].get("product_flop_per_s", 0.0)
    bench.run("correctness", lambda: correctness(device_name, precisions))
    measured = [name for name in MEASURED if name in precisions] or precisions[:1]
    small = SMALL if too_large else path
    bench.run("round", lambda: federated_round(small, measured[0], device_name), 30)
    for precision in measured:
        bench.run(f"train {precision}", partial(training, path, precision, device_name, rate), 60, too_large)
        bench.run(f"evaluate {precision}", partial(evaluation, path, precision, device_name), 30, too_large)
    free(device)
    bench.run("vllm", lambda: vllm(path), 90, too_large or ("vllm is not installed" if missing(["vllm"]) else ""))
    print(json.dumps(bench.figures, indent=2, ensure_ascii=False, allow_nan=False))
    return 1 if bench.wrong else 0


def _settings(words: Sequence[str]) -> dict[str, str]:
    found = dict(word.split("=", 1) for word in words)
    unknown = sorted(set(found) - {"model.path", "model.device"})
    if unknown:
        raise ConfigError(f"`bench gpu` takes model.path= and model.device= alone, not {unknown[0]}.")
    return found
