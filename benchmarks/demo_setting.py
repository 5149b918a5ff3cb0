"""What `benchmarks.deploy_demo` is played with: its rounds, its folder, and the rows of each bank, divided by desk."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.demo_parties import say
from data.sources.layout import find
from fedfinlora.errors import UserError

ROUNDS = 5
KILLED, REFUSED = 2, 4
"""Rounds in which bank-1 is killed, with time to be back in the last one, and bank-2 refuses."""
MARK = ".deploy-demo"
"""Says that a folder is this demonstration's, and may be replaced. Locked while it runs."""


class Desk(NamedTuple):
    """What a bank does for a living."""

    title: str
    tasks: tuple[str, ...]
    """Whose train files it holds."""


DESKS = {
    "bank-0": Desk("the sentiment desk", ("fpb", "fiqa", "tfns", "nwgi")),
    "bank-1": Desk("the news desk", ("headline", "ner")),
    "bank-2": Desk("the XBRL desk", ("xbrl_term", "formula", "xbrl_tags_extract", "xbrl_value_extract")),
}
"""Bank -> desk, named as `simulate` names its banks: every draw of a bank is seeded by its name."""
LONG = ("xbrl_tags_extract", "xbrl_value_extract")
"""Not in the run: a prompt of 5,000 tokens takes a CPU minutes."""


@contextmanager
def fresh(output: Path) -> Iterator[None]:
    """An empty folder, locked. UserError if it holds something else than an earlier demonstration, or one that still
    runs.
    """
    mark = output / MARK
    if output.exists() and any(output.iterdir()):
        if not mark.is_file():
            raise UserError(
                f"{output} is not the folder of a deploy-demo, so it is not replaced. Choose another --output."
            )
        with open(mark) as lock:
            _lock(lock.fileno(), output)
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    with open(mark, "w") as lock:
        _lock(lock.fileno(), output)
        yield


def _lock(descriptor: int, output: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(f"A deploy-demo runs in {output}. Choose another --output.") from error


def share_out(data: Path, output: Path) -> list[str]:
    """Link each desk's train files into its bank's `rows`, the test files into the aggregator's, and all of them into
    `rows` of the twin.

    Returns the run's tasks. UserError where a desk has no rows.
    """
    if not data.is_dir():
        raise UserError(f"--data {data} is not a folder.")
    run_tasks: list[str] = []
    for name, desk in DESKS.items():
        found = find(data, "finlora", "train", desk.tasks)
        files, missing = found.files, found.missing
        tasks = [task for task in desk.tasks if task not in missing and task not in LONG]
        if not tasks:
            raise UserError(f"{data} has no rows for {desk.title}: {next(iter(missing.values()))}.")
        _link([file.path for file in files], output / name / "rows")
        _link([output / name / "rows"], output / "simulation" / "rows", name)
        say(f"{desk.title}: {', '.join(file.name for file in files)}", name)
        run_tasks += tasks
    tests = find(data, "finlora", "test", run_tasks).files
    if not tests:
        raise UserError(f"{data} has no test rows of {', '.join(run_tasks)} to score.")
    _link([file.path for file in tests], output / "aggregator" / "rows" / "test")
    _link([output / "aggregator" / "rows" / "test"], output / "simulation" / "rows", "test")
    say(f"test rows only: {', '.join(file.name for file in tests)}", "aggregator")
    return run_tasks


def _link(files: Sequence[Path], folder: Path, name: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / (name or file.name)).symlink_to(file.absolute())
