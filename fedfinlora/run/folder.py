"""A run's folder. One process at a time trains in it (`hold_run`)."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedfinlora.config.checks import is_folder_name
from fedfinlora.config.schema import Config
from fedfinlora.config.values import build, to_plain
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.files import (
    made_as,
    make_private,
    parsed_yaml,
    read_json,
    sha256_of,
    unwritable,
    write_bytes,
    write_json,
)
from fedfinlora.run.origin import (
    ORIGIN_FILE,
    installed_versions,
    origin_of_this_process,
    source_files,
    source_fingerprint,
)
from fedfinlora.system.locks import Lock, check_free, take

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
"""Keys of the configuration that do not decide what comes out."""


def deciding_values(config: Config) -> dict[str, Any]:
    """Every configuration value that decides a run's numbers, by its full key."""
    return {key: value for key, value in flatten(to_plain(config)).items() if key not in DECIDES_NO_NUMBER}


def config_fingerprint(config: Config) -> str:
    """SHA-256 of what decides a run's numbers."""
    return sha256_of(json.dumps(deciding_values(config), sort_keys=True, allow_nan=False).encode())


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys: {"train": {"epochs": 1}} -> {"train.epochs": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def write_config(run: Path, config: Config) -> None:
    """config.yaml: the resolved configuration."""
    import yaml

    write_bytes(run / "config.yaml", yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True).encode())


def read_config(run: Path) -> Config:
    """The configuration of a run's folder."""
    import yaml

    file = run / "config.yaml"
    if not file.is_file():
        if any(run.glob("stage-*/config.yaml")):
            raise UserError(f"{run} is a run in stages whose stages.json is missing. Bring it back.")
        raise UserError(f"{run} is not a run's folder: config.yaml is missing.")
    try:
        values = parsed_yaml(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} is damaged: it holds no configuration.")
    try:
        return build(values)
    except ConfigError as error:
        raise UserError(f"{file} is damaged, or of another version: {error}") from error


def write_manifest(run: Path, config: Config, data_files: Mapping[str, str], with_model: bool = True) -> None:
    """manifest.json: versions, hashes of code, data and base model, and the seed."""
    from fedfinlora.model.files import model_files

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


STATE = "state"
SERVER_LOCK, COMMAND_LOCK = Path(STATE) / "server.lock", Path(STATE) / "command.lock"
"""Of the process that trains in a run's folder, and of the command that has started it and follows it."""
HOME_LOCK = "running.lock"
"""In the folder of a coordinator or a bank, of the process that serves it."""


def new_run_folder(config: Config) -> Path:
    """Make the folder of a new run. UserError where it exists, unless it is empty or `overwrite` is set."""
    model = config.model.name.replace("/", "-")
    name = config.run_name or f"{time.strftime('%Y%m%d-%H%M%S')}-{model}-{config.peft.method}-{config.strategy.name}"
    if not is_folder_name(name):
        raise ConfigError(f"run_name={name!r} must be a plain folder name. Choose another with run_name=.")
    run = Path(config.output_dir) / name
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file, not a run's folder. Choose another run_name=.")
    if run.exists() and _occupied(run):
        if not config.overwrite:
            for lock in (COMMAND_LOCK, SERVER_LOCK):
                check_free(run / lock, f"The run {run}")
            raise UserError(
                f"{run} exists. Resume it by resume={run}, choose another run_name=, or set overwrite=true."
            )
        if not (run / "config.yaml").is_file() and not (run / STATE).is_dir():
            raise UserError(f"{run} is not the folder of a run, so it is not overwritten. Choose another run_name=.")
        with hold_run(run, COMMAND_LOCK), hold_run(run, SERVER_LOCK):
            _empty(run)
    make_private(run)
    return run


def hold_run(run: Path, lock: Path) -> Lock:
    """Hold one of a run's locks until it is released. UserError that says who holds it."""
    try:
        (run / lock).parent.mkdir(mode=run.stat().st_mode & 0o777, exist_ok=True)
        return take(run / lock, f"The run {run}")
    except OSError as error:
        raise unwritable(run / lock, error) from error


@contextmanager
def alone_in(home: Path, what: str) -> Iterator[None]:
    """Be the only one who runs a coordinator's or a bank's folder. UserError that says who runs it."""
    make_private(home)
    try:
        lock = take(home / HOME_LOCK, what)
    except OSError as error:
        raise unwritable(home / HOME_LOCK, error) from error
    with lock, made_as(home):
        yield


def _occupied(run: Path) -> bool:
    """Whether a run has begun here; `simulate` puts its files under state/ before."""
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
