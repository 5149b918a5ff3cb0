"""`bench round`: what a round costs in addition to training, in a deployment on loopback, with the banks' resident
workers and without.

One coordinator and two banks, over TLS, by the deployment's own commands, each with a HOME of its own in a folder that
is thrown away. A round's overhead is its wall time less the longest training time of a bank.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from fedfinlora.compose import PROJECT_ROOT, compose
from fedfinlora.deployment.bank_settings import FEWEST
from fedfinlora.deployment.flower_link import free_port
from fedfinlora.errors import UserError
from fedfinlora.files import read_lines
from fedfinlora.system.family import end_family

BANKS = ("north", "south")
ROUNDS = 4
START_S = 180.0


def bench_round(overrides: Sequence[str]) -> Mapping[str, Any]:
    """Seconds of each round outside training, after the first round, with worker and without. Overrides are the run's;
    the model is the default one.
    """
    if not any(word.startswith("model.threads=") for word in overrides):  # the banks share this machine's cores
        overrides = [*overrides, f"model.threads={max(1, len(os.sched_getaffinity(0)) // len(BANKS))}"]
    config = compose(overrides)
    with tempfile.TemporaryDirectory(prefix="fedfinlora-bench-") as place:
        found = {
            name: _rounds(Path(place) / name, overrides, worker)
            for name, worker in (("worker", True), ("no worker", False))
        }
    overheads = {name: [one["overhead_s"] for one in rounds] for name, rounds in found.items()}
    after_first = {name: fmean(values[1:]) for name, values in overheads.items()}
    print(
        f"seconds of a round outside training, after the first: {after_first['worker']:.1f} with workers, "
        f"{after_first['no worker']:.1f} without"
    )
    return {
        "ratio": after_first["no worker"] / after_first["worker"],
        "ours": {"overhead_s": after_first["worker"], "first_round_s": overheads["worker"][0]},
        "reference": {
            "name": "no worker",
            "overhead_s": after_first["no worker"],
            "first_round_s": overheads["no worker"][0],
        },
        "differs": {},
        "rows": sum(one["rows"] for rounds in found.values() for one in rounds),
        "rounds": found,
        "model": config.model.name,
        "quantization": config.model.quantization,
    }


def _rounds(place: Path, overrides: Sequence[str], worker: bool) -> list[dict[str, float]]:
    """One deployment from nothing, and what each of its rounds took."""
    port, coordinator = free_port(), place / "coordinator"
    model = [word for word in overrides if word.split("=")[0].split(".")[0] in ("model", "peft")]
    typed("coordinator", "init", "--home", str(coordinator), "--listen", "127.0.0.1", "--port", str(port))
    for bank in BANKS:
        typed(
            "bank", "init", "--home", str(place / bank), "--name", bank, "--data",
            str(PROJECT_ROOT / "data" / "sample"), "--coordinator", f"127.0.0.1:{port}", "--ca",
            str(coordinator / "ca.crt"), "--budget-epsilon", "0", *model,
        )  # fmt: skip
        typed("coordinator", "enroll", str(place / bank / "node.key.pub"), "--name", bank, "--home", str(coordinator))
        typed("bank", "accept", str(coordinator / "enrolled" / f"{bank}.crt"), "--home", str(place / bank))
    alone = [] if worker else ["--no-worker"]
    with (
        running(coordinator, "coordinator", "start", "--home", str(coordinator), until="coordinator is up"),
        running(place / BANKS[0], "bank", "start", "--home", str(place / BANKS[0]), *alone),
        running(place / BANKS[1], "bank", "start", "--home", str(place / BANKS[1]), *alone),
    ):
        # The loss of held-out rows is work of its own, neither training nor overhead.
        words = [
            f"num_server_rounds={ROUNDS}",
            "train.steps_per_round=1",
            f"train.batch_rows={FEWEST}",  # banks refuse a round on fewer
            "train.holdout_max_rows=0",
            "evaluation=none",
            *overrides,
        ]
        typed("coordinator", "run", "--home", str(coordinator), *words, f"output_dir={place}", "run_name=run")
    found = []
    for line in read_lines(place / "run" / "rounds.jsonl"):
        banks = line["timings"]["banks"].values()
        trained, loaded = max(bank["train_s"] for bank in banks), max(bank["load_s"] for bank in banks)
        total = line["timings"]["total_s"]
        found.append(
            {
                "total_s": total,
                "train_s": trained,
                "load_s": loaded,
                "overhead_s": total - trained,
                "rows": sum(bank["rows"] for bank in line["banks"]),
            }
        )
    return found


def typed(*words: str) -> None:
    """Type one of the deployment's commands. UserError if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "fedfinlora", *words], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(
            f"`fedfinlora {' '.join(words[:2])}` failed: "
            f"{done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.stdout}"
        )


@contextmanager
def running(place: Path, *words: str, until: str = "") -> Iterator[int]:
    """One of the deployment's own long-running commands, ended afterwards; gives its process id once it has said
    `until`.
    """
    file = place / "bench.log"
    with open(file, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedfinlora", *words], cwd=PROJECT_ROOT, stdout=log, stderr=log, env=dict(os.environ)
        )
    try:
        deadline = time.monotonic() + START_S
        while until and until not in file.read_text("utf-8"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise UserError(
                    f"`fedfinlora {' '.join(words[:2])}` did not come up: {file.read_text('utf-8').strip()}"
                )
            time.sleep(0.2)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            end_family(process)
