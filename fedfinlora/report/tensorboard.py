"""TensorBoard scalars of a run by round, in `<run>/tensorboard/`.

Written with `tensorboard.summary.Writer`, so the process that writes need not import torch. Where the package is
missing nothing is written, and that is said once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedfinlora.run.evaluation import Scores
from fedfinlora.run.records import RoundLine

FOLDER = "tensorboard"
SCORE_NAMES = ("accuracy", "f1_macro", "unparsed_share", "finlora_accuracy", "finlora_f1", "bertscore_f1")


class TensorBoardWriter:
    """Scalars of one run while it runs. The step is the round, 0 for the base model."""

    def __init__(self, run_dir: Path, notify: Callable[[str], None] = print) -> None:
        self._writer: Any = None
        try:
            from tensorboard.summary import Writer
        except ImportError:
            notify(
                "TensorBoard events are not written: the package is missing. Install it with: pip install tensorboard"
            )
            return
        self._writer = Writer(str(run_dir / FOLDER))

    def __enter__(self) -> TensorBoardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add_round(self, line: RoundLine) -> None:
        """Write one round, and flush."""
        self._add(round_scalars(line), step=line.round)

    def add_scores(self, scores: Scores, step: int) -> None:
        self._add(score_scalars(scores), step)

    def add_load(self, load: Mapping[str, float], step: int) -> None:
        """Write what `fedfinlora.run.monitor` measured in a round."""
        self._add(((f"machine/{name}", value) for name, value in load.items()), step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, scalars: Iterator[tuple[str, float]], step: int) -> None:
        if self._writer is None:
            return
        for tag, value in scalars:
            self._writer.add_scalar(tag, value, step=step)
        self._writer.flush()


def round_scalars(line: RoundLine) -> Iterator[tuple[str, float]]:
    """(tag, value) of one round. What was not measured has no entry."""
    candidates: list[tuple[str, float | None]] = [
        ("loss/train", line.train_loss),
        ("loss/holdout", line.holdout_loss),
        ("validation/score", line.validation.score if line.validation else None),
        ("update_norm", line.update_norm),
        ("bytes/up", line.bytes_up),
        ("bytes/down", line.bytes_down),
        ("seconds/round", line.timings.total_s),
        ("banks/accepted", sum(entry.is_ok for entry in line.banks)),
    ]
    if line.average:
        names = ("bias", "truncation", "cosine_mean", "cosine_min", "cosine_max", "path")
        candidates += [(f"average/{name}", getattr(line.average, name)) for name in names]
    for entry in line.banks:
        candidates += [
            (f"train_loss/{entry.bank}", entry.train_loss),
            (f"holdout_loss/{entry.bank}", entry.holdout_loss),
            (f"bytes_up/{entry.bank}", entry.bytes_up),
        ]
    yield from _finite(candidates)
    yield from score_scalars(line.scores)
    for tag, value in score_scalars(line.validation.scores if line.validation else {}):
        yield f"validation_{tag}", value


def score_scalars(scores: Scores) -> Iterator[tuple[str, float]]:
    """(tag, value) of the metrics of each benchmark, e.g. ("accuracy/fpb", 0.46)."""
    yield from _finite(
        [(f"{name}/{key}", metrics.value(name)) for key, metrics in scores.items() for name in SCORE_NAMES]
    )


def _finite(candidates: list[tuple[str, Any]]) -> Iterator[tuple[str, float]]:
    for tag, value in candidates:
        if isinstance(value, int | float) and math.isfinite(value):
            yield tag, float(value)
