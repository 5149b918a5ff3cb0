"""The name of a trainer, "module:function": how one is found by its name, and which functions have one.

Simulated banks run in other processes, so only a name can reach them. It comes from the environment of whoever started
the simulation, or from a bank's own bank.yaml, and never from a request.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

from fedfinlora.errors import ConfigError, UserError
from fedfinlora.files import sha256_of

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
VARIABLE, FOLDER_VARIABLE = "FEDFINLORA_TRAINER", "FEDFINLORA_TRAINER_FOLDER"
"""Of a simulation's processes: the trainer's name, and the folder in which its module lies."""
IN_A_FILE = (
    "Write it at the top level of a file, such as my_training.py (in a notebook: a cell that begins with "
    '%%writefile my_training.py), and give trainer="my_training:NAME".'
)


class NamedTrainer(NamedTuple):
    """A trainer by its name."""

    name: str
    """module:function; "" = our own loop."""
    folder: str = ""
    """Where the module lies, if it is not an installed one."""

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that hand it to a simulation's processes."""
        return {VARIABLE: self.name, FOLDER_VARIABLE: self.folder}


NO_TRAINER = NamedTrainer("")


class OwnTrainer(NamedTuple):
    """A trainer that is used in this process."""

    name: str
    train: Callable[..., Any]
    files: Mapping[str, str]
    """What it is -> the SHA-256 of its source: a run resumes only with the same."""


def trainer_of_environment() -> NamedTrainer:
    """What `environment` of the process that started this one has set."""
    return NamedTrainer(os.environ.get(VARIABLE, ""), os.environ.get(FOLDER_VARIABLE, ""))


def checked_name(name: str, what: str = "trainer") -> str:
    """ConfigError for a text that is not module:function."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"{what}: {name[:100]!r} is not MODULE:FUNCTION, such as my_training:train.")
    return name


def named(trainer: str | Callable[..., Any]) -> NamedTrainer:
    """The name by which another process can import a trainer. ConfigError for a function that has none."""
    if isinstance(trainer, str):
        name = checked_name(trainer)
        return NamedTrainer(name, _folder_of(name))
    if not callable(trainer):
        raise ConfigError(f"trainer must be a function or its name MODULE:FUNCTION, not {type(trainer).__name__}.")
    module, own = getattr(trainer, "__module__", ""), getattr(trainer, "__qualname__", "")
    name = f"{module}:{own}"
    if not own or "<" in own or module == "__main__" or not NAME.fullmatch(name):
        raise ConfigError(f"The banks run in other processes and cannot import {called(trainer)}. {IN_A_FILE}")
    return NamedTrainer(name, _folder_of(name))


def in_process(trainer: str | Callable[..., Any]) -> OwnTrainer:
    """Any function, or one by its name, for use in this process."""
    if isinstance(trainer, str):
        own = named(trainer)
        return OwnTrainer(own.name, load(own), trainer_files(own))
    if not callable(trainer):
        raise ConfigError(f"trainer must be a function or its name MODULE:FUNCTION, not {type(trainer).__name__}.")
    return OwnTrainer(called(trainer), trainer, _source_of(called(trainer), trainer))


def trainer_files(trainer: NamedTrainer) -> dict[str, str]:
    """What a manifest says of a trainer: its name and the SHA-256 of its module's file. {} without one."""
    return _source_of(trainer.name, load(trainer)) if trainer.name else {}


def _source_of(name: str, trainer: Callable[..., Any]) -> dict[str, str]:
    """The hash of the file that a function was written in; in a notebook, of its own text."""
    try:
        file = Path(inspect.getsourcefile(trainer) or "")
        text = file.read_bytes() if file.is_file() else inspect.getsource(trainer).encode()
    except (TypeError, OSError):
        text = b""  # made by another function, or by a class
    return {f"trainer {name}": sha256_of(text)}


def called(trainer: str | Callable[..., Any]) -> str:
    """How errors call a trainer."""
    if isinstance(trainer, str):
        return trainer
    own = getattr(trainer, "__qualname__", type(trainer).__name__)
    return f"{getattr(trainer, '__module__', '?')}:{own}"


def load(trainer: NamedTrainer) -> Callable[..., Any]:
    """Import a trainer. UserError that names it for a module or function that is not there."""
    module_name, _, own = checked_name(trainer.name).partition(":")
    if trainer.folder:
        _check_not_hidden(module_name.partition(".")[0], trainer)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(
            f"The trainer {trainer.name} cannot be imported: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}."
        ) from error
    for part in own.split("."):
        if not hasattr(found, part):
            raise UserError(f"The trainer {trainer.name} is not there: {module_name} has no {own}.")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"The trainer {trainer.name} is no function, but {type(found).__name__}.")
    return found  # type: ignore[no-any-return]


def _folder_of(name: str) -> str:
    """The folder in which the top package of a module lies, looked for in the working directory and in sys.path."""
    top = name.partition(":")[0].partition(".")[0]
    loaded = getattr(sys.modules.get(top), "__spec__", None)
    spec = loaded or PathFinder.find_spec(top, [os.getcwd(), *sys.path])
    if spec is None or (spec.origin is None and not spec.submodule_search_locations):
        raise ConfigError(
            f"trainer: there is no module {top} in {os.getcwd()} or on Python's path. Start where {top}.py lies, or "
            "set PYTHONPATH."
        )
    if spec.submodule_search_locations:
        return str(Path(next(iter(spec.submodule_search_locations))).absolute().parent)
    return str(Path(spec.origin).absolute().parent) if spec.has_location and spec.origin else ""


def _check_not_hidden(top: str, trainer: NamedTrainer) -> None:
    """Make the trainer's folder importable, after all others. UserError where one of those has a module of its name."""
    if trainer.folder not in sys.path:
        sys.path.append(trainer.folder)
    importlib.invalidate_caches()
    if not PathFinder.find_spec(top, [trainer.folder]):
        raise UserError(f"The trainer {trainer.name} is not there: no module {top} lies in {trainer.folder}.")
    found = importlib.util.find_spec(top)
    places = [found.origin, *(found.submodule_search_locations or ())] if found else []
    if not any(place and Path(place).absolute().is_relative_to(trainer.folder) for place in places):
        raise UserError(
            f"The trainer {trainer.name} cannot be imported from {trainer.folder}: Python has another {top}"
            f"{f' at {places[0]}' if places and places[0] else ''}. Rename the file."
        )
