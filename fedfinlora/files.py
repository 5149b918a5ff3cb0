"""Files that are on the disk when a call returns: written whole (temporary file, fsync, rename), or lines appended.

A record of what was signed, asked or spent must survive a power cut (fsync(2)). What is made in a folder is open to
whom the folder is open (`made_as`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedfinlora.errors import UserError

PRIVATE_MODE = 0o700
"""Of the folders of runs, coordinators and banks when they are made."""


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file as a whole; it keeps its mode. Raises UserError when the disk is full or the folder cannot be
    written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(stream.fileno(), path.stat().st_mode & 0o777)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def sync_folder(folder: Path) -> None:
    """Make sure that the names in a folder are on the disk: without it a power cut can take a new or renamed file
    away.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_text(values: Any, path: Path, indent: int | None = None) -> str:
    """JSON, which has neither NaN nor infinity: UserError that names the field with one."""
    try:
        return json.dumps(values, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        if field := _not_finite(values, ""):
            raise UserError(f"{path} was not written: {field} is not a finite number.") from error
        raise


def _not_finite(values: Any, where: str) -> str:
    """The dotted name of the first number that is none; "" where all are."""
    if isinstance(values, float):
        return "" if math.isfinite(values) else where.removeprefix(".")
    parts = (
        values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list | tuple) else ()
    )
    return next((found for key, value in parts if (found := _not_finite(value, f"{where}.{key}"))), "")


def write_json(path: Path, values: Any) -> None:
    """Replace a file by indented JSON."""
    write_bytes(path, (json_text(values, path, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON; UserError names the file when it is missing or damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Is this the folder of a run?") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}.") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON object; UserError names the file when it is missing, damaged or holds something else."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object.")
    return values


def parsed_yaml(text: str) -> Any:
    """The value of a YAML text, read by libyaml where PyYAML has it: ten times as fast. yaml.YAMLError where it is
    none, or where an alias repeats a part of it: nine lines of aliases hold a billion values.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if "&" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, loader)):
        raise yaml.YAMLError("it has aliases, which no run writes")
    return yaml.load(text, loader)


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append one line of JSON and sync it."""
    line = json_text(values, path) + "\n"
    try:
        with open(path, "ab") as stream:
            stream.write(line.encode())
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise unwritable(path, error) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a JSON Lines file; a last line that was cut off by a crash is ignored. [] when there is no
    file.
    """
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            rows.append(json.loads(line.decode("utf-8")))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {len(rows) + 1} is damaged: {error}.") from error
    return rows


_PLACES: ContextVar[Mapping[str, Path]] = ContextVar("option -> place", default=MappingProxyType({}))
_OTHERWISE: ContextVar[str] = ContextVar("option for all other places", default="output_dir=FOLDER")


@contextmanager
def places_named(places: Mapping[str, Path], otherwise: str) -> Iterator[None]:
    """Meanwhile `unwritable` names the option that gave a place, such as --json; `otherwise` is how the command
    takes another place for all else that it writes, "" where it takes none.
    """
    tokens = _PLACES.set(places), _OTHERWISE.set(otherwise)
    try:
        yield
    finally:
        _PLACES.reset(tokens[0])
        _OTHERWISE.reset(tokens[1])


def unwritable(path: Path, error: OSError) -> UserError:
    """The one line for a full disk, a read-only folder and the like."""
    named = [option for option, place in _PLACES.get().items() if path.absolute().is_relative_to(place.absolute())]
    option = named[0] if named else _OTHERWISE.get()
    way = f" or choose another {'place' if named else 'folder'} with {option}" if option else ", or make it writable"
    with contextlib.suppress(RuntimeError):
        if not named and path.is_relative_to(Path.home()):
            way += ", or set HOME"
    return UserError(f"Cannot write {path}: {error.strerror or error}. Free space{way}.")


def changed_t(file: Path) -> float:
    """When a file was last written, Unix seconds; 0 where there is none."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def sha256_of(content: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()


APPEND, NEW = os.O_APPEND, os.O_EXCL


def append_synced(file: Path, content: bytes) -> None:
    """Add bytes at the end of a file, which is made if need be with its folder (modes 0600, 0700). OSError where the
    disk does not take them.
    """
    _write(file, content, APPEND)


def write_new(file: Path, content: bytes) -> None:
    """Write a file that is not there yet, likewise. FileExistsError where it is, another OSError where the disk does
    not take it.
    """
    _write(file, content, NEW)


def _write(file: Path, content: bytes, how: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    is_new = not file.exists()
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | how, 0o600), "ab" if how == APPEND else "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    if is_new:
        sync_folder(file.parent)


def make_private(folder: Path) -> None:
    """Make a folder for its owner alone; one that is there stays as it is. UserError where it cannot be made."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=PRIVATE_MODE, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error


def check_writable(folder: Path) -> None:
    """UserError where no file can be made in a folder: before long work whose result would be lost."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error) from error


@contextmanager
def made_as(folder: Path) -> Iterator[None]:
    """What this process and those that it starts make meanwhile is open to whom `folder` is open: files 0600 where it
    is 0700, 0640 where it is 0750.
    """
    before = os.umask(~folder.stat().st_mode & 0o077)
    try:
        yield
    finally:
        os.umask(before)
