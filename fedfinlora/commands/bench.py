"""`bench NAME`: one measurement next to its reference, in one process run, as a table and as JSON."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.benches.paired import NO_VERDICT, load
from fedfinlora.errors import ConfigError, choose
from fedfinlora.files import write_json
from fedfinlora.run.origin import installed_versions, origin_of_this_process

Bench = Callable[[Sequence[str]], Mapping[str, Any]]
BENCHES = {
    "train": "train:bench_train",
    "evaluate": "evaluate:bench_evaluate",
    "federation": "federation:bench_federation",
    "private-step": "private_step:bench_private",
    "round": "round:bench_round",
    "ledger": "ledger:bench_ledger",
    "serve": "serve:bench_serve",
}
"""Name -> module of `benchmarks.benches` and its function, which takes overrides and gives figures."""
FILINGS = "filing:bench_filing"
"""`bench train --rows xbrl`."""


def bench(words: Sequence[str], file: Path | None, rows: str = "short", minutes: float = 8.0) -> int:
    """Run the named benchmark; the first word is its name, the rest are overrides. `rows` distinguishes the two of
    `train`.

    Returns 3 where the two sides, measured in pairs, spread too widely to say anything.
    """
    name = words[0] if words and "=" not in words[0] else ""
    if not name:
        raise ConfigError(f"`bench` needs the name of a benchmark: {', '.join((*BENCHES, 'gpu'))}.")
    if name == "gpu":  # it writes its file after every section, and a wrong result is its exit code
        from benchmarks.benches.gpu import bench_gpu

        return bench_gpu(words[1:], file, minutes)
    if rows != "short" and name != "train":
        raise ConfigError(f"--rows {rows} belongs to `bench train`.")
    place = BENCHES[choose(name, (*BENCHES, "gpu"), "benchmark")]
    module, function = (FILINGS if rows == "xbrl" else place).split(":")
    run: Bench = getattr(importlib.import_module(f"benchmarks.benches.{module}"), function)
    before = load()
    measured = run(words[1:])
    figures = {
        "bench": name,
        **origin_of_this_process(),
        **measured,
        "load": {"before": before, "after": load()},
        "machine": machine(),
    }
    print(json.dumps(figures, indent=2, ensure_ascii=False, allow_nan=False))
    if file is not None:
        write_json(file, figures)
    if figures.get("verdict") == NO_VERDICT:
        print(
            f"{NO_VERDICT} (spread {figures['spread']:.2f}, load {before} to {figures['load']['after']}): measure "
            "again when it is quiet",
            file=sys.stderr,
        )
        return 3
    return 0


def machine() -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "platform": platform.platform(),
        "versions": installed_versions(("torch", "transformers", "peft", "bitsandbytes", "flwr")),
    }
