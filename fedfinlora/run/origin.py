"""Where a run comes from: the code and its hash, the commit, the packages, and the command that was typed."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from fedfinlora.files import sha256_of, write_json
from fedfinlora.system.locks import own_command

PROJECT_ROOT = Path(__file__).resolve().parents[2]
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

COMMANDS = {"federated": "simulate", "centralized": "centralized", "local": "local", "evaluate": "evaluate"}
"""The mode of a run, as result.json has it -> the command that makes one."""


def _python_files() -> Iterator[tuple[str, bytes]]:
    """(name, content) of each Python file of the project. A pipe is none: it would be read for ever."""
    for folder in SOURCE_FOLDERS:
        for file in sorted((PROJECT_ROOT / folder).rglob("*.py")):
            if file.is_file():
                yield str(file.relative_to(PROJECT_ROOT)), file.read_bytes()


@cache
def source_files() -> dict[str, str]:
    """Each of the project's Python files -> its SHA-256."""
    return {name: sha256_of(content) for name, content in _python_files()}


@cache
def source_fingerprint() -> str:
    """SHA-256 over the project's Python files: server and banks compare it."""
    digest = hashlib.sha256()
    for name, content in _python_files():
        digest.update(name.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()


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
    """The commit of the project's folder, with "+" when files differ from it; "" outside git."""
    if not (PROJECT_ROOT / ".git").exists():
        return ""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--match="],
            cwd=PROJECT_ROOT,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.strip()


ORIGIN_FILE = Path("state") / "origin.json"
"""Written by `simulate` for its server, which runs from Flower's copy of the code, outside git."""


def origin_of_this_process() -> dict[str, str]:
    """The command typed ("" where it was not ours) and the commit of the code."""
    command = own_command()
    return {"command": command if command.startswith("python -m fedfinlora ") else "", "git_commit": git_commit()}


def note_origin(run: Path) -> None:
    """Write state/origin.json. What began the run stays: a command that resumes it does not replace it."""
    if not (run / ORIGIN_FILE).is_file():
        write_json(run / ORIGIN_FILE, origin_of_this_process())
