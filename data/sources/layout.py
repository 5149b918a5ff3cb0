"""Which files a folder has for a split: FinLoRA's fixed names, or whatever a bank keeps in its own folder.

FinLoRA: `ROOT/{train,test}/<stem>.jsonl`, or the same files directly in ROOT. Upstream merges the sentiment train parts into one
file, and the XBRL extraction ones into another; where a benchmark's own train file exists it wins, and the merged file is read for
the other benchmarks only.

A bank's folder: every *.jsonl at any depth. The first folder level is `Row.path` (a bank, a desk), unless it is called train or
test. The word train or test in the file's name gives the split, else a folder so called, else it is train. The beginning of the
file's name gives the task where it is a benchmark's key or one of its file names (`fpb_train.jsonl`, `finer_2024_q1.jsonl`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

from data.catalog import BENCHMARKS, Benchmark, merged_files
from data.sources.files import SourceFile

SPLITS = ("train", "test")


def finlora_stems(entry: Benchmark, split: str) -> tuple[str, ...]:
    """File names, without `.jsonl`, that may hold a benchmark's rows, the merged one last."""
    if split == "test":
        return (entry.test_file,)
    return (*entry.train_files, entry.merged_train_file) if entry.merged_train_file else entry.train_files


def finlora_files(root: Path, split: str, wanted: Collection[str] = ()) -> tuple[list[SourceFile], dict[str, str]]:
    """The files to read in the order of the catalogue, and task -> reason for those that have none. No `wanted` = every task."""
    files: list[SourceFile] = []
    missing: dict[str, str] = {}
    by_merged: dict[tuple[str, Path], list[str]] = {}
    for key, entry in BENCHMARKS.items():
        if wanted and key not in wanted:
            continue
        own = (entry.test_file,) if split == "test" else entry.train_files
        found = [(stem, path) for stem in own if (path := _find(root, split, stem))]
        for position, (stem, path) in enumerate(found):
            prefix = f"{key}/{split}/{stem}" if position else ""
            files.append(SourceFile(path, _name(path, root), split, key, id_prefix=prefix))
        if found:
            continue
        merged = entry.merged_train_file if split == "train" else ""
        if merged and (path := _find(root, split, merged)):
            by_merged.setdefault((merged, path), []).append(key)
        else:
            expected = " or ".join(f"{split}/{stem}.jsonl" for stem in finlora_stems(entry, split))
            missing[key] = f"no rows: there is no {expected}"
    for (stem, path), keys in by_merged.items():
        files.append(SourceFile(path, _name(path, root), split, merged=stem, wanted=frozenset(keys)))
    return files, missing


def bank_files(root: Path, split: str, wanted: Collection[str] = ()) -> list[SourceFile]:
    """Every file of a bank's folder that is of this split and may hold a wanted task, sorted by name."""
    files = []
    for path in sorted(walk(root)):
        name = _name(path, root)
        parents = name.split("/")[:-1]
        if _split_of(path.stem, parents) != split:
            continue
        task, merged = _task_of(path.stem)
        if task and wanted and task not in wanted:
            continue
        folder = parents[0] if parents and parents[0].lower() not in SPLITS else ""
        files.append(
            SourceFile(path, name, split, task, merged, frozenset(wanted), folder, id_prefix=name.removesuffix(".jsonl"))
        )
    return files


def walk(root: Path) -> Iterator[Path]:
    """Every *.jsonl below the root, through linked folders too, each folder once; names that begin with a dot are passed over."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in names if name.endswith(".jsonl") and not name.startswith("."))


def _find(root: Path, split: str, stem: str) -> Path | None:
    """The file in ROOT/split, else directly in ROOT. A dangling link counts as there: reading it will say what is wrong."""
    for folder in (root / split, root):
        path = folder / f"{stem}.jsonl"
        if os.path.lexists(path):
            return path
    return None


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _split_of(stem: str, parents: list[str]) -> str:
    in_name = [word for word in _words(stem) if word in SPLITS]
    in_folders = [folder.lower() for folder in reversed(parents) if folder.lower() in SPLITS]
    return (in_name + in_folders + ["train"])[0]


def _task_of(stem: str) -> tuple[str, str]:
    """(task, "") or ("", merged stem) from the longest known name that the file's name begins with, else ("", "")."""
    words = _words(stem)
    for length in range(len(words), 0, -1):
        name = "_".join(words[:length])
        if name in merged_files():
            return "", name
        if name in _known_names():
            return _known_names()[name], ""
    return "", ""


@cache
def _known_names() -> dict[str, str]:
    """Every name a benchmark goes by in file names -> its key: the key, and its file names with and without split and "batched"."""
    names: dict[str, str] = {}
    for key, entry in BENCHMARKS.items():
        for stem in (key, entry.test_file, *entry.train_files):
            words = _words(stem)
            names["_".join(words)] = key
            names["_".join(word for word in words if word not in (*SPLITS, "batched"))] = key
    return names


def _words(stem: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", stem.lower()) if word]
