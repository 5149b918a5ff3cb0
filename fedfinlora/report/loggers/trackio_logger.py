"""Trackio's local database in the run's folder: `TRACKIO_DIR=RUN/state/loggers/trackio trackio show` shows it."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ELSEWHERE = (
    "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DATASET_ID", "TRACKIO_BUCKET_ID", "TRACKIO_WEBHOOK_URL",
)  # fmt: skip
"""Variables by which Trackio would send."""


def open_logger(folder: Path, run: str, facts: Mapping[str, Any]) -> TrackioLogger:
    with _here(folder):
        import trackio

        from fedfinlora.report.loggers import PROJECT

        if Path(trackio.TRACKIO_DIR) != folder.absolute():
            raise RuntimeError("Trackio reads its folder once in a process, and an earlier run has set it")
        opened = trackio.init(
            project=PROJECT, name=run, config=dict(facts), embed=False, auto_log_gpu=False, auto_log_cpu=False
        )
    return TrackioLogger(opened, folder)


class TrackioLogger:
    def __init__(self, run: Any, folder: Path) -> None:
        self._run, self._folder = run, folder

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        with _here(self._folder):
            self._run.finish()


@contextlib.contextmanager
def _here(folder: Path) -> Iterator[None]:
    """Trackio's folder is ours, no variable sends it elsewhere, and its banner is not printed."""
    before = {name: os.environ.pop(name, None) for name in ELSEWHERE}
    os.environ["TRACKIO_DIR"] = str(folder.absolute())
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.environ.update({name: value for name, value in before.items() if value is not None})
