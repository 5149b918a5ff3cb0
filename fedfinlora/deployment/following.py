"""Following a run that Flower executes, from its start to its end, however it ends."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fedfinlora.deployment.flower_link import Link
from fedfinlora.errors import UserError
from fedfinlora.files import read_json
from fedfinlora.run.checkpoint import latest_round
from fedfinlora.run.ended import as_sentence, how_to_resume, is_recorded, record_end
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
    ended: dict[str, Any] = {}
    server_process = 0
    asked = time.monotonic()

    def over() -> bool:
        nonlocal asked
        if ended:
            return True
        if link.process is not None and link.process.poll() is not None:
            ended["reason"] = "Flower's SuperLink has ended."
        elif server_process and not _alive(server_process):
            ended["reason"] = _last_words(link, run_id) or "The server's process has died."
        elif not server_process and time.monotonic() - asked > ASK_EVERY_S:
            status, details = link.status(run_id)
            asked = time.monotonic()
            if status.startswith("finished"):
                ended["reason"] = _reason(details)
        return bool(ended)

    progress = run / "progress.jsonl"
    with ProgressDisplay() as display:
        for event in follow(progress, over, start_byte=progress.stat().st_size if progress.exists() else 0):
            display.handle(event)
            if event["event"] == "run_start":
                server_process = int(event["process"])
            if event["event"] == "run_done":
                ended.update(event)
    if ended.get("status") != "completed":
        link.save_log(run_id)
    status, reason = ended.get("status", "failed"), ended.get("reason", "The run ended without a result.")
    if not is_recorded(run, status, reason):
        record_end(run, status, reason)


def _last_words(link: Link, run_id: str) -> str:
    """Why Flower says that a run has failed; "" where it does not (yet) know, or cannot be asked."""
    try:
        status, details = link.status(run_id)
    except UserError:
        return ""
    return _reason(details) if status == "finished:failed" else ""


def _reason(details: str) -> str:
    """The last line of Flower's status details without the exception's class."""
    line = details.strip().splitlines()[-1] if details.strip() else "The run ended without a result."
    return line.split("fedfinlora: ", 1)[-1]


def _alive(process: int) -> bool:
    """Whether the process runs. One that has died and was not yet buried by its parent (a zombie) does not."""
    import psutil

    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
