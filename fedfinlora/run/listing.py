"""The runs in an output folder, for `list`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fedfinlora.errors import UserError
from fedfinlora.files import changed_t
from fedfinlora.run.ended import mode_of
from fedfinlora.run.evaluation import BenchmarkMetrics
from fedfinlora.run.folder import COMMAND_LOCK, SERVER_LOCK, STATE, read_config
from fedfinlora.run.progress import FILE_NAME
from fedfinlora.run.records import RoundLine, RunResult, read_result, readable_rounds
from fedfinlora.run.stages import PLAN_FILE, config_of, is_stages, read_plan
from fedfinlora.system.locks import is_held

STATES = {"completed": "finished", "failed": "failed", "stopped": "interrupted"}
"""Status in result.json -> state of a run that does not run."""
HEADLINES = ("bertscore_f1", "entity_f1", "accuracy", "labels_accuracy")
LATE_S = 2.0
"""Events that are so much later than result.json are of another attempt."""


@dataclass(frozen=True)
class Listed:
    """One run."""

    name: str
    folder: str
    state: str
    """running, finished, failed, interrupted (also: its process was killed)."""
    mode: str
    rounds_done: int
    rounds: int
    """That it was to have; 0 for an evaluation."""
    score: float | None
    """Mean over the benchmarks, 0 to 1, of the last adapter that was scored, else of the base model; None without
    scores.
    """
    when: str
    """Local time of the last change."""


def is_run(folder: Path) -> bool:
    """Whether a run lies in a folder, or has begun to."""
    return (
        (folder / "config.yaml").is_file()
        or (folder / COMMAND_LOCK).is_file()
        or (folder / STATE / "run.json").is_file()
        or is_stages(folder)
    )


def runs_in(folder: Path) -> list[Path]:
    """The folders of runs directly in a folder, by name; [] where there is no folder."""
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir() and is_run(entry))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}.") from error


def runs_now(run: Path) -> bool:
    """Whether a process works on a run."""
    return is_held(run / COMMAND_LOCK) or is_held(run / SERVER_LOCK)


def listed(run: Path) -> Listed:
    """A damaged run is listed with what can be read; one in stages as a whole."""
    if is_stages(run):
        return _listed_stages(run)
    lines, result, mode = readable_rounds(run, []), _result(run), mode_of(run)
    return Listed(
        name=run.name,
        folder=str(run),
        state=state_of(run, result),
        mode=mode,
        rounds_done=len(lines),
        rounds=0 if mode == "evaluate" else _rounds(run),
        score=_score(result, lines),
        when=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(_changed(run))),
    )


def _listed_stages(folder: Path) -> Listed:
    """Rounds of all stages, and state and score of the last one that has begun."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(changed_t(folder / PLAN_FILE)))
    try:
        plan = read_plan(folder)
        configs = [config_of(stage, folder) for stage in plan.stages]
    except UserError:
        return Listed(folder.name, str(folder), "interrupted", "stages", 0, 0, None, when)
    begun = [listed(folder / stage.folder) for stage in plan.stages if is_run(folder / stage.folder)]
    all_done = len(begun) == len(plan.stages) and all(stage.state == "finished" for stage in begun)
    state = "finished" if all_done else "interrupted"
    if begun and begun[-1].state != "finished":
        state = begun[-1].state
    return Listed(
        name=folder.name,
        folder=str(folder),
        state=state,
        mode=plan.mode,
        rounds_done=sum(stage.rounds_done for stage in begun),
        rounds=sum(config.num_server_rounds for config in configs),
        score=next((stage.score for stage in reversed(begun) if stage.score is not None), None),
        when=max([when, *(stage.when for stage in begun)]),
    )


def state_of(run: Path, result: RunResult) -> str:
    """running, finished, failed or interrupted."""
    if runs_now(run):
        return "running"
    known = STATES.get(result.status, "interrupted")
    if known != "finished" and changed_t(run / FILE_NAME) > changed_t(run / "result.json") + LATE_S:
        return "interrupted"  # the last attempt was killed; the result is an earlier one's
    return known


def _score(result: RunResult, lines: list[RoundLine]) -> float | None:
    """Mean strict accuracy of the final adapter, else of the last round that was scored, else of the base model."""
    scores = result.scores
    of_rounds = [line.scores for line in lines if line.scores]
    candidates = [
        scores.get("final"),
        *reversed(of_rounds),
        *(scores[label] for label in scores if label != "base"),
        scores.get("base"),
    ]
    for found in candidates:
        values = [value for metrics in (found or {}).values() if (value := _headline(metrics)) is not None]
        if values:
            return fmean(values)
    return None


def _headline(metrics: BenchmarkMetrics) -> float | None:
    """The figure of a benchmark (`eval.metrics.averages.headline_name`, strict)."""
    return next((value for name in HEADLINES if (value := metrics.value(name)) is not None), None)


def _result(run: Path) -> RunResult:
    try:
        return read_result(run, [])
    except UserError:
        return RunResult()


def _rounds(run: Path) -> int:
    try:
        return read_config(run).num_server_rounds
    except UserError:
        return 0


def _changed(run: Path) -> float:
    files = ("result.json", FILE_NAME, "rounds.jsonl", "config.yaml", str(COMMAND_LOCK))
    return max(changed_t(run / name) for name in files)
