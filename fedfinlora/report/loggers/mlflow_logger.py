"""MLflow's file store in the run's folder: `mlflow ui --backend-store-uri RUN/state/loggers/mlflow` shows it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NOT_IN_A_KEY = re.compile(r"[^/\w.\- :]")
"""What MLflow takes in no key of a metric; a bank's name may have it."""


def open_logger(folder: Path, run: str, facts: Mapping[str, Any]) -> MlflowLogger:
    """A new MLflow run. A resumed run adds another one to the same experiment."""
    # MLflow 3.17 keeps its file store as it is, and opens it only where this says so.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    from fedfinlora.report.loggers import PROJECT

    client = MlflowClient(tracking_uri=folder.absolute().as_uri())
    known = client.get_experiment_by_name(PROJECT)
    experiment = known.experiment_id if known else client.create_experiment(PROJECT)
    started = client.create_run(experiment, run_name=run).info.run_id
    for name, value in facts.items():
        client.log_param(started, name, value)
    return MlflowLogger(client, started)


class MlflowLogger:
    """One MLflow run, by the client's own calls: MLflow's global state stays as it is."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._run_id = client, run_id

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(_NOT_IN_A_KEY.sub("_", tag), value, now, step) for tag, value in scalars.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)
