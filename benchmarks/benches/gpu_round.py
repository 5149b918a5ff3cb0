"""A round of two banks in `bench gpu`: the bank's round and the server's rule as the apps call them, without Flower.

Each bank trains its part of the bundled sample from the global adapter (`client_app.bank.train_round`), and the server
steps along the mean (`server_app.strategies`). The mean is checked against numpy.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.benches.gpu_setting import config_of, free, missing, seconds_of
from client_app.bank import train_round
from client_app.facts import BankFacts
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.model.loading import get_session, initial_adapter
from fedfinlora.run.origin import PROJECT_ROOT, source_fingerprint
from fedfinlora.train.memory import peak_bytes, reset_peak
from fedfinlora.wire.messages import Reply, TrainRequest
from server_app.replies import replies_of
from server_app.strategies import strategy_of
from server_app.strategies.strategy import ServerState, take_step

BANKS = ("north", "south")
ROUNDS = 2
STEPS = 2


def federated_round(path: str, precision: str, device_name: str) -> dict[str, Any]:
    """The section: seconds of each bank and round, losses, and the wire's size."""
    config = config_of(path, precision, device_name)
    train = replace(config.train, steps_per_round=STEPS, holdout_max_rows=0)
    config = replace(config, num_server_rounds=ROUNDS, banks=len(BANKS), train=train)
    session = get_session(config)
    if session.device.type == "cpu":  # reports of thousands of bytes take minutes there
        config = replace(config, dataset=replace(config.dataset, tasks=("fpb",)))
    state = ServerState(0, initial_adapter(session, config))
    strategy = strategy_of(config, BANKS, state.adapter.size)
    found: dict[str, Any] = {"rounds": [], "wrong": [], "adapter_bytes": state.adapter.nbytes}
    reset_peak(session.device)
    with tempfile.TemporaryDirectory(prefix="fedfinlora-bench-") as scratch:
        for number in range(1, ROUNDS + 1):
            request = TrainRequest(config, "bench", number, session.layout.id, source_fingerprint(), state.adapter)
            banks = {name: train_round(request, facts_of(name, Path(scratch))) for name in BANKS}
            replies = [
                Reply(name, bank.delta, bank.figures, float(np.linalg.norm(bank.delta))) for name, bank in banks.items()
            ]
            weights = strategy.weights(replies)
            following = take_step(strategy, state, replies_of(replies, weights, session.layout))
            rows = np.array([reply.figures.rows for reply in replies], np.float64)
            mean = (rows / rows.sum()) @ np.stack([reply.delta for reply in replies]).astype(np.float64)
            distance = float(np.linalg.norm(following.adapter - (state.adapter + mean)) / np.linalg.norm(mean))
            if not distance <= 1e-4:
                found["wrong"].append(
                    f"round {number}: the server's step differs from the mean update by {distance:.2g}"
                )
            found["wrong"] += [f"round {number}: {name} did not move" for name in BANKS if not banks[name].delta.any()]
            found["rounds"].append(
                {
                    "step_differs_from_mean": distance,
                    **{
                        name: {
                            "train_s": bank.figures.train_s,
                            "loss": bank.figures.train_loss,
                            "rows": bank.figures.rows,
                        }
                        for name, bank in banks.items()
                    },
                }
            )
            state = following
    if session.device.type == "cuda":
        found["peak_gib"] = peak_bytes(session.device) / 2**30
        if not missing(["flwr", "ray", "hydra"]):
            device = session.device
            del session
            free(device)
            found["simulate_s"] = simulated(config)
    return found


def facts_of(name: str, folder: Path) -> BankFacts:
    """A simulated bank with its part of the sample."""
    return BankFacts(name, BANKS.index(name), len(BANKS), "", folder / "state", folder / "ledger")


def simulated(config: Config) -> float:
    """Seconds of the same rounds as `simulate` runs them, in processes of their own. UserError where it fails."""
    words = [
        f"model.path={config.model.path}", f"model.name={config.model.name}",
        f"model.quantization={config.model.quantization}", f"num_server_rounds={ROUNDS}", f"banks={len(BANKS)}",
        f"train.steps_per_round={STEPS}", "train.holdout_max_rows=0", "evaluation=none", "workers=1",
    ]  # fmt: skip

    def run() -> None:
        with tempfile.TemporaryDirectory(prefix="fedfinlora-bench-") as scratch:
            command = [sys.executable, "-m", "fedfinlora", "simulate", *words, f"output_dir={scratch}"]
            done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise UserError(
                    f"`simulate` ends with {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}"
                )

    return seconds_of(torch.device("cpu"), run)
