"""How a run ended, written by another than its server, which could not."""

from __future__ import annotations

import shlex
from pathlib import Path

from fedfinlora.errors import UserError
from fedfinlora.files import read_json
from fedfinlora.run.checkpoint import latest_round
from fedfinlora.run.folder import STATE, read_config
from fedfinlora.run.opening import OpenRun, run_result
from fedfinlora.run.origin import COMMANDS
from fedfinlora.run.records import ROUNDS_FILE, RunResult, read_result, read_rounds, write_result
from fedfinlora.run.stages import is_stages, read_plan, resume_command

DEPLOYED = "python -m fedfinlora coordinator "
"""How the command in state/origin.json begins where a coordinator started the run."""


def record_end(run: Path, status: str, reason: str) -> None:
    """Write result.json with status "stopped" or "failed"."""
    mode = mode_of(run)
    try:
        config = read_config(run)
    except UserError:
        write_result(run, RunResult(mode=mode, status=status, reason=reason, run=run.name, run_dir=str(run)))
        return
    seconds = sum(line.timings.total_s for line in read_rounds(run))
    write_result(run, run_result(OpenRun(run, config, "", None), status, reason, seconds, mode))


def is_recorded(run: Path, status: str, reason: str) -> bool:
    """Whether result.json says so already."""
    try:
        result = read_result(run)
    except UserError:
        return False
    return (result.status, result.reason) == (status, reason)


def mode_of(run: Path) -> str:
    """federated, centralized, local or evaluate."""
    if (run / STATE / "evaluate.json").is_file():
        return "evaluate"
    try:
        return str(read_json(run / STATE / "run.json")["mode"])
    except (UserError, KeyError, TypeError):
        return "federated"


def is_deployed(run: Path) -> bool:
    """Whether a coordinator started it."""
    try:
        return str(read_json(run / STATE / "origin.json")["command"]).startswith(DEPLOYED)
    except (UserError, KeyError, TypeError):
        return False


def how_to_resume(run: Path) -> str:
    """What is kept and the command that resumes it, for the end of a sentence."""
    if is_stages(run.parent):
        return f"this stage and those after it resume by: {resume_command(run.parent, read_plan(run.parent))}"
    mode = mode_of(run)
    command = "coordinator run" if is_deployed(run) else COMMANDS.get(mode, "simulate")
    command_line = shlex.join(["python", "-m", "fedfinlora", *command.split(), f"resume={run}"])
    if mode == "evaluate":
        return f"answers are kept; resume with: {command_line}"
    if latest_round(run) < 0:
        if (run / ROUNDS_FILE).is_file():
            return f"its checkpoints are missing: bring back a copy of {run / STATE}, or start again under another name"
        return f"nothing was saved yet; start it again with run_name={run.name} overwrite=true"
    return f"stopped after round {latest_round(run)}; resume with: {command_line}"
