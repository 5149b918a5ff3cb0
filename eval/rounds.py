"""The scores of a run that trains in rounds, federated or not: the base, rounds in between, public validation, the
final adapter.

A round is closed in two writes: a checkpoint with the trained adapter and a line without scores, then that and
rounds.jsonl with the whole line. A run that is stopped while it scores a round trains nothing again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from numpy.typing import NDArray

from data.catalog import select
from data.rows import Row
from data.sources import load_rows
from data.validation import set_aside
from eval.evaluate import OnEvent, evaluate
from eval.metrics.averages import headline_score
from eval.rows import EvaluationRows, rows_to_score
from fedfinlora.config.schema import Config
from fedfinlora.files import append_line
from fedfinlora.model.adapter import Vector, load_adapter, save_adapter, write_adapter
from fedfinlora.model.loading import Session, initial_adapter
from fedfinlora.report.tensorboard import TensorBoardWriter
from fedfinlora.run.checkpoint import UNSCORED, Checkpoint, adapter_checksum, save_checkpoint
from fedfinlora.run.evaluation import BenchmarkMetrics, Scores
from fedfinlora.run.events import Load, Message, Phase, RoundDone, StoppedEarly
from fedfinlora.run.monitor import Monitor
from fedfinlora.run.records import ROUNDS_FILE, RoundLine, Validation, read_rounds, round_line
from fedfinlora.run.retention import forget_old_rounds
from fedfinlora.run.selection import Selection, kept_round, selection_of
from fedfinlora.run.typed import to_json

log = logging.getLogger("fedfinlora.rounds")


def validation_rows(config: Config, on_event: OnEvent) -> EvaluationRows | None:
    """The public validation rows of a run, None without evaluation.validation_rows. Says which benchmarks have none, or
    fewer.

    Raises UserError if there are none at all.
    """
    count = config.evaluation.validation_rows
    if not count:
        return None
    benchmarks = [benchmark.key for benchmark in select(config.evaluation.benchmarks)]
    loaded = load_rows(config.dataset, "train", config.dataset.tasks, config.seed)
    _, validation = set_aside(loaded.rows, benchmarks, count, config.seed)
    rows: dict[str, list[Row]] = {}
    for row in validation:
        rows.setdefault(row.task, []).append(row)
    without = [key for key in benchmarks if key not in rows]
    if without:
        text = f"no public validation rows of {', '.join(without)}: no train rows to spare"
        on_event(Message(level="warning", text=text))
    fewer = [f"{key} {len(found)}" for key, found in rows.items() if len(found) < count]
    if fewer:
        text = f"fewer validation rows than {count}, so that half of the train rows stay: {', '.join(fewer)}"
        on_event(Message(level="warning", text=text))
    return EvaluationRows(rows, dict.fromkeys(without, "no train rows to spare"), loaded.files, loaded.synthetic)


@dataclass(frozen=True)
class RunScores:
    """Scores one run, and writes its rounds and adapters into its folder."""

    session: Session
    config: Config
    folder: Path
    validation: EvaluationRows | None
    on_event: OnEvent
    board: TensorBoardWriter
    monitor: Monitor = field(default_factory=Monitor)

    def base(self) -> None:
        """Score the untouched model, unless a resumed run has done so."""
        if not self.config.evaluation.base or (self.folder / "eval" / "base" / "metrics.json").is_file():
            return
        self.on_event(Phase(name="evaluating base"))
        write_adapter(self.session.model, initial_adapter(self.session, self.config))
        self.board.add_scores(evaluate(self.session, self.config, "base", self.folder, self.on_event).scores, step=0)

    def resume_from(self, checkpoint: Checkpoint | None) -> Selection:
        """What earlier rounds say; closes the round that was stopped while it was scored."""
        selection = selection_of(read_rounds(self.folder))
        if checkpoint is None or checkpoint.closed:
            return selection
        return self.close_round(checkpoint.arrays, round_line(checkpoint.line, "the checkpoint"), selection)

    def more(self, rounds_done: int, selection: Selection) -> bool:
        """Whether another round is to be trained."""
        return rounds_done < self.config.num_server_rounds and not selection.stops(self.config.evaluation.patience)

    def close_round(self, arrays: Mapping[str, NDArray[Any]], line: RoundLine, selection: Selection) -> Selection:
        """Save a trained round and score it where that is due. `arrays` is what the checkpoint holds, `adapter` among
        it.
        """
        number, adapter = line.round, arrays["adapter"]
        layout_id = self.session.layout.id
        trained = replace(line, adapter_sha256=adapter_checksum(adapter))
        self._save(f"round_{number:03d}", adapter)
        if is_due(self.config, number):
            save_checkpoint(self.folder, Checkpoint(number, layout_id, arrays, {**to_json(trained), UNSCORED: True}))
        closed = self._with_scores(trained, adapter, selection)
        following = selection.after(closed)
        if following.best_round == number:
            self._save("best", adapter)
        save_checkpoint(self.folder, Checkpoint(number, layout_id, arrays, to_json(closed)))
        append_line(self.folder / ROUNDS_FILE, to_json(closed))
        forget_old_rounds(self.folder, number, self.config)
        self.board.add_round(closed)
        self._report_load(number, "round")
        self._report(closed, following)
        return following

    def finish(self, adapter: Vector, rounds_done: int, selection: Selection) -> None:
        """Write adapters/final, the last round's adapter or the best one's, and score it."""
        config = self.config
        if rounds_done < config.num_server_rounds:
            best_round = selection.best_round
            self.on_event(StoppedEarly(round=rounds_done, validations=selection.since, best_round=best_round))
            log.info(
                "stopped early after round %d: no better validation score in %d validations",
                rounds_done,
                selection.since,
            )
        best = kept_round(selection, config)
        if best is not None:
            adapter = load_adapter(self.folder / "adapters" / "best", self.session.layout, frozen=self.session.frozen)
        self._save("final", adapter)
        if config.evaluation.benchmarks == ("none",):
            return
        self.on_event(Phase(name="evaluating final"))
        write_adapter(self.session.model, adapter)
        scores = evaluate(self.session, config, "final", self.folder, self.on_event).scores
        self.board.add_scores(scores, step=rounds_done if best is None else best)
        self._report_load(rounds_done, "evaluation")
        self.monitor.close()

    def _report_load(self, number: int, of: str) -> None:
        load = self.monitor.take()
        self.on_event(Load(round=number, of=of, **load))
        if of == "round":
            self.board.add_load(load, number)

    def _with_scores(self, line: RoundLine, adapter: Vector, selection: Selection) -> RoundLine:
        number, config = line.round, self.config
        if not is_due(config, number):
            return line
        write_adapter(self.session.model, adapter)
        started = time.monotonic()
        asked = rows_to_score(config, config.evaluation.round_limit or config.evaluation.limit)
        scores = evaluate(self.session, config, f"round_{number:03d}", self.folder, self.on_event, asked).scores
        timings = replace(line.timings, evaluate_s=time.monotonic() - started)
        validation: Validation | None = None
        if self.validation is not None:
            started = time.monotonic()
            validation = self._validated(number, selection)
            timings = replace(timings, validate_s=time.monotonic() - started)
        return replace(line, scores=scores, validation=validation, timings=timings)

    def _validated(self, number: int, selection: Selection) -> Validation:
        label = f"validation_round_{number:03d}"
        scores = evaluate(self.session, self.config, label, self.folder, self.on_event, self.validation).scores
        return validation_of(scores, selection)

    def _save(self, label: str, adapter: Vector) -> None:
        session, config = self.session, self.config
        save_adapter(
            self.folder / "adapters" / label, adapter, session.layout, config.peft, config.model, session.frozen
        )

    def _report(self, line: RoundLine, selection: Selection) -> None:
        score = line.validation.score if line.validation else None
        if line.validation:
            log.info("round %d: validation score %s, best so far round %s", line.round, score, selection.best_round)
        self.on_event(
            RoundDone(
                round=line.round,
                train_loss=line.train_loss,
                holdout_loss=line.holdout_loss,
                bytes_up=line.bytes_up,
                bytes_down=line.bytes_down,
                seconds=line.timings.total_s,
                validation=score,
                best_round=selection.best_round,
            )
        )


def scores_anything(config: Config) -> bool:
    """Whether a run runs its model on any row besides training it."""
    evaluation = config.evaluation
    return (
        evaluation.base or evaluation.benchmarks != ("none",) or evaluation.validation_rows > 0 or evaluation.every > 0
    )


def is_due(config: Config, number: int) -> bool:
    """Whether a round is scored: every so many, and the last one only with validation, since the final scores are about
    to come.
    """
    every = config.evaluation.every
    if number == config.num_server_rounds:
        return config.evaluation.validation_rows > 0
    return every > 0 and number % every == 0


def validation_of(scores: Scores, selection: Selection) -> Validation:
    """What a round's line says of its scores on the validation rows; the score is the mean over benchmarks."""
    defined = [score for metrics in scores.values() if (score := _validation_score(metrics)) is not None]
    score = fmean(defined) if defined else None
    return Validation(score, scores, selection.improves(score))


def _validation_score(metrics: BenchmarkMetrics) -> float | None:
    """Accuracy, or BERTScore F1; of label log-probabilities where nothing else was measured
    (evaluation.mode=labels).
    """
    score = headline_score(metrics, "strict")
    return metrics.value("labels_accuracy") if score is None else score
