"""Following a run that Flower executes to its end."""

from __future__ import annotations

import time
from pathlib import Path

from fedfinlora.deployment.flower_link import Link
from fedfinlora.deployment.processes import alive
from fedfinlora.errors import UserError, as_sentence
from fedfinlora.files import read_json
from fedfinlora.run.checkpoint import latest_round
from fedfinlora.run.ended import how_to_resume, is_recorded, record_end
from fedfinlora.run.events import RunDone, RunStart
from fedfinlora.run.progress import follow
from fedfinlora.run.progress_display import ProgressDisplay

ASK_EVERY_S = 10.0


def final_status(run: Path) -> int:
    """0 where result.json says "completed"; UserError with the reason and how to resume where it does not."""
    result = read_json(run / "result.json")
    if result["status"] != "completed":
        again = f" {as_sentence(how_to_resume(run))}" if latest_round(run) >= 0 else ""
        raise UserError(f"{result['reason']}{again}")
    return 0


def watch(link: Link, run: Path, run_id: str) -> None:
    """Show progress until the run has ended, in any way."""
    ended = ""
    done: RunDone | None = None
    server_process = 0
    asked = time.monotonic()

    def over() -> bool:
        nonlocal asked, ended
        if ended or done:
            return True
        if link.process is not None and link.process.poll() is not None:
            ended = "Flower's SuperLink has ended."
        elif server_process and not alive(server_process):
            ended = _last_words(link, run_id) or "The server's process has died."
        elif not server_process and time.monotonic() - asked > ASK_EVERY_S:
            status, details = link.status(run_id)
            asked = time.monotonic()
            if status.startswith("finished"):
                ended = _reason(details)
        return bool(ended)

    progress = run / "progress.jsonl"
    with ProgressDisplay() as display:
        for event in follow(progress, over, start_byte=progress.stat().st_size if progress.exists() else 0):
            display.handle(event)
            if isinstance(event, RunStart):
                server_process = event.process
            elif isinstance(event, RunDone):
                done = event
    status, reason = (done.status, done.reason) if done else ("failed", ended)
    if status != "completed":
        link.save_log(run_id)
    if not is_recorded(run, status, reason):
        record_end(run, status, reason)


def _last_words(link: Link, run_id: str) -> str:
    """Why Flower says that a run has failed, if it does."""
    try:
        status, details = link.status(run_id)
    except UserError:
        return ""
    return _reason(details) if status == "finished:failed" else ""


def _reason(details: str) -> str:
    """The last line of Flower's status details without the exception's class."""
    line = details.strip().splitlines()[-1] if details.strip() else "The run ended without a result."
    return line.split("fedfinlora: ", 1)[-1]
