"""Does a run resume with what it began with? Data, code, base model and packages are compared with its manifest.json.

What differed and was accepted with resume_anyway=true is a line of resumed.jsonl, which report and verify show.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.files import append_line, read_lines, read_mapping
from fedfinlora.model.files import model_files
from fedfinlora.run.folder import config_fingerprint
from fedfinlora.run.origin import installed_versions, source_files, source_fingerprint

log = logging.getLogger("fedfinlora")
RESUMED_FILE = "resumed.jsonl"
DECIDING_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "bitsandbytes", "flwr", "numpy")
"""Whose version may change a run's numbers."""
COMPARED = ("data_sha256", "source_files", "model_files", "versions")
"""Fields of manifest.json, each name -> hash or version."""
WHAT = {"data_sha256": "data", "source_files": "code", "model_files": "base model", "versions": "package"}
MOST_NAMED = 12


def present_state(config: Config, data_files: Mapping[str, str], with_model: bool) -> dict[str, dict[str, str]]:
    """What a run with this configuration would use now, by the fields of COMPARED."""
    versions = installed_versions(DECIDING_PACKAGES)
    return {
        "data_sha256": dict(data_files),
        "source_files": source_files(),
        "model_files": model_files(config.model) if with_model else {},
        "versions": versions,
    }


def changes(manifest: Mapping[str, Any], now: Mapping[str, Mapping[str, str]]) -> tuple[list[str], list[str]]:
    """(what differs, one text an item; the kinds that an older manifest does not have).

    >>> now = {"data_sha256": {"a": "1", "c": "1"}, "source_files": {}, "model_files": {},
    ... "versions": {"torch": "2.14"}}
    >>> changes({"data_sha256": {"a": "2", "b": "1"}, "source_files": {}, "versions": {"torch": "2.13", "ray": "2"}},
    ... now)
    (['data a (changed)', 'data b (gone)', 'data c (new)', 'package torch (2.13 -> 2.14)'], ['base model'])
    """
    found: list[str] = []
    unknown: list[str] = []
    for field in COMPARED:
        before, after = manifest.get(field), now[field]
        if not isinstance(before, Mapping):
            unknown.append(WHAT[field])
            continue
        for name in sorted({*before, *after}):
            if field == "versions" and (name not in DECIDING_PACKAGES or name not in before):
                continue
            if before.get(name) == after.get(name):
                continue
            how = "new" if name not in before else "gone" if name not in after else "changed"
            if field == "versions" and how == "changed":
                how = f"{before[name]} -> {after[name]}"
            found.append(f"{WHAT[field]} {name} ({how})")
    return found, unknown


def check_same(folder: Path, config: Config, data_files: Mapping[str, str], with_model: bool = True) -> list[str]:
    """What differs from how the run in `folder` began; [] where it has no manifest yet. UserError that lists it, unless
    config.resume_anyway is set.
    """
    file = folder / "manifest.json"
    if not file.is_file():
        return []
    manifest = read_mapping(file)
    own = config_fingerprint(config)
    now = present_state(config, data_files, with_model)
    code = manifest.get("source_sha256")
    if not isinstance(manifest.get("source_files"), Mapping) and isinstance(
        code, str
    ):  # of a run before each file had a hash
        manifest = {**manifest, "source_files": {"(some file)": code}}
        now = {**now, "source_files": {"(some file)": source_fingerprint()}}
    found, unknown = changes(manifest, now)
    if manifest.get("config_sha256", own) != own and code == source_fingerprint():
        found.insert(0, "config.yaml (changed)")  # other code has other settings, and is named itself
    if unknown:
        log.warning(
            "%s was begun by an older version: its manifest does not have %s, so that is not compared.",
            folder,
            " and ".join(unknown),
        )
    if found and not config.resume_anyway:
        start = config.start_adapter
        moved = (
            f"start_adapter={start} is not there: a folder that was moved goes back to its place. "
            if (start and not Path(start).exists())
            else ""
        )
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise UserError(
            f"{folder} was begun with something else: {', '.join(found[:MOST_NAMED])}{more}. {moved}Bring back what it "
            "was (config.yaml names data and model), start a new run, or "
            "resume all the same with resume_anyway=true, which the run's report and `verify` then show."
        )
    return found


def record(folder: Path, after_round: int, differences: list[str]) -> None:
    """Append what a resumed run differs in to resumed.jsonl."""
    if differences:
        at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        append_line(folder / RESUMED_FILE, {"at": at, "after_round": after_round, "differences": differences})
        log.warning("resumed although it was begun with something else: %s", ", ".join(differences))


def resumed_words(folder: Path) -> list[str]:
    """One sentence for each line of resumed.jsonl."""
    said = []
    for line in read_lines(folder / RESUMED_FILE):
        items = line.get("differences")
        shown = ", ".join(str(item) for item in items) if isinstance(items, list) else "unknown"
        said.append(f"Resumed after round {line.get('after_round')} with something else than it began with: {shown}.")
    return said
