"""`list`, `attach` and `stop`: the runs of an output folder, and coming back to one that runs without a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedfinlora.errors import UserError, as_sentence
from fedfinlora.files import read_json
from fedfinlora.run.folder import COMMAND_LOCK, SERVER_LOCK
from fedfinlora.run.listing import listed, runs_in, runs_now
from fedfinlora.run.stages import begun_stages, is_stages, of_one_stage
from fedfinlora.run.which_run import RUNS
from fedfinlora.system.locks import Holder, holder_of
from fedfinlora.system.process_identity import ProcessIdentity

STOP_S = 90.0
"""Longest wait for an orderly end."""
LOOK_S = 0.2
DEPLOYED = " coordinator run"
"""In the command line of who follows a coordinator's run, which does not end with it."""


def list_runs(folder: Path, as_json: bool) -> int:
    """A line for each run, the newest first."""
    if not folder.is_dir() and folder != RUNS.expanduser():
        raise UserError(f"{folder} is not there. Name the output_dir of your runs: python -m fedfinlora list DIR")
    lines = sorted(map(listed, runs_in(folder)), key=lambda one: one.when, reverse=True)
    if as_json:
        print(json.dumps([asdict(line) for line in lines], indent=2, ensure_ascii=False, allow_nan=False))
        return 0
    width = max([len(line.name) for line in lines], default=0)
    for line in lines:
        score = "–" if line.score is None else f"{100 * line.score:.1f} %"
        rounds = f"{line.rounds_done}/{line.rounds}" if line.rounds else "–"
        print(
            f"{line.name:<{width}}  {line.state:<11}  {line.mode:<11}  rounds {rounds:<9}  score {score:<7}  "
            f"{line.when}"
        )
    if not lines:
        print(f"no runs in {folder}")
    return 0


def present_stage(run: Path) -> Path:
    """Of a run in stages the stage that runs, else the last one that has begun; any other run itself."""
    if not is_stages(run):
        return run
    if not (begun := begun_stages(run)):
        raise UserError(of_one_stage(run))
    return next((stage for stage in begun if runs_now(stage)), begun[-1])


def attach(run: Path) -> int:
    """Show a run's progress until it ends. Ctrl-C leaves it running."""
    from fedfinlora.deployment.following import final_status
    from fedfinlora.run.progress import FILE_NAME, follow
    from fedfinlora.run.progress_display import ProgressDisplay

    print(f"run folder: {run}", flush=True)
    if not runs_now(run):
        print("It does not run.", flush=True)
        return _status(run, final_status)
    try:
        with ProgressDisplay() as display:
            for event in follow(
                run / FILE_NAME, lambda: not runs_now(run), start_byte=_start_of_attempt(run / FILE_NAME)
            ):
                display.handle(event)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print(f"\nThe run continues without you. To come back: python -m fedfinlora attach {run}", file=sys.stderr)
            print(f"To end it: python -m fedfinlora stop {run}", file=sys.stderr, flush=True)
        return 1
    return _status(run, final_status)


def _status(run: Path, final_status: Callable[[Path], int]) -> int:
    from fedfinlora.run.ended import how_to_resume

    if not (run / "result.json").is_file():
        raise UserError(f"{run} ended without a result: its process was killed. {as_sentence(how_to_resume(run))}")
    return final_status(run)


def _start_of_attempt(progress: Path) -> int:
    """Where the present attempt begins in progress.jsonl, in bytes: its end where none is written yet."""
    start, ended, place = 0, False, 0
    if not progress.is_file():
        return 0
    with progress.open("rb") as lines:
        for line in lines:
            if b'"event": "run_start"' in line:
                start, ended = place, False
            elif b'"event": "run_done"' in line:
                ended = True
            place += len(line)
    return place if ended else start


def _completed(run: Path) -> bool:
    try:
        return bool(read_json(run / "result.json")["status"] == "completed")
    except (UserError, KeyError, TypeError):
        return False


def stop(run: Path) -> int:
    """End a run as Ctrl-C in its own terminal would, wait for it, and say what is kept."""
    from fedfinlora.run.ended import how_to_resume, record_end

    if not runs_now(run):
        if _completed(run):
            raise UserError(f"{run} is completed, so there is nothing to stop.")
        raise UserError(f"{run} does not run, so there is nothing to stop. {as_sentence(how_to_resume(run))}")
    began = time.time()
    _interrupt(_who_trains(run), run)
    deadline = time.monotonic() + STOP_S
    while runs_now(run):
        if time.monotonic() > deadline:
            raise UserError(
                f"{run} has not ended within {STOP_S:g} s. Try again, or look at its log in {run / 'state'}."
            )
        time.sleep(LOOK_S)
    result = run / "result.json"
    if not result.is_file() or result.stat().st_mtime < began:
        record_end(run, "stopped", "interrupted")
    ended = json.loads(result.read_text("utf-8"))
    if ended["status"] == "completed":
        print(f"{run} was just completed.")
        return 0
    adapters = sorted(folder.name for folder in (run / "adapters").glob("*") if folder.is_dir())
    print(f"{run} has ended. Adapters kept: {', '.join(adapters[-5:]) or 'none yet'}")
    print(as_sentence(how_to_resume(run)))
    return 0


def _who_trains(run: Path) -> Holder | None:
    """The process that ends all of a run: `simulate`, else the server or the baseline."""
    holder = holder_of(run / COMMAND_LOCK)
    return holder if holder is not None and DEPLOYED not in holder.command else holder_of(run / SERVER_LOCK)


def _interrupt(holder: Holder | None, run: Path) -> None:
    """SIGTERM to the process that holds a run, never to a later one of its number."""
    if holder is None:
        raise UserError(f"{run} is in use, but not yet by a process that has said who it is. Try again in a moment.")
    if holder.host != socket.gethostname():
        raise UserError(f"{run} runs on {holder.host}: stop it there.")
    identity = ProcessIdentity(holder.pid, holder.started)
    try:
        with _handle(holder.pid) as send:
            if not identity.runs:
                raise UserError(f"{run}: {holder}. It was not signalled; end that process yourself.")
            send()
    except ProcessLookupError:
        return  # it has just ended
    except PermissionError as error:
        raise UserError(f"{run} belongs to another user's process {holder.pid}: stop it as that user.") from error


@contextlib.contextmanager
def _handle(pid: int) -> Any:
    """A way to send SIGTERM to the process that has this number now (Linux: by its descriptor)."""
    if not hasattr(os, "pidfd_open"):
        yield lambda: os.kill(pid, signal.SIGTERM)
        return
    descriptor = os.pidfd_open(pid)
    try:
        yield lambda: signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    finally:
        os.close(descriptor)
