"""A run's folder: every file of it is written whole (temporary file, fsync, rename) or, for logs of lines, appended and synced."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fedfinlora.config import Config
from fedfinlora.config_values import build, to_plain
from fedfinlora.errors import UserError

PROJECT_ROOT = Path(__file__).resolve().parents[1]
SOURCE_FOLDERS = ("fedfinlora", "data", "eval", "client_app", "server_app")
PACKAGES = (
    "flwr",
    "ray",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "datasets",
    "bert-score",
    "scikit-learn",
    "hydra-core",
    "numpy",
)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file as a whole. Raises UserError when the disk is full or the folder cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
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
    """Make sure that the names in a folder are on the disk: without it a power cut can take a new or renamed file away."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, values: Any) -> None:
    """Replace a file by indented JSON."""
    write_bytes(path, (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON; UserError names the file when it is missing or damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Is this the folder of a run?") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}.") from error


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append one line of JSON and sync it."""
    try:
        with open(path, "ab") as stream:
            stream.write((json.dumps(values, ensure_ascii=False) + "\n").encode())
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise unwritable(path, error) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a JSON Lines file; a last line that was cut off by a crash is left out. [] when there is no file."""
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            rows.append(json.loads(line.decode("utf-8")))
        except ValueError as error:
            raise UserError(f"{path}, line {len(rows) + 1} is damaged: {error}.") from error
    return rows


def unwritable(path: Path, error: OSError) -> UserError:
    """The one line for a full disk, a read-only folder and the like."""
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
    "overwrite",
    "train.memory_gib",
    "privacy.budget_epsilon",
    "evaluation.reuse",
    "evaluation.answers_dir",
    "evaluation.cache_gib",
    "evaluation.requests_at_once",
    "evaluation.requests_per_minute",
    "evaluation.request_timeout_s",
    "evaluation.request_retries",
)
"""Keys of the configuration that say where a run lies and how fast, how large or how costly it may be, but not what comes out."""


def deciding_values(config: Config) -> dict[str, Any]:
    """Every configuration value that decides a run's numbers, by its full key."""
    return {key: value for key, value in _flat(to_plain(config), "").items() if key not in DECIDES_NO_NUMBER}


def config_fingerprint(config: Config) -> str:
    """SHA-256 of what decides a run's numbers."""
    return sha256_of(json.dumps(deciding_values(config), sort_keys=True).encode())


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


@cache
def source_fingerprint() -> str:
    """SHA-256 over the project's Python files: server and banks compare it, so that nobody mixes versions in one run."""
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
    return build(values)


def write_manifest(run: Path, config: Config, data_files: Mapping[str, str]) -> None:
    """manifest.json: versions, source hash, data hashes, seed: what is needed to say that two runs are the same."""
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
    """The commit of the project's folder, with "+" when files differ from it; empty outside git."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=10, check=True
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


def new_run_folder(config: Config) -> Path:
    """Make the folder of a new run. An existing one is an error unless it is empty or `overwrite` is set."""
    import shutil

    name = (
        config.run_name or f"{time.strftime('%Y%m%d-%H%M%S')}-{config.model.name}-{config.peft.method}-{config.strategy.name}"
    )
    if "/" in name or name in (".", ".."):
        raise UserError(f"run_name={name!r} must be a plain folder name.")
    run = Path(config.output_dir) / name
    if run.exists() and _occupied(run):
        if not config.overwrite:
            raise UserError(f"{run} exists. Go on with it by resume={run}, choose another run_name=, or set overwrite=true.")
        if not (run / "config.yaml").is_file() and not (run / "state").is_dir():
            raise UserError(f"{run} is not the folder of a run, so it is not overwritten. Choose another run_name=.")
        shutil.rmtree(run)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(run, error) from error
    return run


def _occupied(run: Path) -> bool:
    """Whether a run has begun here. `simulate` puts its SuperLink's files under state/ before the server opens the folder."""
    return any(entry.name != "state" for entry in run.iterdir()) or (run / "state" / "run.json").exists()


def write_result(run: Path, values: Mapping[str, Any]) -> None:
    """result.json, version 1."""
    write_json(run / "result.json", {"schema_version": 1, **values, "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z")})


ORIGIN_FILE = Path("state") / "origin.json"
"""Written by `simulate` for its server, which runs from Flower's copy of the code, outside git."""


def origin_of_this_process() -> dict[str, str]:
    """What the user typed (empty where that was not our own command line) and the commit of the code."""
    typed = Path(sys.argv[0]).parent.name == "fedfinlora"
    command = shlex.join(["python", "-m", "fedfinlora", *sys.argv[1:]]) if typed else ""
    return {"command": command, "git_commit": git_commit()}
