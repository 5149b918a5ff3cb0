"""Resident memory of a party's processes, with a bank's worker, which outlives who started it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple


class Resident(NamedTuple):
    """All processes of one program."""

    processes: int
    rss_bytes: int


def resident(worker_file: Path | None = None) -> dict[str, Resident]:
    """Program -> its processes and their RSS, for this process's family and the worker of `worker_file`."""
    import psutil

    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    try:
        if worker_file is not None:
            worker = psutil.Process(int(worker_file.read_text()))
            family += [] if worker in family else [worker, *worker.children(recursive=True)]
    except (OSError, ValueError, psutil.Error):
        pass  # there is no worker at the moment
    found: dict[str, Resident] = {}
    for process in family:
        try:
            name, rss_bytes = program_of(process.cmdline()), process.memory_info().rss
        except psutil.Error:
            continue
        if name:
            before = found.get(name, Resident(0, 0))
            found[name] = Resident(before.processes + 1, before.rss_bytes + rss_bytes)
    return dict(sorted(found.items()))


def alive(process: int, since_t: float = math.inf) -> bool:
    """Whether the process of this number runs and was started by `since_t` (Unix seconds), so that it is no later one
    of its number. One that was not yet buried by its parent (a zombie) does not run.
    """
    import psutil

    try:
        found = psutil.Process(process)
        return bool(found.status() != psutil.STATUS_ZOMBIE and found.create_time() <= since_t + 1.0)
    except psutil.Error:
        return False


def program_of(words: list[str]) -> str:
    """What a command line runs; "" for a process without one.

    >>> (program_of(["/x/python", "/x/flower-superlink", "--port", "1"]),
    ... program_of(["python3.11", "-m", "client_app.worker", "/s"]))
    ('flower-superlink', 'client_app.worker')
    >>> program_of(["/x/python", "-P", "/x/flower.py", "supernode"]), program_of(["python", "-c", "pass"])
    ('flower-supernode', 'python')
    """
    if not words:
        return ""
    program = Path(words[0]).name
    if not program.startswith("python"):
        return program
    for place, word in enumerate(words[1:], start=1):
        rest = words[place + 1 : place + 2]
        if word == "-c":
            break
        if word == "-m":
            return Path(rest[0]).name if rest else program
        if not word.startswith("-"):
            file = Path(word)
            return f"{file.stem}-{rest[0]}" if file.suffix == ".py" and rest else file.name
    return program
