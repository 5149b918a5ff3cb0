"""`load_rows`: the one function that reads rows, for every source."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from data.catalog import BENCHMARKS, ON_REQUEST, select
from data.rows import BadRow, Row
from data.sample import FOLDER as SAMPLE_FOLDER
from data.sources.files import WHOLE_FILE, FileRows, SourceFile, read_file
from data.sources.forms import endings
from data.sources.layout import Found, Refused, find, finlora_stems
from data.sources.listing import NotRead, shown
from data.sources.names import SPLITS
from fedfinlora.config.dataset import DatasetConfig
from fedfinlora.errors import UserError, choose
from fedfinlora.seeds import generator

log = logging.getLogger("fedfinlora.data")
SHOWN_NOT_READ = 3


@dataclass(frozen=True)
class LoadedRows:
    """The rows of one split, and an account of everything that is not among them."""

    rows: tuple[Row, ...]
    bad_rows: tuple[BadRow, ...]
    missing: dict[str, str]
    """Task -> why it has no rows."""
    files: dict[str, str]
    """File below the root -> SHA-256 of its bytes (of the public sets: set and split -> SHA-256 of the rows made from
    them).
    """
    synthetic: bool
    """The rows are the bundled sample's: scores on them are not results."""
    not_read: tuple[NotRead, ...] = ()
    """Everything else in the folder."""


def load_rows(dataset: DatasetConfig, split: str, tasks: Sequence[str] = (), seed: int = 0) -> LoadedRows:
    """Read the rows of `split`, file by file and line by line in a fixed order.

    `tasks` names the benchmarks to read; without it, train takes `dataset.tasks` and test takes all. All are those of
    `select(["all"])`; a bank's own folder (jsonl) is read whole.
    `max_rows_per_task` and `equalize_tasks` act on train rows only. Rows with the same prompt are all kept, as FinLoRA
    keeps them; `data check` counts them.

    Raises UserError when there is nothing to read, where files are refused (`data.sources.layout.Refused`), and at the
    first bad row where `dataset.on_bad_row` is stop. Files that look like rows and are not read are logged, once.
    """
    choose(split, SPLITS, "split")
    wanted = tuple(tasks) or (dataset.tasks if split == "train" else ())
    if dataset.source != "jsonl":
        wanted = wanted or tuple(benchmark.key for benchmark in select(["all"]))
        for task in wanted:
            choose(task, BENCHMARKS, "task")
    loaded = _from_hub(dataset, split, wanted) if dataset.source == "hub" else _from_folder(dataset, split, wanted)
    if dataset.on_bad_row == "stop" and loaded.bad_rows:
        raise UserError(
            f"{describe(loaded.bad_rows[0])}. Correct it, or set dataset.on_bad_row=skip to continue without such rows."
        )
    if not loaded.rows:
        raise UserError(_nothing(dataset, split, wanted, loaded))
    if split == "test":
        return loaded
    rows = _sample(loaded.rows, dataset.max_rows_per_task, seed)
    if dataset.equalize_tasks:
        rows = _equalize(rows, dataset.max_rows_per_task)
    return replace(loaded, rows=rows)


def data_fingerprints(*loaded: LoadedRows) -> dict[str, str]:
    """File -> SHA-256 over several loads (train and test), sorted by file: `data_sha256` of a run's manifest.json."""
    return dict(sorted(item for part in loaded for item in part.files.items()))


def describe(bad: BadRow) -> str:
    """`file:line: reason`, as compilers put it, or `file: reason` for a fault of the whole file."""
    return f"{bad.file}: {bad.reason}" if bad.line == WHOLE_FILE else f"{bad.file}:{bad.line}: {bad.reason}"


def refusal(refused: Refused) -> str:
    """`a and b: what is wrong with them, and what to do`."""
    return f"{' and '.join(refused.names)}: {refused.reason}"


def lost(not_read: Sequence[NotRead]) -> str:
    """Those that look like rows, named with the reason; "" where there are none."""
    found = [f"{shown_name} ({reason})" for shown_name, reason, looks_like_rows in not_read if looks_like_rows]
    more = f" and {len(found) - SHOWN_NOT_READ} more" if len(found) > SHOWN_NOT_READ else ""
    return "; ".join(found[:SHOWN_NOT_READ]) + more


def folder_of(dataset: DatasetConfig) -> Path:
    """The folder (for jsonl also: the file) that a source reads. Raises UserError if there is none."""
    if dataset.source == "sample":
        return SAMPLE_FOLDER
    root = Path(dataset.root).expanduser()
    if not root.is_dir() and not (dataset.source == "jsonl" and root.exists()):
        problem = "is not a folder" if root.exists() else "does not exist"
        where = shown(str(root.absolute()))
        raise UserError(
            f"dataset.root {shown(str(dataset.root))!r} {problem} (looked at {where}). Set dataset.root=FOLDER."
        )
    return root


def found_in(dataset: DatasetConfig, split: str, wanted: Sequence[str] = ()) -> Found:
    """What the configured folder has for a split: `load_rows` reads these files, and no others. Not for the hub."""
    layout = "jsonl" if dataset.source == "jsonl" else "finlora"
    return find(folder_of(dataset), layout, split, wanted, None if dataset.source == "sample" else dataset.columns)


def _from_folder(dataset: DatasetConfig, split: str, wanted: Sequence[str]) -> LoadedRows:
    found = found_in(dataset, split, wanted)
    if found.refused:
        raise UserError(f"{refusal(found.refused[0])} (in {shown(str(folder_of(dataset).absolute()))}).")
    if (words := lost(found.not_read)) and dataset.source != "sample":
        _warn(f"{shown(dataset.root)}: not read: {words}. `python -m fedfinlora data check FOLDER` names everything.")
    for doubt in dict.fromkeys(found.doubts.values()):
        names = ", ".join(name for name, about in found.doubts.items() if about == doubt)
        _warn(f"{shown(dataset.root)}: {names}: {doubt}")
    files, missing = found.files, dict(found.missing)
    contents: list[FileRows] = []
    for file in files:
        contents.append(read_file(file))
        if dataset.on_bad_row == "stop" and contents[-1].bad_rows:
            break
    rows = tuple(row for content in contents for row in content.rows)
    have = {row.task for row in rows}
    promised = [task for file in files for task in ([file.task] if file.task else sorted(file.wanted))]
    for task in dict.fromkeys([*wanted, *promised]):
        if task not in have and task not in missing:
            names = ", ".join(
                file.name for file in files if task == file.task or (not file.task and task in file.wanted)
            )
            missing[task] = f"no usable row in {names}" if names else f"no rows: no {split} file of this task"
    return LoadedRows(
        rows,
        tuple(bad for content in contents for bad in content.bad_rows),
        missing,
        {content.file.name: content.sha256 for content in contents if content.sha256},
        synthetic=any(_is_bundled(content) for content in contents),
        not_read=found.not_read,
    )


@cache
def _warn(text: str) -> None:
    """Once a process: rows are loaded for each simulated bank, and again for each evaluation."""
    log.warning("%s", text)


def _is_bundled(content: FileRows) -> bool:
    """Whether a file is a copy of one of the sample's, in this form or in another."""
    if content.sha256 in _bundled_hashes():
        return True
    if content.file.path.name.endswith(".jsonl") or len(content.rows) not in {count for count, _ in _bundled_rows()}:
        return False
    return _rows_digest(content.rows) in _bundled_rows()


@cache
def _bundled_rows() -> frozenset[tuple[int, str]]:
    """Number and SHA-256 of the rows of each of the bundled files."""
    files = (SourceFile(path, path.name, "train") for path in SAMPLE_FOLDER.glob("*/*.jsonl"))
    return frozenset(_rows_digest(read_file(file).rows) for file in files)


def _rows_digest(rows: Sequence[Row]) -> tuple[int, str]:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.prompt}\x1f{row.target}\x1e".encode())
    return len(rows), digest.hexdigest()


@cache
def _bundled_hashes() -> frozenset[str]:
    """SHA-256 of the bundled sample's files: their rows are synthetic in any folder with a copy of them."""
    return frozenset(hashlib.sha256(file.read_bytes()).hexdigest() for file in SAMPLE_FOLDER.glob("*/*.jsonl"))


def _from_hub(dataset: DatasetConfig, split: str, wanted: Sequence[str]) -> LoadedRows:
    from data.hub import load_public_sets

    folder = folder_of(dataset) if dataset.root else None
    public = load_public_sets([key for key in BENCHMARKS if not wanted or key in wanted], split, folder)
    return LoadedRows(public.rows, public.bad_rows, public.missing, public.files, synthetic=False)


def _nothing(dataset: DatasetConfig, split: str, wanted: Sequence[str], loaded: LoadedRows) -> str:
    """What to say when there are no rows at all: where was looked, for what, and what to do."""
    if loaded.bad_rows:
        count, first = len(loaded.bad_rows), describe(loaded.bad_rows[0])
        return (
            f"No usable {split} rows: {count} bad, the first {first}. `python -m fedfinlora data check FOLDER` "
            "lists them."
        )
    words = lost(loaded.not_read)
    others = f" Not read: {words}." if words else ""
    if dataset.source == "hub":
        reasons = "; ".join(f"{task}: {reason}" for task, reason in loaded.missing.items())
        return f"No {split} rows from the public sets ({reasons}). Use dataset.source=finlora with a local folder."
    root = shown(str(folder_of(dataset)))
    if dataset.source == "jsonl":
        tasks = f" of {', '.join(wanted)}" if wanted else ""
        return (
            f"No {split} rows{tasks} in {root}: expected *.jsonl files such as fpb_{split}.jsonl, directly there or in "
            "one folder "
            f'a bank, each line {{"context": "…", "target": "…"}}. Read are {endings()}.{others}'
        )
    stems = [stem for key in wanted or BENCHMARKS for stem in finlora_stems(BENCHMARKS[key], split)]
    names = ", ".join(f"{split}/{stem}.jsonl" for stem in list(dict.fromkeys(stems))[:4])
    if there := {file.task for file in found_in(dataset, split, [entry.key for entry in select(ON_REQUEST)]).files}:
        others += f" It has those of {', '.join(sorted(there))}, which are read where dataset.tasks names them."
    return (
        f"No {split} rows in {root}: expected FinLoRA's files, such as {names}, there or directly in the "
        f"folder.{others}"
    )


def _by_task(rows: Sequence[Row]) -> dict[str, list[int]]:
    positions: dict[str, list[int]] = {}
    for position, row in enumerate(rows):
        positions.setdefault(row.task, []).append(position)
    return positions


def _sample(rows: tuple[Row, ...], limit: int, seed: int) -> tuple[Row, ...]:
    """At most `limit` rows of each task (0 = all), drawn for each task by itself, in the order they had."""
    if limit == 0:
        return rows
    keep: set[int] = set()
    for task, positions in _by_task(rows).items():
        if len(positions) <= limit:
            keep.update(positions)
        else:
            drawn = generator(seed, "max_rows_per_task", task).choice(len(positions), size=limit, replace=False)
            keep.update(positions[index] for index in drawn)
    return tuple(row for position, row in enumerate(rows) if position in keep)


def _equalize(rows: tuple[Row, ...], limit: int) -> tuple[Row, ...]:
    """Repeat each task's rows, in order, up to `limit` (0 = as many as the largest task); a row's later copies end in
    #2, #3, …
    """
    by_task = _by_task(rows)
    count = limit or max(len(positions) for positions in by_task.values())
    equal = list(rows)
    for positions in by_task.values():
        for index in range(len(positions), count):
            row = rows[positions[index % len(positions)]]
            equal.append(replace(row, id=f"{row.id}#{index // len(positions) + 1}"))
    return tuple(equal)
