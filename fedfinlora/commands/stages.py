"""Stages of `simulate` and `centralized`: one run after the other in one folder, each on top of the adapter before it.

All of them are composed and their rows read before the first one loads a model. A run that was interrupted, within a
stage or between two, resumes by resume=RUN with the stage that is not completed.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client_app.own_rows import divide, train_and_held_out
from eval.metrics.averages import headline_score
from eval.report import write_run_report
from fedfinlora.compose import compose_stages
from fedfinlora.config.schema import Config
from fedfinlora.config.stages import Stage, named
from fedfinlora.config.values import to_plain
from fedfinlora.config.words import split_text, word
from fedfinlora.errors import ConfigError, UserError, as_sentence
from fedfinlora.files import make_private, write_json
from fedfinlora.run.checkpoint import latest_round
from fedfinlora.run.detach import EACH_LINE, is_detached
from fedfinlora.run.ended import how_to_resume
from fedfinlora.run.folder import COMMAND_LOCK, SERVER_LOCK
from fedfinlora.run.opening import asked_otherwise
from fedfinlora.run.origin import COMMANDS
from fedfinlora.run.records import RunResult
from fedfinlora.run.stages import (
    PLAN_FILE,
    SUMMARY_FILE,
    PlannedStage,
    StagesPlan,
    StagesSummary,
    check_result,
    config_of,
    read_plan,
    result_of,
    resume_command,
    summary_of,
    write_plan,
)
from fedfinlora.run.typed import to_json
from fedfinlora.run.which_run import RUNS
from fedfinlora.system.locks import check_free
from fedfinlora.train.loop import stretch_of_round, total_steps


@dataclass(frozen=True)
class Way:
    """How a command runs one stage."""

    mode: str
    """federated or centralized."""
    check: Callable[[Config], None]
    """UserError for what would stop a stage, before any is begun."""
    begin: Callable[[Config], int]
    """Runs it; its exit status."""
    resume: Callable[[Sequence[str]], int]
    """The same for a run that was begun, by the words that resume it."""


def run_stages(overrides: Sequence[str], way: Way) -> int | None:
    """Run every stage that is configured, or that is left of resume=RUN; the exit status. None: there are no stages."""
    if "resume" in (texts := split_text(overrides)[0]):
        folder = _folder_of(texts["resume"], texts.get("output_dir", str(RUNS)))
        return None if folder is None else _resumed(folder, overrides, way)
    stages = compose_stages(overrides)
    if not stages:
        return None
    folder = _new_folder(stages[0].config)
    plan = StagesPlan(mode=way.mode, order=stages[0].order, stages=tuple(_planned(stages, folder)))
    for stage in plan.stages:
        with named(stage.name):
            way.check(config_of(stage, folder))
    _make(folder, stages[0].config.overwrite)
    write_plan(folder, plan)
    return _run(folder, plan, way, [])


def row_visits(config: Config) -> float:
    """How many rows all banks together train on in a run, each counted as often as it is visited."""
    visits, rounds = 0.0, config.num_server_rounds
    for size in _sizes(config):
        steps = total_steps(size, rounds, config.train)
        visits += steps * min(size, stretch_of_round(1, rounds, steps, size, config.train).rows_per_step)
    return visits


def with_visits_of(mixed: Config, parts: Sequence[Config]) -> Config:
    """The mixed stage with as many epochs over its rows as give the row visits of its parts."""
    epochs = sum(map(row_visits, parts)) / sum(_sizes(mixed))
    return replace(mixed, train=replace(mixed.train, epochs=epochs))


def _sizes(config: Config) -> list[int]:
    """Train rows of each bank that has any, before rows that are too long are skipped."""
    parts = divide(config, config.banks)
    sizes = [len(train_and_held_out(part, config, f"bank-{index}")[0]) for index, part in enumerate(parts)]
    return [size for size in sizes if size]


def _planned(stages: Sequence[Stage], folder: Path) -> list[PlannedStage]:
    """Each stage with its place, and with the final adapter of the one before as its start."""
    planned: list[PlannedStage] = []
    for stage in stages:
        before = str(folder / planned[-1].folder / "adapters" / "final") if planned else ""
        with named(stage.name):
            config = with_visits_of(stage.config, stage.mixed) if stage.mixed else stage.placed(before)
        config = replace(config, output_dir=str(folder), run_name=stage.folder, overwrite=True)
        planned.append(PlannedStage(stage.name, stage.folder, to_plain(config)))
    return planned


def _new_folder(config: Config) -> Path:
    name = config.run_name or f"{time.strftime('%Y%m%d-%H%M%S')}-{config.model.name.replace('/', '-')}-stages"
    folder = Path(config.output_dir) / name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        is_ours = (folder / PLAN_FILE).is_file()
        if not config.overwrite:
            resume = f"Resume it by resume={folder}, choose" if is_ours else "Choose"
            raise UserError(f"{folder} exists. {resume} another run_name=, or set overwrite=true.")
        if not is_ours:
            raise UserError(f"{folder} is not the folder of a run in stages, so it is not overwritten. Choose another.")
    return folder


def _make(folder: Path, overwrite: bool) -> None:
    """The folder, without what an earlier run in stages has left in it."""
    make_private(folder)
    if not overwrite or not (folder / PLAN_FILE).is_file():
        return
    for stage in read_plan(folder).stages:
        for lock in (COMMAND_LOCK, SERVER_LOCK):
            check_free(folder / stage.folder / lock, f"The run {folder / stage.folder}")
        shutil.rmtree(folder / stage.folder, ignore_errors=True)
    for file in (PLAN_FILE, SUMMARY_FILE, "report.html"):
        (folder / file).unlink(missing_ok=True)


def _folder_of(name: str, output_dir: str) -> Path | None:
    """The folder of a run in stages that resume= names, by its path or its name in output_dir; None: it is of one
    run.
    """
    places = [Path(name).expanduser().absolute(), Path(output_dir).expanduser().absolute() / name]
    return next((place for place in places if (place / PLAN_FILE).is_file()), None)


def _resumed(folder: Path, overrides: Sequence[str], way: Way) -> int:
    plan = read_plan(folder)
    if plan.mode != way.mode:
        raise UserError(f"{folder} is a {plan.mode} run: resume it by `{COMMANDS[plan.mode]} resume={folder}`.")
    if other := asked_otherwise(overrides):
        raise ConfigError(f"resume={folder} takes the settings of its stages from {PLAN_FILE}. Leave {other[0]} out.")
    anyway = [each for each in overrides if each.lstrip("+").startswith("resume_anyway=")]
    return _run(folder, plan, way, anyway)


def _run(folder: Path, plan: StagesPlan, way: Way, anyway: Sequence[str]) -> int:
    if is_detached():
        print(f"{EACH_LINE}{folder / 'stage-'}", flush=True)
    hint = f"This stage and those after it resume by: {resume_command(folder, plan)}"
    for number, stage in enumerate(plan.stages, 1):
        run, what = folder / stage.folder, f"stage {number} of {len(plan.stages)}, {stage.name}"
        ended = result_of(run)
        if ended is not None:
            check_result(run, ended)
        if ended is not None and ended.status == "completed":
            print(f"{what}: completed already", flush=True)
            continue
        print(what, flush=True)
        try:
            with named(stage.name):
                if latest_round(run) >= 0:
                    status = way.resume([word("resume", str(run)), *anyway])
                else:
                    status = way.begin(config_of(stage, folder))
        except UserError as error:
            write_summary(folder, plan)
            reason, how = str(error), how_to_resume(run)
            for said in (how, as_sentence(how)):
                reason = reason.replace(said, "").rstrip(" ;:.")
            raise type(error)(f"{reason}. {hint}") from error
        write_summary(folder, plan)
        if status:
            print(hint, file=sys.stderr, flush=True)
            return status
    _say(folder, write_summary(folder, plan))
    return 0


def write_summary(folder: Path, plan: StagesPlan) -> StagesSummary:
    """summary.json from the stages' folders."""
    summary = summary_of(folder, plan, _headlines)
    write_json(folder / SUMMARY_FILE, to_json(summary))
    return summary


def _headlines(result: RunResult, label: str) -> dict[str, float]:
    """Benchmark -> strict accuracy or BERTScore F1, of the label's scores."""
    values = {key: headline_score(metrics, "strict") for key, metrics in result.scores.get(label, {}).items()}
    return {key: value for key, value in values.items() if value is not None}


def _say(folder: Path, summary: StagesSummary) -> None:
    """The table of the stages, and where report and adapter are."""
    lines = [("base model", summary.base, "", "")] if summary.base else []
    for stage in summary.stages:
        rows = "" if stage.rows_trained is None else f"{stage.rows_trained:,} rows"
        spent = "" if stage.epsilon is None else f"epsilon {stage.epsilon:.3g} at delta {stage.delta:.0e}"
        lines.append((f"after {stage.name}", stage.scores, rows, spent))
    width = max(len(line[0]) for line in lines)
    for name, scores, rows, spent in lines:
        each = " ".join(f"{key} {100 * value:.1f}" for key, value in scores.items())
        print("  ".join(part for part in (f"{name:<{width}}", rows, spent, each) if part))
    if summary.void:
        print(f"warning: {summary.void}", file=sys.stderr)
    elif summary.epsilon is not None:
        print(f"all stages together: epsilon {summary.epsilon:.3g} at delta {summary.delta:.0e}")
    runs = [folder / stage.folder for stage in summary.stages]
    print(f"side by side: {write_run_report(runs, folder / 'report.html')}")
    print(f"adapter: {folder / summary.adapter}{os.linesep}run folder: {folder}", flush=True)
