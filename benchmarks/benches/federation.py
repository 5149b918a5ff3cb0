"""`bench federation`: the same rows and optimiser steps pooled in one process and as four simulated banks through
Flower.

Both wall times are taken after the base model is in memory: what a federation adds is messages, adapter swaps and the
server's step.
"""

from __future__ import annotations

import math
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.benches.paired import MEASURED, NO_VERDICT, WIDEST_SPREAD
from fedfinlora.commands.baselines import centralized
from fedfinlora.commands.simulate import simulate
from fedfinlora.compose import compose
from fedfinlora.errors import UserError
from fedfinlora.files import read_json, read_lines

BANKS = 4
ROUNDS = 2
STEPS_PER_ROUND = 10


def bench_federation(overrides: Sequence[str]) -> dict[str, Any]:
    """Seconds of both and the ratio federated / centralised; centralised runs before and after: where these two differ
    by more than WIDEST_SPREAD the machine has drifted, and there is no verdict.
    """
    folder = Path(tempfile.mkdtemp(prefix="fedfinlora-bench-"))
    common = [
        "evaluation=none", "dataset.tasks=[fpb,fiqa,tfns,nwgi]", "train.holdout_max_rows=0",
        f"train.steps_per_round={STEPS_PER_ROUND}",
        *overrides, f"num_server_rounds={ROUNDS}", f"banks={BANKS}", f"output_dir={folder}", "overwrite=true",
    ]  # fmt: skip
    try:
        pooled = [_pooled_s(common, folder, "before")]
        if simulate([*common, "run_name=federated"]):
            raise UserError("The federated run failed; see its message above.")
        federated = [_seconds_after_load(line) for line in read_lines(folder / "federated" / "rounds.jsonl")]
        pooled.append(_pooled_s(common, folder, "after"))
        results = {name: read_json(folder / name / "result.json") for name in ("federated", "before")}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for key in ("rows_trained", "steps_trained"):
        if results["federated"][key] != results["before"][key]:
            raise UserError(f"The two runs differ in {key}: {results['federated'][key]} and {results['before'][key]}.")
    centralized_s = statistics.mean(pooled)
    config = compose(common)
    return {
        "ratio": sum(federated) / centralized_s,
        "spread": (max(pooled) - min(pooled)) / centralized_s,
        "verdict": MEASURED if max(pooled) - min(pooled) <= WIDEST_SPREAD * centralized_s else NO_VERDICT,
        "ours": {"federated_s": sum(federated), "rounds_s": federated},
        "reference": {
            "name": "the same rows and steps pooled in one process",
            "centralized_s": centralized_s,
            "runs_s": pooled,
        },
        "differs": {"rows_trained": 0, "steps_trained": 0},
        "rows": results["federated"]["rows_trained"],
        "steps": results["federated"]["steps_trained"],
        "banks": BANKS,
        "rounds": ROUNDS,
        "steps_per_round": STEPS_PER_ROUND,
        "model": config.model.name,
        "quantization": config.model.quantization,
        "dataset": config.dataset.source,
    }


def _pooled_s(common: Sequence[str], folder: Path, name: str) -> float:
    centralized([*common, f"run_name={name}"])
    return math.fsum(line["timings"]["total_s"] for line in read_lines(folder / name / "rounds.jsonl"))


def _seconds_after_load(line: dict[str, Any]) -> float:
    """A round's wall time without the banks' loading of the base model, which happens one bank at a time, once a
    process.
    """
    timings = line["timings"]
    return float(timings["total_s"]) - math.fsum(bank.get("load_s", 0.0) for bank in timings["banks"].values())
