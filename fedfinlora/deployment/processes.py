"""Resident memory of a party's processes: this one, what it started, and a bank's worker, which outlives who started it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Resident(NamedTuple):
    """All processes of one program."""

    processes: int
    rss_bytes: int


def resident(worker_file: Path | None = None) -> dict[str, Resident]:
    """Program -> its processes and their RSS, for this process's family and the worker whose number `worker_file` holds."""
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


def program_of(words: list[str]) -> str:
    """The name of what a command line runs; "" for a process without one.

    >>> program_of(["/x/python", "/x/flower-superlink", "--port", "1"]), program_of(["python3.11", "-m", "client_app.worker", "/s"])
    ('flower-superlink', 'client_app.worker')
    """
    if not words:
        return ""
    rest = words[1:] if Path(words[0]).name.startswith("python") else words
    while rest and rest[0] in ("-u", "-I", "-B"):
        rest = rest[1:]
    if rest[:1] == ["-m"]:
        rest = rest[1:]
    return Path(rest[0]).name if rest and not rest[0].startswith("-") else Path(words[0]).name
