"""The folder of a run in stages: the plan, and what each stage came to.

stages.json       `StagesPlan`, written before the first stage begins
stage-N-NAME/     the folder of a run, one for each stage
summary.json      `StagesSummary`, after each stage
report.html       the stages side by side
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedfinlora.config.schema import Config
from fedfinlora.config.values import build
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.files import read_json, read_mapping, write_json
from fedfinlora.run.origin import COMMANDS
from fedfinlora.run.records import RESULT_FILE, SCHEMA_VERSION, RunResult, read_result
from fedfinlora.run.resuming import RESUMED_FILE
from fedfinlora.run.typed import from_json, to_json

PLAN_FILE, SUMMARY_FILE = "stages.json", "summary.json"
ScoresOf = Callable[[RunResult, str], Mapping[str, float]]
"""(a stage's result, a label of its scores) -> benchmark -> value, 0 to 1."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage before it runs."""

    name: str
    folder: str
    """Of its run, in the folder of all stages."""
    config: Mapping[str, Any]
    """Its whole configuration, as plain values."""


@dataclass(frozen=True)
class StagesPlan:
    """What was asked for: stages.json."""

    schema_version: int = SCHEMA_VERSION
    mode: str = ""
    """federated or centralized."""
    order: str = "given"
    """given, reversed or mixed (stages_order)."""
    stages: tuple[PlannedStage, ...] = ()
    """In the order in which they run."""


@dataclass(frozen=True)
class StageSummary:
    """What a stage came to."""

    name: str
    folder: str
    status: str = "waiting"
    """completed, failed or stopped; waiting: it has not ended yet."""
    rounds: int = 0
    rows_trained: int | None = None
    """Row visits; None where privacy withholds them."""
    steps_trained: int = 0
    wall_s: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    epsilon: float | None = None
    """Spent when the stage had ended, by the ledgers: over all stages so far, and earlier runs on the same rows. None
    without privacy.
    """
    delta: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    """Benchmark -> what averages are of, 0 to 1, of the stage's final adapter."""


@dataclass(frozen=True)
class StagesSummary:
    """All stages: summary.json."""

    schema_version: int = SCHEMA_VERSION
    mode: str = ""
    order: str = "given"
    status: str = "waiting"
    """completed when every stage is."""
    adapter: str = ""
    """The final adapter of the last stage that is completed, which holds those before it; below this folder."""
    epsilon: float | None = None
    """Of all stages together; None without privacy, or where nothing is guaranteed."""
    delta: float | None = None
    void: str = ""
    """Why there is no guarantee for all stages."""
    base: Mapping[str, float] = field(default_factory=dict)
    """Scores of the base model."""
    stages: tuple[StageSummary, ...] = ()


def write_plan(folder: Path, plan: StagesPlan) -> None:
    """stages.json."""
    write_json(folder / PLAN_FILE, to_json(plan))


def read_plan(folder: Path) -> StagesPlan:
    """stages.json of a folder. UserError for a damaged one."""
    return from_json(StagesPlan, read_json(folder / PLAN_FILE), str(folder / PLAN_FILE))


def config_of(stage: PlannedStage, folder: Path) -> Config:
    """A stage's configuration. UserError where stages.json is damaged."""
    try:
        return build(stage.config)
    except ConfigError as error:
        raise UserError(f"{folder / PLAN_FILE} is damaged, or of another version: {error}") from error


def is_stages(folder: Path) -> bool:
    """Whether a folder is that of a run in stages."""
    return (folder / PLAN_FILE).is_file()


def begun_stages(folder: Path) -> list[Path]:
    """The folders of the stages that have begun, in the order in which they run."""
    return [run for stage in read_plan(folder).stages if (run := folder / stage.folder).is_dir()]


def of_one_stage(folder: Path) -> str:
    """Why a command that takes one run cannot take a folder of stages, and what it can take, in one line."""
    plan, begun = read_plan(folder), begun_stages(folder)
    results = [_readable_result(folder / stage.folder) for stage in plan.stages]
    done = sum(result is not None and result.status == "completed" for result in results)
    named = f"Name one: {', '.join(map(str, begun))}." if begun else "None has begun."
    more = "" if done == len(plan.stages) else f" The others resume by: {resume_command(folder, plan)}"
    return f"{folder} is a run in {len(plan.stages)} stages, {done} of them completed. {named}{more}"


def resume_command(folder: Path, plan: StagesPlan) -> str:
    """The command that resumes the stages of a folder, for a shell."""
    return shlex.join(["python", "-m", "fedfinlora", COMMANDS.get(plan.mode, "simulate"), f"resume={folder}"])


def _readable_result(run: Path) -> RunResult | None:
    try:
        return result_of(run)
    except UserError:
        return None


def result_of(run: Path) -> RunResult | None:
    """How a stage ended; None where it has not."""
    return read_result(run) if (run / RESULT_FILE).is_file() else None


def check_result(run: Path, result: RunResult) -> None:
    """UserError where a stage's result.json is that of another run."""
    manifest = run / "manifest.json"
    began_with = read_mapping(manifest).get("config_sha256") if manifest.is_file() else None
    is_resumed_otherwise = (run / RESUMED_FILE).is_file()
    if began_with and result.config_sha256 != began_with and not is_resumed_otherwise:
        raise UserError(f"{run / RESULT_FILE} is of another run than {manifest}. Bring it back.")


def summary_of(folder: Path, plan: StagesPlan, scores_of: ScoresOf) -> StagesSummary:
    """What the stages of a folder came to."""
    results = [result_of(folder / stage.folder) for stage in plan.stages]
    stages = tuple(
        StageSummary(stage.name, stage.folder) if result is None else _stage_summary(stage, result, scores_of)
        for stage, result in zip(plan.stages, results, strict=True)
    )
    done = [stage for stage in stages if stage.status == "completed"]
    void = _void(plan, results)
    private = [stage for stage in stages if stage.epsilon is not None]
    return StagesSummary(
        mode=plan.mode,
        order=plan.order,
        status="completed" if len(done) == len(stages) else next((s.status for s in stages if s not in done), ""),
        adapter=f"{done[-1].folder}/adapters/final" if done else "",
        epsilon=None if void or not private else max(stage.epsilon or 0.0 for stage in private),
        delta=None if void or not private else max(stage.delta or 0.0 for stage in private),
        void=void,
        base=scores_of(results[0], "base") if results and results[0] else {},
        stages=stages,
    )


def _stage_summary(stage: PlannedStage, result: RunResult, scores_of: ScoresOf) -> StageSummary:
    privacy = result.privacy
    return StageSummary(
        name=stage.name,
        folder=stage.folder,
        status=result.status,
        rounds=result.rounds or 0,
        rows_trained=result.rows_trained,
        steps_trained=result.steps_trained or 0,
        wall_s=result.wall_s.total,
        bytes_up=result.bytes_up or 0,
        bytes_down=result.bytes_down or 0,
        epsilon=privacy.epsilon if privacy else None,
        delta=privacy.delta if privacy else None,
        scores=scores_of(result, "final"),
    )


def _void(plan: StagesPlan, results: Sequence[RunResult | None]) -> str:
    """Why the stages that have ended have no guarantee together; "" where they have one, or none was asked for."""
    ended = [(stage.name, result.privacy) for stage, result in zip(plan.stages, results, strict=True) if result]
    if not any(privacy for _, privacy in ended):
        return ""
    for name, privacy in ended:
        if privacy is None:
            return f"Stage {name} trained without privacy, so nothing is guaranteed of its rows."
        if privacy.void:
            return f"Stage {name}: {privacy.void}"
    return ""
