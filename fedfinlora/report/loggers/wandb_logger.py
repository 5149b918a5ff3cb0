"""Weights & Biases offline. `wandb sync RUN/state/loggers/wandb/wandb/offline-run-*` sends it later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def open_logger(folder: Path, run: str, facts: Mapping[str, Any]) -> WandbLogger:
    """An offline run, also where WANDB_MODE says otherwise: no code, no terminal output, nothing of the machine."""
    import wandb

    from fedfinlora.report.loggers import PROJECT

    settings = wandb.Settings(
        console="off", silent=True, save_code=False, disable_git=True, x_disable_stats=True, x_disable_meta=True,
        disable_job_creation=True, symlink=False, x_save_requirements=False,
    )  # fmt: skip
    opened = wandb.init(
        mode="offline", dir=str(folder), project=PROJECT, name=run, config=dict(facts), settings=settings
    )
    return WandbLogger(opened)


class WandbLogger:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        # W&B's own step may not go back, as the final scores of an earlier best round would.
        self._run.log({**scalars, "round": step})

    def close(self) -> None:
        self._run.finish()
