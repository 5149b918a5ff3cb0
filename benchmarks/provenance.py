"""Where a figure comes from: the command, the commit and the machine of a run, as docs/results.md shows them."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path

from fedfinlora.files import read_json

PLACES = ("output_dir", "run_name", "overwrite", "evaluation.answers_dir")
"""Settings that say where on a machine something is put."""


def provenance(name: str, run: Path) -> str:
    """A run's line below its table."""
    result, manifest = read_json(run / "result.json"), read_json(run / "manifest.json")
    commit = manifest["git_commit"] or "unknown"
    minutes = result["wall_s"]["total"] / 60
    return (
        f"- {name}: `{shown_command(manifest['command'])}`, commit `{commit}`, {minutes:.1f} minutes on "
        f"{manifest['cpus']} CPUs."
    )


def shown_command(command: str) -> str:
    """The command as a reader would type it: without where the run was put, with the data and other runs in places of
    theirs.
    """
    words = [word for word in shlex.split(command) if word.split("=")[0] not in PLACES]
    shown: list[str] = []
    for before, word in pairwise(["", *words]):
        if "--json" in (before, word):
            continue
        if word.startswith("dataset.root="):
            word = f"dataset.root=/data/{Path(word).name}"
        elif "/adapters/" in word:
            key, _, folder = word.rpartition("=")
            word = (f"{key}=" if key else "") + "/".join(Path(folder).parts[-3:])
        shown.append(word)
    return shlex.join(shown)
