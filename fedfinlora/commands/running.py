"""`list`, `attach` and `stop`: the runs of an output folder, and coming back to one that runs without a terminal."""

from __future__ import annotations

import argparse
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

from fedfinlora.errors import UserError
from fedfinlora.locks import Holder, holder_of, is_held
from fedfinlora.process_identity import ProcessIdentity
from fedfinlora.runfolder import COMMAND_LOCK, SERVER_LOCK, read_json

STOP_S = 90.0
"""Longest wait for an orderly end."""
LOOK_S = 0.2
DEFAULT = Path("~/.fedfinlora/runs")
"""The configuration's output_dir."""
DEPLOYED = " coordinator run"
"""In the command line of who follows a coordinator's run, which does not end with it."""


def add_actions(commands: Any) -> None:
    """The parsers of the three."""
    where = "the folder that it lies in (default: %(default)s)"
    for name, summary in (
        ("attach", "Follow a run that goes on; Ctrl-C leaves it going on."),
        ("stop", "End a run in good order, and say how to resume it."),
    ):
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("run", metavar="RUN", help="its folder, its name or the beginning of its name")
        command.add_argument("--output-dir", type=Path, default=DEFAULT, metavar="DIR", help=where)
    summary = "List runs: state, rounds, last score, when."
    command = commands.add_parser("list", help=summary, description=summary)
    command.add_argument(
        "folder", nargs="?", type=Path, default=DEFAULT, metavar="DIR", help="output_dir of the runs (default: %(default)s)"
    )
    command.add_argument("--json", action="store_true", help="as JSON")


def running(options: argparse.Namespace) -> int:
    """Call the one that was asked for."""
    if options.command == "list":
        return list_runs(options.folder.expanduser().absolute(), options.json)
    run = find_run(options.run, options.output_dir.expanduser().absolute())
    return {"attach": attach, "stop": stop}[options.command](run)


def find_run(name: str, output_dir: Path) -> Path:
    """A run's folder from a path, a name, or a beginning that one run alone has. UserError with the names that fit."""
    from fedfinlora.run_list import is_run, runs_in

    if name and is_run(folder := Path(name).expanduser().absolute()):
        return folder
    names = [run.name for run in runs_in(output_dir)]
    found = [name] if name in names else [one for one in names if name and one.startswith(name)]
    if len(found) == 1:
        return output_dir / found[0]
    if found:
        raise UserError(f"{name!r} begins the names of {len(found)} runs: {', '.join(found[:10])}. Give more of the name.")
    there = f"It has {', '.join(names[:10])}{' …' if len(names) > 10 else ''}." if names else "It has no runs."
    raise UserError(
        f"There is no run {name!r}, neither as a folder nor in {output_dir}. {there} Another folder: --output-dir DIR"
    )


def list_runs(folder: Path, as_json: bool) -> int:
    """A line for each run, the newest first."""
    from fedfinlora.run_list import listed, runs_in

    if not folder.is_dir() and folder != DEFAULT.expanduser():
        raise UserError(f"{folder} is not there. Name the output_dir of your runs: python -m fedfinlora list DIR")
    lines = sorted(map(listed, runs_in(folder)), key=lambda one: one.when, reverse=True)
    if as_json:
        print(json.dumps([asdict(line) for line in lines], indent=2, ensure_ascii=False, allow_nan=False))
        return 0
    width = max([len(line.name) for line in lines], default=0)
    for line in lines:
        score = "–" if line.score is None else f"{100 * line.score:.1f} %"
        rounds = f"{line.rounds_done}/{line.rounds}" if line.rounds else "–"
        print(f"{line.name:<{width}}  {line.state:<11}  {line.mode:<11}  rounds {rounds:<9}  score {score:<7}  {line.when}")
    if not lines:
        print(f"no runs in {folder}")
    return 0


def attach(run: Path) -> int:
    """Show a run's progress until it ends, as the command that started it would; its status. Ctrl-C leaves it going on."""
    from fedfinlora.commands.simulate import final_status
    from fedfinlora.progress import FILE_NAME, follow
    from fedfinlora.progress_display import ProgressDisplay

    print(f"run folder: {run}", flush=True)
    if not _runs(run):
        print("It does not run.", flush=True)
        return _status(run, final_status)
    try:
        with ProgressDisplay() as display:
            for event in follow(run / FILE_NAME, lambda: not _runs(run), start_byte=_start_of_attempt(run / FILE_NAME)):
                display.handle(event)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print(f"\nThe run goes on without you. To come back: python -m fedfinlora attach {run}", file=sys.stderr)
            print(f"To end it: python -m fedfinlora stop {run}", file=sys.stderr, flush=True)
        return 1
    return _status(run, final_status)


def _status(run: Path, final_status: Callable[[Path], int]) -> int:
    from fedfinlora.ended import as_sentence, how_to_resume

    if not (run / "result.json").is_file():
        raise UserError(f"{run} ended without a result: its process was killed. {as_sentence(how_to_resume(run))}")
    return final_status(run)


def _start_of_attempt(progress: Path) -> int:
    """Where the events of the present attempt begin in progress.jsonl, in bytes: its end where the attempt has written none yet."""
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
    from fedfinlora.ended import as_sentence, how_to_resume, record_end

    if not _runs(run):
        if _completed(run):
            raise UserError(f"{run} is completed, so there is nothing to stop.")
        raise UserError(f"{run} does not run, so there is nothing to stop. {as_sentence(how_to_resume(run))}")
    began = time.time()
    _interrupt(_who_trains(run), run)
    deadline = time.monotonic() + STOP_S
    while _runs(run):
        if time.monotonic() > deadline:
            raise UserError(f"{run} has not ended within {STOP_S:g} s. Try again, or look at its log in {run / 'state'}.")
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


def _runs(run: Path) -> bool:
    return is_held(run / COMMAND_LOCK) or is_held(run / SERVER_LOCK)


def _who_trains(run: Path) -> Holder | None:
    """The process that ends all of a run: `simulate`, which has started the rest, else the server or the baseline itself."""
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
    """A way to send SIGTERM to the process that has this number now (Linux: by its descriptor, which no later process can take over)."""
    if not hasattr(os, "pidfd_open"):
        yield lambda: os.kill(pid, signal.SIGTERM)
        return
    descriptor = os.pidfd_open(pid)
    try:
        yield lambda: signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    finally:
        os.close(descriptor)
