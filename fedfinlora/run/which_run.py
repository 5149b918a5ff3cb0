"""Which run is meant: a folder, a run's name, or the beginning of either."""

from __future__ import annotations

import os
from pathlib import Path

from fedfinlora.errors import UserError, printable

RUNS = Path("~/.fedfinlora/runs")
"""The configuration's output_dir."""
MOST_LISTED = 10


def find_run(name: str, output_dir: Path, running_first: bool = False, elsewhere: str = "--output-dir DIR") -> Path:
    """A run's folder. UserError that lists what there is where no run fits, or several do.

    `name` is its path, its name in `output_dir`, or the beginning of either that one run alone has; with
    `running_first`, of several the only one that runs now. `elsewhere` is how a user names another folder of runs.
    """
    from fedfinlora.run.listing import is_run, runs_in

    path = Path(name).expanduser()
    if name and is_run(path.absolute()):
        return path.absolute()
    folder, start = (path.absolute().parent, path.name) if os.sep in name else (output_dir, name)
    names = [run.name for run in runs_in(folder)]
    found = [start] if start in names else [one for one in names if start and one.startswith(start)]
    if running_first and len(found) > 1:
        found = _running(folder, found) or found
    if len(found) == 1:
        return folder / found[0]
    shown = printable(name)
    if found:
        raise UserError(f"{shown!r} begins the names of {len(found)} runs: {_listed(found)}. Give more of the name.")
    there = f"It has {_listed(names)}." if names else "It has no runs."
    raise UserError(
        f"There is no run {shown!r}, neither as a folder nor in {folder}. {there} Another folder: {elsewhere}"
    )


def folder_or_run(name: str) -> Path:
    """A path that exists as it is, else the run of that name (`find_run`). UserError that names the stages where it
    has some.
    """
    from fedfinlora.run.stages import is_stages, of_one_stage

    found = named_folder(name)
    if is_stages(found):
        raise UserError(of_one_stage(found))
    return found


def runs_named(name: str) -> list[Path]:
    """The same where a command takes several runs: the stages of a run in stages that have something to show.
    UserError where none has.
    """
    from fedfinlora.run.stages import begun_stages, is_stages, of_one_stage

    found = named_folder(name)
    if not is_stages(found):
        return [found]
    shown = [run for run in begun_stages(found) if (run / "result.json").is_file() or (run / "rounds.jsonl").is_file()]
    if not shown:
        raise UserError(f"No stage has closed a round yet: there is nothing to show. {of_one_stage(found)}")
    return shown


def named_folder(name: str) -> Path:
    """A path that exists as it is, else the run of that name, also one in stages (`find_run`)."""
    path = Path(name).expanduser()
    if name and path.exists():
        return path
    return find_run(name, RUNS.expanduser(), elsewhere="give the run's path")


def _running(folder: Path, names: list[str]) -> list[str]:
    """Those whose run is in progress."""
    from fedfinlora.run.listing import runs_now

    return [name for name in names if runs_now(folder / name)]


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:MOST_LISTED])}{' …' if len(names) > MOST_LISTED else ''}"
