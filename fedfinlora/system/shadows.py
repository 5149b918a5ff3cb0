"""Where modules are imported from: the project's own before others of the same name, and no user's file in a library's
place.

`python -m` puts the working directory first and PYTHONPATH before the libraries: a json.py, torch.py or flwr/ there, or
in the checkout, would be imported instead of the library.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import PathFinder, all_suffixes
from pathlib import Path

from fedfinlora.errors import UserError

PROJECT_ROOT = Path(__file__).resolve().parents[2]
OUR_FOLDERS = ("data", "eval", "client_app", "server_app")
OF_CHECKOUT = ("fedfinlora", *OUR_FOLDERS, "benchmarks", "tests")
"""Packages of a checkout, some of whose names careless libraries have too."""


def own_modules_first() -> None:
    """Import data, eval, client_app and server_app from the project, anything else from the libraries, and nothing from
    the working directory.

    The project comes after Python's own library, which has no such names, and before all others.
    """
    if not all((PROJECT_ROOT / folder).is_dir() for folder in OUR_FOLDERS):
        return
    root = str(PROJECT_ROOT)
    try:
        here = {"", os.getcwd()} - {root}
    except FileNotFoundError:
        here = {""}
    left = [place for place in sys.path if place != root and place not in here]
    own = [place for place in left if _is_of_python(place)]
    sys.path[:] = [*own, root, *(place for place in left if place not in own)]


def shadowing(folders: Iterable[Path]) -> list[Path]:
    """The files and packages directly in `folders` that have a library's name, or one of ours without being ours."""
    libraries = [place for place in sys.path if _is_of_python(place) or "-packages" in place]
    found = []
    for folder in dict.fromkeys(folders):
        for name, entry in _modules_in(folder):
            if name in OF_CHECKOUT:
                if name in OUR_FOLDERS and not (folder / "fedfinlora" / "system" / "shadows.py").is_file():
                    found.append(entry)
            elif name in sys.stdlib_module_names or _is_library(name, libraries):
                found.append(entry)
    return found


def check_shadows() -> None:
    """UserError for a file of the checkout or of PYTHONPATH in a library's place; the working directory is not imported
    from.
    """
    if found := shadowing(imported_folders()):
        raise UserError(f"{words_for(found)} Rename or move it, or take its folder out of PYTHONPATH.")


def imported_folders() -> list[Path]:
    """The folders that are not libraries and that modules are imported from."""
    named = [Path(place).absolute() for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    return [PROJECT_ROOT, *(place for place in named if "-packages" not in str(place))]


def words_for(found: Sequence[Path]) -> str:
    names = ", ".join(str(entry) for entry in found[:5]) + (" …" if len(found) > 5 else "")
    return (
        f"{names} {'have the names' if len(found) > 1 else 'has the name'} of a library and would be imported in "
        "its place."
    )


def _modules_in(folder: Path) -> list[tuple[str, Path]]:
    """(module, file or folder) of what Python would import from a folder, by name."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    suffixes = tuple(all_suffixes())
    files = [
        (entry.name.split(".")[0], entry) for entry in entries if entry.name.endswith(suffixes) and entry.is_file()
    ]
    packages = [(entry.name, entry) for entry in entries if entry.is_dir() and (entry / "__init__.py").is_file()]
    return files + packages


def _is_of_python(place: str) -> bool:
    """Whether an entry of sys.path is Python's own library (also as a zip, or its folder of compiled modules)."""
    own = os.path.dirname(os.__file__)
    return place.startswith(sys.base_prefix) and (
        place == own or place.endswith(".zip") or os.path.basename(place) == "lib-dynload"
    )


def _is_library(name: str, places: list[str]) -> bool:
    """Whether the libraries have such a module; a mere folder of that name is none."""
    try:
        spec = PathFinder.find_spec(name, places)
    except (ImportError, ValueError, AttributeError):
        return False
    return spec is not None and spec.origin is not None
