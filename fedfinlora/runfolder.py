"""A run's folder: every file of it is written whole (temporary file, fsync, rename) or, for logs of lines, appended and
synced.

One process at a time trains in it (`hold_run`), and what is made in it is open to whom the folder is open: its owner
alone, unless somebody has opened it with chmod (`made_as`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from fedfinlora.config import Config, is_folder_name
from fedfinlora.config_values import build, to_plain
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.locks import Lock, check_free, own_command, take

PROJECT_ROOT = Path(__file__).resolve().parents[1]
SOURCE_FOLDERS = ("fedfinlora", "data", "eval", "client_app", "server_app")
PACKAGES = (
    "flwr",
    "ray",
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "bitsandbytes",
    "datasets",
    "bert-score",
    "scikit-learn",
    "hydra-core",
    "numpy",
)


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
    """Every whole line of a JSON Lines file; a last line that was cut off by a crash is left out. [] when there is no
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


def unwritable(path: Path, error: OSError) -> UserError:
    """The one line for a full disk, a read-only folder and the like."""
    with contextlib.suppress(RuntimeError):
        if path.is_relative_to(Path.home()):
            return UserError(
                f"Cannot write {path}: {error.strerror or error}. Free space or choose another folder with "
                "output_dir=FOLDER, or set HOME."
            )
    return UserError(
        f"Cannot write {path}: {error.strerror or error}. Free space or choose another folder with output_dir=FOLDER."
    )


def sha256_of(content: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()


ROUND_LABEL = re.compile(r"(validation_)?round_[0-9]+")
"""Folders under eval/ with the scores of one round; all others speak of a whole run."""

DECIDES_NO_NUMBER = (
    "output_dir",
    "run_name",
    "resume",
    "resume_anyway",
    "overwrite",
    "keep_rounds",
    "train.memory_gib",
    "strategy.keep_deltas",
    "privacy.budget_epsilon",
    "evaluation.reuse",
    "evaluation.answers_dir",
    "evaluation.cache_gib",
    "evaluation.requests_at_once",
    "evaluation.requests_per_minute",
    "evaluation.request_timeout_s",
    "evaluation.request_retries",
)
"""Keys of the configuration that say where a run lies and how fast, how large or how costly it may be, but not what
comes out.
"""


def deciding_values(config: Config) -> dict[str, Any]:
    """Every configuration value that decides a run's numbers, by its full key."""
    return {key: value for key, value in _flat(to_plain(config), "").items() if key not in DECIDES_NO_NUMBER}


def config_fingerprint(config: Config) -> str:
    """SHA-256 of what decides a run's numbers."""
    return sha256_of(json.dumps(deciding_values(config), sort_keys=True, allow_nan=False).encode())


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


@cache
def source_files() -> dict[str, str]:
    """Each of the project's Python files -> its SHA-256."""
    return {
        str(file.relative_to(PROJECT_ROOT)): sha256_of(file.read_bytes())
        for folder in SOURCE_FOLDERS
        for file in sorted((PROJECT_ROOT / folder).rglob("*.py"))
    }


@cache
def source_fingerprint() -> str:
    """SHA-256 over the project's Python files: server and banks compare it, so that nobody mixes versions in one
    run.
    """
    digest = hashlib.sha256()
    for folder in SOURCE_FOLDERS:
        for file in sorted((PROJECT_ROOT / folder).rglob("*.py")):
            digest.update(str(file.relative_to(PROJECT_ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def write_config(run: Path, config: Config) -> None:
    """config.yaml: the resolved configuration."""
    import yaml

    write_bytes(run / "config.yaml", yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True).encode())


def read_config(run: Path) -> Config:
    """The configuration of a run's folder."""
    import yaml

    file = run / "config.yaml"
    if not file.is_file():
        raise UserError(f"{run} is not a run's folder: config.yaml is missing.")
    try:
        values = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} is damaged: it holds no configuration.")
    try:
        return build(values)
    except ConfigError as error:
        raise UserError(f"{file} is damaged, or of another version: {error}") from error


def write_manifest(run: Path, config: Config, data_files: Mapping[str, str], with_model: bool = True) -> None:
    """manifest.json: versions, and hashes of code, data and base model, and the seed: what is needed to say that two
    runs are the same.
    """
    from fedfinlora.model_files import model_files

    origin = read_json(run / ORIGIN_FILE) if (run / ORIGIN_FILE).is_file() else origin_of_this_process()
    write_json(
        run / "manifest.json",
        {
            "schema_version": 1,
            "versions": installed_versions(),
            "command": origin["command"],
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "git_commit": origin["git_commit"],
            "source_sha256": source_fingerprint(),
            "source_files": source_files(),
            "model_files": model_files(config.model) if with_model else {},
            "config_sha256": config_fingerprint(config),
            "data_sha256": dict(sorted(data_files.items())),
            "seed": config.seed,
        },
    )


def installed_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Version of each package that is installed."""
    from importlib import metadata

    versions: dict[str, str] = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str:
    """The commit of the project's folder, with "+" when files differ from it; empty outside git, and for a wheel
    installed below another project.
    """
    if not (PROJECT_ROOT / ".git").exists():
        return ""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=PROJECT_ROOT,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=PROJECT_ROOT,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+" if changed else "")


STATE = "state"
SERVER_LOCK, COMMAND_LOCK = Path(STATE) / "server.lock", Path(STATE) / "command.lock"
"""Of the process that trains in a run's folder, and of the command that has started it and follows it."""
HOME_LOCK = "running.lock"
"""In the folder of a coordinator or a bank, of the process that serves it."""
PRIVATE_MODE = 0o700
"""Of the folders of runs, coordinators and banks when they are made."""


def new_run_folder(config: Config) -> Path:
    """Make the folder of a new run. An existing one is an error unless it is empty or `overwrite` is set, and nobody
    works in it.
    """
    model = config.model.name.replace("/", "-")
    name = config.run_name or f"{time.strftime('%Y%m%d-%H%M%S')}-{model}-{config.peft.method}-{config.strategy.name}"
    if not is_folder_name(name):
        raise ConfigError(f"run_name={name!r} must be a plain folder name. Choose another with run_name=.")
    run = Path(config.output_dir) / name
    if run.exists() and _occupied(run):
        if not config.overwrite:
            for lock in (COMMAND_LOCK, SERVER_LOCK):
                check_free(run / lock, f"The run {run}")
            raise UserError(
                f"{run} exists. Go on with it by resume={run}, choose another run_name=, or set overwrite=true."
            )
        if not (run / "config.yaml").is_file() and not (run / STATE).is_dir():
            raise UserError(f"{run} is not the folder of a run, so it is not overwritten. Choose another run_name=.")
        with hold_run(run, COMMAND_LOCK), hold_run(run, SERVER_LOCK):
            _empty(run)
    make_private(run)
    return run


def make_private(folder: Path) -> None:
    """Make a folder for its owner alone; one that is there stays as it is. UserError where it cannot be made."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=PRIVATE_MODE, exist_ok=True)
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


def hold_run(run: Path, lock: Path) -> Lock:
    """Hold one of a run's locks until it is released. UserError that says who holds it where somebody else does."""
    try:
        (run / lock).parent.mkdir(mode=run.stat().st_mode & 0o777, exist_ok=True)
        return take(run / lock, f"The run {run}")
    except OSError as error:
        raise unwritable(run / lock, error) from error


@contextmanager
def alone_in(home: Path, what: str) -> Iterator[None]:
    """Be the only one who runs a coordinator's or a bank's folder, and make what is made there private. UserError that
    says who runs it already.
    """
    make_private(home)
    try:
        lock = take(home / HOME_LOCK, what)
    except OSError as error:
        raise unwritable(home / HOME_LOCK, error) from error
    with lock, made_as(home):
        yield


def _occupied(run: Path) -> bool:
    """Whether a run has begun here. `simulate` puts its SuperLink's files under state/ before the server opens the
    folder.
    """
    return any(entry.name != STATE for entry in run.iterdir()) or (run / STATE / "run.json").exists()


def _empty(run: Path) -> None:
    """Remove all but the locks, which are held."""
    import shutil

    for entry in [*(run / STATE).iterdir(), *run.iterdir()]:
        if entry.name == STATE or entry.relative_to(run) in (SERVER_LOCK, COMMAND_LOCK):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


ORIGIN_FILE = Path("state") / "origin.json"
"""Written by `simulate` for its server, which runs from Flower's copy of the code, outside git."""


def origin_of_this_process() -> dict[str, str]:
    """What the user typed (empty where that was not our own command line) and the commit of the code."""
    command = own_command()
    return {"command": command if command.startswith("python -m fedfinlora ") else "", "git_commit": git_commit()}
