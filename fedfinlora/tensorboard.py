"""TensorBoard scalars of a run, in `<run>/tensorboard/`: losses, bytes, test scores and public validation scores by round.

Written with TensorBoard's own `tensorboard.summary.Writer`, which is what `torch.utils.tensorboard` wraps, so the process
that writes need not import torch. Where the package is missing everything here does nothing, after saying so once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

FOLDER = "tensorboard"
SCORE_NAMES = ("accuracy", "f1_macro", "unparsed_share", "finlora_accuracy", "finlora_f1", "bertscore_f1")


class TensorBoardWriter:
    """Scalars of one run while it runs. The step is the round; the base model's scores stand at step 0."""

    def __init__(self, run_dir: Path, notify: Callable[[str], None] = print) -> None:
        self._writer: Any = None
        try:
            from tensorboard.summary import Writer
        except ImportError:
            notify("TensorBoard events are not written: the package is missing. Install it with: pip install tensorboard")
            return
        self._writer = Writer(str(run_dir / FOLDER))

    def __enter__(self) -> TensorBoardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def add_round(self, record: Mapping[str, Any]) -> None:
        """Write one line of rounds.jsonl, and flush, so that a watching TensorBoard shows it at once."""
        self._add(round_scalars(record), step=int(record["round"]))

    def add_scores(self, scores: Mapping[str, Mapping[str, Any]], step: int) -> None:
        """Write the metrics of each benchmark ({key: metrics}) at a step: 0 for the base model, else the round."""
        self._add(score_scalars(scores), step)

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


def write_events(run_dir: Path, notify: Callable[[str], None] = print) -> None:
    """Write the events of a finished run anew from its rounds.jsonl and result.json, in place of those that are there."""
    for old in (run_dir / FOLDER).glob("events.out.tfevents.*"):
        old.unlink()
    rounds_file, result_file = run_dir / "rounds.jsonl", run_dir / "result.json"
    lines = rounds_file.read_text(encoding="utf-8").splitlines() if rounds_file.is_file() else []
    rounds = [json.loads(line) for line in lines if line.strip()]
    result = json.loads(result_file.read_text(encoding="utf-8")) if result_file.is_file() else {}
    scores = result.get("scores") or {}
    with TensorBoardWriter(run_dir, notify) as writer:
        writer.add_scores(scores.get("base") or {}, step=0)
        for record in rounds:
            writer.add_round(record)
        last_round = max((int(record["round"]) for record in rounds), default=0)
        writer.add_scores(scores.get("final") or {}, step=int(result.get("final_round") or last_round))


def round_scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(tag, value) of one line of rounds.jsonl. Values that are null or not finite are left out."""
    banks = record.get("banks", [])
    validation = record.get("validation") or {}
    candidates = [
        ("loss/train", record.get("train_loss")),
        ("loss/holdout", record.get("holdout_loss")),
        ("validation/score", validation.get("score")),
        ("update_norm", record.get("update_norm")),
        ("bytes/up", record.get("bytes_up")),
        ("bytes/down", record.get("bytes_down")),
        ("seconds/round", record.get("timings", {}).get("total_s")),
        ("banks/accepted", sum(bank.get("status") == "ok" for bank in banks)),
    ]
    for bank in banks:
        candidates += [(f"{name}/{bank['bank']}", bank.get(name)) for name in ("train_loss", "holdout_loss", "bytes_up")]
    yield from _finite(candidates)
    yield from score_scalars(record.get("scores") or {})
    for tag, value in score_scalars(validation.get("scores") or {}):
        yield f"validation_{tag}", value


def score_scalars(scores: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """(tag, value) of the metrics of each benchmark, e.g. ("accuracy/fpb", 0.46)."""
    yield from _finite([(f"{name}/{key}", metrics.get(name)) for key, metrics in scores.items() for name in SCORE_NAMES])


def _finite(candidates: list[tuple[str, Any]]) -> Iterator[tuple[str, float]]:
    for tag, value in candidates:
        if isinstance(value, int | float) and math.isfinite(value):
            yield tag, float(value)
