"""`centralized` and `local`: what a federated run is compared with, without Flower.

Both take the rows, the optimiser steps and the evaluator of the federated run with the same configuration:
`centralized` pools all banks' rows and takes the sum of their steps, `local` trains each bank alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client_app.own_rows import divide
from eval.report import write_run_report
from eval.rounds import RunScores, validation_rows
from eval.rows import data_files
from fedfinlora.commands.baseline_rows import RowsOf, RunRows, pooled_rows, rows_of_banks
from fedfinlora.commands.stages import Way, run_stages
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.adapter import Vector, read_adapter, write_adapter
from fedfinlora.model.adapter_folder import start_files
from fedfinlora.model.loading import Session, first_adapter, get_session
from fedfinlora.model.packing import Example
from fedfinlora.model.rank_limit import check_rank
from fedfinlora.report.loggers import Board, require_loggers
from fedfinlora.run.checkpoint import Checkpoint, save_checkpoint
from fedfinlora.run.detach import EACH_LINE, is_detached, leave_if_detached
from fedfinlora.run.ended import how_to_resume
from fedfinlora.run.events import Message, Phase, RoundStart, Step, Trainable, bank_done
from fedfinlora.run.folder import write_manifest
from fedfinlora.run.opening import OpenRun, asked_otherwise, configuration_of, open_run, run_result
from fedfinlora.run.progress import EventWriter, ShownEvents
from fedfinlora.run.progress_display import ProgressDisplay
from fedfinlora.run.records import BankEntry, BankTimings, RoundLine, RoundTimings, write_result
from fedfinlora.train.loop import (
    StepReport,
    Stretch,
    TrainResult,
    mean_loss,
    stretch_of_round,
)
from fedfinlora.train.optimizers import OptimizerState
from fedfinlora.train.own_columns import trained_size
from fedfinlora.train.own_trainer import reason_against, task_of, train_with
from fedfinlora.train.parallel import train_in_bank
from fedfinlora.train.trainer_names import OwnTrainer
from server_app.door import check_settings_on_disk


def centralized(overrides: Sequence[str], trainer: OwnTrainer | None = None) -> int:
    """All banks' rows pooled, trained by `trainer` where one is given."""
    way = Way(
        "centralized",
        partial(_check_stage, trainer=trainer),
        partial(_pooled_alone, trainer=trainer),
        partial(centralized, trainer=trainer),
    )
    if (status := run_stages(overrides, way)) is not None:
        return status
    return _pooled_alone(_composed(overrides, trainer), trainer)


def _pooled_alone(config: Config, trainer: OwnTrainer | None) -> int:
    if not config.run_name:
        config = replace(
            config, run_name=f"{time.strftime('%Y%m%d-%H%M%S')}-{config.model.name}-{config.peft.method}-centralized"
        )
    centralized_run(config, trainer)
    return 0


def centralized_run(config: Config, trainer: OwnTrainer | None = None) -> Path:
    """The folder of a pooled run with this configuration, which names it."""
    # A federation of one bank is the same as no federation, to the byte: the same name gives the same draws.
    _run(config, "centralized", "bank-0" if config.banks == 1 else "pooled", pooled_rows, trainer)
    return Path(config.output_dir) / config.run_name


def local(overrides: Sequence[str], trainer: OwnTrainer | None = None) -> int:
    """Each bank alone; one run folder a bank, and a report over all of them."""
    config = _composed(overrides, trainer)
    if config.resume:
        return _run_alone(config, _index_of(Path(config.resume)), trainer)
    name = config.run_name or f"{time.strftime('%Y%m%d-%H%M%S')}-{config.model.name}-{config.peft.method}-local"
    if is_detached():
        print(f"{EACH_LINE}{Path(config.output_dir) / name}-bank-", flush=True)
    for index in range(config.banks):
        base = config.evaluation.base and index == 0  # the base model is the same for all of them
        evaluation = replace(config.evaluation, base=base)
        _run_alone(replace(config, run_name=f"{name}-bank-{index}", evaluation=evaluation), index, trainer)
    folders = [Path(config.output_dir) / f"{name}-bank-{index}" for index in range(config.banks)]
    print(f"side by side: {write_run_report(folders, folders[0].parent / f'{name}.html')}")
    return 0


def _run_alone(config: Config, index: int, trainer: OwnTrainer | None) -> int:
    bank = f"bank-{index}"

    def own_rows(config: Config, session: Session) -> RunRows:
        return rows_of_banks(config, session, [index])

    return _run(config, "local", bank, own_rows, trainer)


def _index_of(folder: Path) -> int:
    name, _, number = folder.name.rpartition("-bank-")
    if not name or not number.isdecimal():
        raise UserError(f"{folder} is not the folder of one bank alone: such folders end in -bank-NUMBER.")
    return int(number)


def _composed(overrides: Sequence[str], trainer: OwnTrainer | None) -> Config:
    config = compose(overrides)
    if not config.resume:
        _check_stage(config, trainer)
        return config
    _check(config, trainer)
    named = asked_otherwise(overrides)
    return configuration_of(Path(config.resume), compose(named) if named else None, config.resume_anyway)


def _check(config: Config, trainer: OwnTrainer | None) -> None:
    require_loggers(config.loggers)
    if trainer and (reason := reason_against(config)):
        raise ConfigError(reason)
    if config.privacy.mode != "none":
        raise ConfigError(
            f"The baselines train without privacy; privacy={config.privacy.mode} goes with simulate and flwr run."
        )


def _check_stage(config: Config, trainer: OwnTrainer | None) -> None:
    _check(config, trainer)
    check_settings_on_disk(config)
    divide(config, config.banks)


def _files(config: Config, trainer: OwnTrainer | None) -> dict[str, str]:
    """Each file that the run depends on -> its SHA-256."""
    return data_files(config) | start_files(config) | dict(trainer.files if trainer else {})


def _run(config: Config, mode: str, bank: str, rows_of: RowsOf, trainer: OwnTrainer | None) -> int:
    run = open_run(config, config.banks, mode, lambda own: _files(own, trainer))
    started = time.monotonic()
    print(f"run folder: {run.folder}", flush=True)
    leave_if_detached(run.folder)
    with run.held(), ProgressDisplay() as display, ShownEvents(run.folder / "progress.jsonl", display.handle) as events:
        try:
            _train(run, mode, bank, rows_of, events, trainer)
        except KeyboardInterrupt:
            _finish(run, mode, events, started, "stopped", "interrupted")
            raise UserError(how_to_resume(run.folder)) from None
        except Exception as error:
            _finish(run, mode, events, started, "failed", str(error))
            raise
        _finish(run, mode, events, started, "completed", "")
    return 0


def _train(
    run: OpenRun, mode: str, bank: str, rows_of: RowsOf, events: EventWriter, trainer: OwnTrainer | None
) -> None:
    config, folder = run.config, run.folder
    rounds = config.num_server_rounds
    events.write(run.start_event(mode, mode, banks=1))
    events.write(Phase(name="loading model"))
    validation = validation_rows(config, events.write)
    check_rank(config.model, config.peft)
    session = get_session(config)
    rows = rows_of(config, session)
    events.write(
        Trainable(
            parameters=trained_size(session.layout, config),
            rows=len(rows.train),
            skipped_rows=rows.skipped,
            steps=rows.steps,
            answer_tokens=sum(len(example.answer_ids) for example in rows.train),
        )
    )
    if rows.skipped:
        text = f"rows skipped: {rows.skipped}; `python -m fedfinlora data check` names them"
        events.write(Message(level="warning", text=text))
    board = Board(folder, config)
    adapter, optimizer, done = _first_state(run, session)
    if run.checkpoint is None:
        write_manifest(folder, config, _files(config, trainer))
        save_checkpoint(folder, Checkpoint(0, session.layout.id, {"adapter": adapter}, {}))
    scores = RunScores(session, config, folder, validation, events.write, board)
    scores.base()
    events.write(Phase(name="training"))
    selection = scores.resume_from(run.checkpoint)
    while scores.more(done, selection):
        number = done + 1
        events.write(RoundStart(round=number))
        write_adapter(session.model, adapter)
        measured = bool(rows.held_out) and (number - 1) % config.train.holdout_every == 0
        holdout_loss = mean_loss(session.model, rows.held_out, config.train) if measured else None
        stretch = stretch_of_round(number, rounds, rows.steps, len(rows.train), config.train)
        stretch = replace(stretch, rows_per_step=rows.rows_per_step)

        def on_step(step: StepReport, first: int = stretch.first_step) -> None:
            done_steps = first + step.step
            speed = step.tokens_per_s
            events.write(Step(bank=bank, step=done_steps, steps=rows.steps, loss=step.loss, tokens_per_s=speed))

        if trainer is None:
            result = _stretch(session, rows.train, stretch, config, bank, optimizer, on_step)
        else:
            task = task_of(session, rows.train, config, bank, number, stretch)
            result = train_with(trainer.train, trainer.name, session, task)
        trained = read_adapter(session.model)
        line = _line(number, bank, result, holdout_loss, rows, trained - adapter)
        # The server's arithmetic, so that one bank alone and a federation of one give the same bytes.
        adapter = (adapter.astype(np.float64) + (trained - adapter).astype(np.float64)).astype(np.float32)
        optimizer = result.optimizer
        events.write(bank_done(line.round, line.banks[0], line.timings.of(bank)))
        selection = scores.close_round(_state_of(adapter, optimizer), line, selection)
        done = number
    scores.finish(adapter, done, selection)
    board.close()


def _stretch(
    session: Session,
    examples: Sequence[Example],
    stretch: Stretch,
    config: Config,
    bank: str,
    optimizer: OptimizerState | None,
    on_step: Callable[[StepReport], None],
) -> TrainResult:
    # Without a server to do the adapting, a baseline's optimiser is AdamW, not what the banks use.
    pooled = replace(config.train, optimizer="adamw")
    kept = optimizer if config.train.optimizer_state == "keep" else None
    return train_in_bank(session, examples, stretch, config, pooled, bank=bank, optimizer=kept, on_step=on_step)


def _first_state(run: OpenRun, session: Session) -> tuple[Vector, OptimizerState | None, int]:
    if run.checkpoint is None:
        return first_adapter(session, run.config), None, 0
    arrays = run.checkpoint.arrays
    if run.checkpoint.round == 0:
        return arrays["adapter"], None, 0
    moments = OptimizerState(arrays["first_moment"], arrays["second_moment"], int(arrays["steps"][0]))
    return arrays["adapter"], moments, run.checkpoint.round


def _line(
    number: int, bank: str, result: TrainResult, holdout_loss: float | None, rows: RunRows, delta: Vector
) -> RoundLine:
    """A round of a baseline, whose only bank sends nothing."""
    train_loss = None if math.isnan(result.loss) else result.loss  # a trainer need not report it
    norm = float(np.linalg.norm(delta.astype(np.float64)))
    entry = BankEntry(
        bank=bank,
        status="ok",
        rows=result.rows,
        skipped_rows=rows.skipped,
        steps=result.steps,
        tokens=result.tokens,
        answer_tokens=result.answer_tokens,
        train_loss=train_loss,
        holdout_loss=holdout_loss,
        holdout_rows=len(rows.held_out) if holdout_loss is not None else 0,
        delta_norm=norm,
    )
    speed = result.tokens / result.wall_s if result.wall_s else 0.0
    return RoundLine(
        round=number,
        banks=(entry,),
        train_loss=train_loss,
        holdout_loss=holdout_loss,
        update_norm=norm,
        timings=RoundTimings(
            total_s=result.wall_s,
            train_s=result.wall_s,
            banks={bank: BankTimings(train_s=result.wall_s, tokens_per_s=speed)},
        ),
    )


def _state_of(adapter: Vector, optimizer: OptimizerState) -> dict[str, NDArray[Any]]:
    """The arrays of a checkpoint."""
    return {
        "adapter": adapter,
        "first_moment": optimizer.first_moment,
        "second_moment": optimizer.second_moment,
        "steps": np.array([optimizer.steps]),
    }


def _finish(run: OpenRun, mode: str, events: EventWriter, started: float, status: str, reason: str) -> None:
    write_result(run.folder, run_result(run, status, reason, time.monotonic() - started, mode))
    report = write_run_report([run.folder], run.folder / "report.html")
    events.write(run.done_event(status, reason, report))
