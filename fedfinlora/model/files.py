"""The files of a base model and their hash: what a bank's policy can name so that a model of the same name but other
weights is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from fedfinlora.config.model import ModelConfig
from fedfinlora.errors import UserError
from fedfinlora.model.embedded import embedded_folder, is_embedded
from fedfinlora.model.hub_faults import first_line, hub_fault
from fedfinlora.system.web import check_hub

WANTED = (".json", ".safetensors", ".model", ".txt", ".jinja")
"""What is fetched from a hub: a model's configuration, weights and tokenizer."""
SUFFIXES = (*WANTED, ".bin", ".pt", ".pth", ".py", ".gguf", ".h5", ".msgpack")
"""What counts in a model's hash: besides, everything else that some version of transformers would load or run."""


def model_folder(model: ModelConfig, local_only: bool = False) -> Path:
    """Where the files lie: an embedded model's copy, a folder, or the hub's snapshot of the revision, downloaded if it
    is not here yet, unless `local_only` is set.
    """
    if is_embedded(model.path):
        return embedded_folder(model.path)
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    wanted = [f"*{suffix}" for suffix in WANTED]
    if not local_only:
        check_hub()
    try:
        return Path(
            snapshot_download(model.path, revision=model.revision, allow_patterns=wanted, local_files_only=local_only)
        )
    except Exception as error:  # of three HTTP libraries, and of a form that no hub answers in
        fault = hub_fault(error, model.path, licence_url=model.licence_url)
        if not fault and not isinstance(error, OSError | ValueError | LookupError | TypeError):
            raise
        raise UserError(
            fault or f"The files of {model.path} are neither here nor can they be had: {first_line(error)}"
        ) from error


def model_files(model: ModelConfig) -> dict[str, str]:
    """Name -> SHA-256 of each file that counts; {} for a model that is not on this machine, such as one behind a
    server. Nothing is fetched.
    """
    try:
        folder = model_folder(model, local_only=True)
        files = counted_files(folder)
    except (UserError, OSError):
        return {}
    return {file.name: _file_sha256(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files}


def model_sha256(model: ModelConfig) -> str:
    """SHA-256 over names and contents of the model's files, sorted by name; kept in memory until one of them changes.

    Sixteen gigabytes take about half a minute, once a process.
    """
    folder = model_folder(model)
    files = counted_files(folder)
    if not files:
        raise UserError(f"{folder} holds no model.")
    return sha256_of_files(
        {file.name: _file_sha256(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files}
    )


def sha256_of_files(files: Mapping[str, str]) -> str:
    """The same from name -> SHA-256, as a run's manifest keeps it."""
    return hashlib.sha256("".join(f"{name}\0{found}\n" for name, found in sorted(files.items())).encode()).hexdigest()


def counted_files(folder: Path) -> list[Path]:
    """The files that count in a model's hash, by name."""
    return sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())


@lru_cache(maxsize=256)
def _file_sha256(file: Path, size: int, changed_ns: int) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
