"""`bench NAME`: one measurement next to its reference, in one process run, as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfinlora.commands.paired import NO_VERDICT, load
from fedfinlora.errors import ConfigError, choose
from fedfinlora.runfolder import installed_versions, origin_of_this_process, write_json

Bench = Callable[[Sequence[str]], Mapping[str, Any]]


def bench(words: Sequence[str], file: Path | None, rows: str = "short") -> int:
    """Run the named benchmark; the first word is its name, the rest are overrides. `rows` tells the two of `train`
    apart.

    Returns 3 where the two sides, measured in pairs, spread too widely to say anything.
    """
    name = words[0] if words and "=" not in words[0] else ""
    run: Bench
    if rows != "short" and name != "train":
        raise ConfigError(f"--rows {rows} belongs to `bench train`.")
    if choose(name, ("train", "evaluate", "federation", "private-step", "round", "ledger"), "benchmark") == "evaluate":
        from fedfinlora.commands.bench_evaluate import bench_evaluate

        run = bench_evaluate
    elif name == "round":
        from fedfinlora.commands.bench_round import bench_round

        run = bench_round
    elif name == "private-step":
        from fedfinlora.commands.bench_private import bench_private

        run = bench_private
    elif name == "ledger":
        from fedfinlora.commands.bench_ledger import bench_ledger

        run = bench_ledger
    elif name == "train" and rows == "xbrl":
        from fedfinlora.commands.bench_filing import bench_filing

        run = bench_filing
    elif name == "train":
        from fedfinlora.commands.bench_train import bench_train

        run = bench_train
    else:
        from fedfinlora.commands.bench_federation import bench_federation

        run = bench_federation
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
            (
                f"{NO_VERDICT} (spread {figures['spread']:.2f}, load {before} to {figures['load']['after']}): measure "
                "again when it is quiet"
            ),
            file=sys.stderr,
        )
        return 3
    return 0


def machine() -> dict[str, Any]:
    """What it ran on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "platform": platform.platform(),
        "versions": installed_versions(("torch", "transformers", "peft", "bitsandbytes", "flwr")),
    }
