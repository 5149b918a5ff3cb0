"""`centralized` and `local`: the two ends of the scale that a federated run is compared with.

Both take the rows, the optimiser steps and the evaluator of the federated run with the same configuration:
`centralized` pools all banks' rows and takes the sum of their steps, `local` trains each bank on its own rows with its
own steps. Neither talks to Flower.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client_app.own_rows import bad_train_rows, divide, train_and_held_out
from data.encode import encode_rows
from eval.report import write_run_report
from eval.rounds import RunScores, validation_rows
from eval.rows import data_files
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.adapter import Vector, read_adapter, write_adapter
from fedfinlora.model.adapter_folder import start_files
from fedfinlora.model.base_checks import context_tokens
from fedfinlora.model.loading import Session, first_adapter, get_session
from fedfinlora.model.packing import Example
from fedfinlora.report.tensorboard import TensorBoardWriter
from fedfinlora.run.checkpoint import Checkpoint, save_checkpoint
from fedfinlora.run.detach import EACH_LINE, is_detached, leave_if_detached
from fedfinlora.run.ended import how_to_resume
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
    total_steps,
)
from fedfinlora.train.optimizers import OptimizerState
from fedfinlora.train.own_trainer import reason_against, task_of, train_with
from fedfinlora.train.parallel import train_in_bank
from fedfinlora.train.trainer_names import OwnTrainer


def centralized(overrides: Sequence[str], trainer: OwnTrainer | None = None) -> int:
    """All banks' rows pooled, trained by `trainer` where one is given."""
    config = _composed(overrides, trainer)
    if not config.run_name:
        config = replace(
            config, run_name=f"{time.strftime('%Y%m%d-%H%M%S')}-{config.model.name}-{config.peft.method}-centralized"
        )
    centralized_run(config, trainer)
    return 0


def centralized_run(config: Config, trainer: OwnTrainer | None = None) -> Path:
    """The folder of a pooled run with this configuration, which names it."""
    # A federation of one bank is the same as no federation, to the byte: the same name gives the same draws.
    _run(config, "centralized", "bank-0" if config.banks == 1 else "pooled", _pooled, trainer)
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
        return _rows_of(config, session, [index])

    return _run(config, "local", bank, own_rows, trainer)


def _index_of(folder: Path) -> int:
    name, _, number = folder.name.rpartition("-bank-")
    if not name or not number.isdecimal():
        raise UserError(f"{folder} is not the folder of one bank alone: such folders end in -bank-NUMBER.")
    return int(number)


def _composed(overrides: Sequence[str], trainer: OwnTrainer | None) -> Config:
    config = compose(overrides)
    if trainer and (reason := reason_against(config)):
        raise ConfigError(reason)
    if config.privacy.mode != "none":
        raise ConfigError(
            f"The baselines train without privacy; privacy={config.privacy.mode} goes with simulate and flwr run."
        )
    if not config.resume:
        return config
    named = asked_otherwise(overrides)
    return configuration_of(Path(config.resume), compose(named) if named else None, config.resume_anyway)


@dataclass(frozen=True)
class RunRows:
    """What a baseline trains on, and how long."""

    train: list[Example]
    held_out: list[Example]
    skipped: int
    """Bad rows in the files and rows too long for the context window."""
    steps: int
    """Optimiser steps of the whole run."""
    rows_per_step: float


RowsOf = Callable[[Config, Session], RunRows]


def _pooled(config: Config, session: Session) -> RunRows:
    """The rows and steps of all banks of the federated run with this configuration."""
    return _rows_of(config, session, range(config.banks))


def _rows_of(config: Config, session: Session, banks: Iterable[int]) -> RunRows:
    """The rows and steps of some of the banks."""
    dataset = config.dataset
    how = (context_tokens(config.model), dataset.on_bad_row, dataset.chat_template, dataset.answer_space)
    parts = divide(config, config.banks)
    train: list[Example] = []
    held_out: list[Example] = []
    sizes: list[int] = []
    skipped = bad_train_rows(config, config.banks)
    for index in banks:
        for_training, for_holdout = train_and_held_out(parts[index], config, f"bank-{index}")
        kept = encode_rows(session.tokenizer, for_training, *how)
        kept_out = encode_rows(session.tokenizer, for_holdout, *how)
        train += kept.examples
        held_out += kept_out.examples
        skipped += len(kept.too_long) + len(kept_out.too_long)
        sizes.append(len(kept.examples))
    if not train:
        raise UserError("No row fits the context window: raise model.context_tokens.")
    numbered = [replace(example, index=place) for place, example in enumerate(train)]
    return RunRows(numbered, held_out, skipped, *_steps_of([size for size in sizes if size], config))


def _steps_of(sizes: Sequence[int], config: Config) -> tuple[int, float]:
    """(optimiser steps, rows of a step) that take as many steps and rows as banks of these sizes do together.

    A bank with fewer rows than a step asks for takes all that it has in each (`fedfinlora.train.loop.rows_of_step`).
    Pooled rows would fill every step, so a pooled step is as large as the banks' steps are on average.
    """
    rounds = config.num_server_rounds
    steps = [total_steps(size, rounds, config.train) for size in sizes]
    asked = [
        stretch_of_round(1, rounds, count, size, config.train).rows_per_step
        for count, size in zip(steps, sizes, strict=True)
    ]
    if len(sizes) == 1:  # to the byte the steps of that bank
        return steps[0], asked[0]
    drawn = [  # whole rows, as the banks draw them
        math.floor(count * max(1.0, min(rows, size)) + 1e-9)
        for count, rows, size in zip(steps, asked, sizes, strict=True)
    ]
    return sum(steps), sum(drawn) / sum(steps)


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
    events.write(
        "run_start", run=folder.name, model=config.model.name, peft=config.peft.method, strategy=mode, rounds=rounds,
        banks=1,
        run_dir=str(folder), mode=mode, process=os.getpid(),
            resumed_after_round=run.checkpoint.round if run.checkpoint else None,
    )  # fmt: skip
    events.write("phase", name="loading model")
    validation = validation_rows(config, events.write)
    session = get_session(config)
    rows = rows_of(config, session)
    events.write(
        "trainable", parameters=session.layout.size, rows=len(rows.train), skipped_rows=rows.skipped, steps=rows.steps,
        answer_tokens=sum(len(example.answer_ids) for example in rows.train),
    )  # fmt: skip
    if rows.skipped:
        text = f"rows skipped: {rows.skipped}; `python -m fedfinlora data check` names them"
        events.write("message", level="warning", text=text)
    board = TensorBoardWriter(folder)
    adapter, optimizer, done = _first_state(run, session)
    if run.checkpoint is None:
        write_manifest(folder, config, _files(config, trainer))
        save_checkpoint(folder, Checkpoint(0, session.layout.id, {"adapter": adapter}, {}))
    scores = RunScores(session, config, folder, validation, events.write, board)
    scores.base()
    events.write("phase", name="training")
    selection = scores.resume_from(run.checkpoint)
    while scores.more(done, selection):
        number = done + 1
        events.write("round_start", round=number)
        write_adapter(session.model, adapter)
        measured = bool(rows.held_out) and (number - 1) % config.train.holdout_every == 0
        holdout_loss = mean_loss(session.model, rows.held_out, config.train) if measured else None
        stretch = stretch_of_round(number, rounds, rows.steps, len(rows.train), config.train)
        stretch = replace(stretch, rows_per_step=rows.rows_per_step)

        def on_step(step: StepReport, first: int = stretch.first_step) -> None:
            done_steps = first + step.step
            events.write(
                "step", bank=bank, step=done_steps, steps=rows.steps, loss=step.loss, tokens_per_s=step.tokens_per_s
            )

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
        _report_bank(line, events)
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


def _report_bank(line: RoundLine, events: EventWriter) -> None:
    [entry] = line.banks
    train_s = line.timings.train_s
    events.write(
        "bank_done", round=line.round, bank=entry.bank, status=entry.status, reason="", rows=entry.rows,
        train_loss=entry.train_loss,
        rows_per_s=entry.rows / max(train_s, 1e-9), tokens_per_s=line.timings.of(entry.bank).tokens_per_s,
            seconds=train_s,
    )  # fmt: skip


def _finish(run: OpenRun, mode: str, events: EventWriter, started: float, status: str, reason: str) -> None:
    write_result(run.folder, run_result(run, status, reason, time.monotonic() - started, mode))
    report = write_run_report([run.folder], run.folder / "report.html")
    events.write("run_done", status=status, reason=reason, run_dir=str(run.folder), report=str(report))
