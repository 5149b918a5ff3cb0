"""Which files a folder has for a split, for training, evaluation, banks and `data check` alike.

FinLoRA (`dataset=finlora`): `ROOT/{train,test}/<stem>.<ending>`, or the same files directly in ROOT. Upstream merges
the sentiment train parts into one file, and the XBRL extraction ones into another; where a benchmark's own train file
exists it wins, and the merged file is read for the other benchmarks only.

A bank's folder, or one folder a bank (`dataset=jsonl`): every file at any depth that has a known ending. The first
folder level is `Row.path` (a bank, a desk), unless it is called train or test. The word train or test in the file's
name gives the split, else a folder so called, else it is train; names that say both are refused, and those that say
validation are not read (`data.sources.names`). The beginning of the file's name gives the task where it is a
benchmark's key or one of its file names (`fpb_train.jsonl`, `finer_2024_q1.csv`). Here too a benchmark's own file in
the same bank's folder wins over the merged one.

Two files in one folder whose names differ only in their endings (or letter case) are most likely the same rows, which
would count twice in training and in the privacy ledger. Both are refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data.catalog import BENCHMARKS, Benchmark
from data.sources.files import SourceFile
from data.sources.forms import form_of
from data.sources.listing import Entry, NotRead, list_rows
from data.sources.names import SPLITS, folder_split, split_of, task_of
from fedfinlora.config.dataset import ColumnsConfig


class Refused(NamedTuple):
    """Files that can only be read with a guess: no run begins while they are there."""

    names: tuple[str, ...]
    reason: str
    """What is wrong with them, and what to do."""


@dataclass(frozen=True)
class Found:
    """The files of one split, and an account of everything else in the folder."""

    files: tuple[SourceFile, ...]
    """In the order in which they are read."""
    missing: Mapping[str, str]
    """Task -> why it has no file (FinLoRA's layout only)."""
    not_read: tuple[NotRead, ...]
    """What no split reads, sorted by name."""
    refused: tuple[Refused, ...]
    """Doubles, and names that say both train and test: none of them is read, and there are no rows until they are put
    right.
    """
    doubts: Mapping[str, str] = field(default_factory=dict)
    """File that is read -> what in its name speaks against the split that it is read for."""


def layout_of(root: Path) -> str:
    """finlora for a folder with a folder `train`, else jsonl: how a bank's own folder is read, and one that `data
    check` is shown.
    """
    return "finlora" if (root / "train").is_dir() else "jsonl"


def find(
    root: Path,
    layout: str,
    split: str,
    wanted: Collection[str] = (),
    columns: ColumnsConfig | None = None,
    thorough: bool = False,
) -> Found:
    """The files of `split` in a folder (with jsonl also: the one file) `root`. No `wanted` = every task.

    `layout` is finlora or jsonl. `thorough` looks into folders that FinLoRA's layout does not have, to name what lies
    there.
    """
    names = columns or ColumnsConfig()
    if layout == "finlora":
        return _finlora(root, split, wanted, names, thorough)
    return _bank(root, split, wanted, names)


def finlora_stems(entry: Benchmark, split: str) -> tuple[str, ...]:
    """File names, without ending, that may hold a benchmark's rows, the merged one last."""
    if split == "test":
        return (entry.test_file,)
    return (*entry.train_files, entry.merged_train_file) if entry.merged_train_file else entry.train_files


def _finlora(root: Path, split: str, wanted: Collection[str], columns: ColumnsConfig, thorough: bool) -> Found:
    listing = list_rows(root, () if thorough else SPLITS)
    places = _places(listing.entries)
    files: list[SourceFile] = []
    missing: dict[str, str] = {}
    ambiguous: dict[tuple[str, ...], None] = {}
    by_merged: dict[tuple[str, str], list[str]] = {}

    def look(stem: str, split: str) -> Entry | None:
        """The file in ROOT/split, else directly in ROOT. A dangling link or a folder counts: reading it will say what
        is wrong.
        """
        for parents in ((split,), ()):
            if same := places.get((parents, stem)):
                if len(same) > 1:
                    ambiguous[tuple(entry.name for entry in same)] = None
                return same[0]
        return None

    entry_of: dict[str, Entry] = {}
    for key, benchmark in BENCHMARKS.items():
        if wanted and key not in wanted:
            continue
        own = (benchmark.test_file,) if split == "test" else benchmark.train_files
        found = [(stem, entry) for stem in own if (entry := look(stem, split))]
        if not found and key in wanted and benchmark.reworded_from:
            stems = finlora_stems(BENCHMARKS[benchmark.reworded_from], split)[:1]
            found = [(stem, entry) for stem in stems if (entry := look(stem, split))]
        for position, (stem, entry) in enumerate(found):
            prefix = f"{key}/{split}/{stem}" if position else ""
            files.append(SourceFile(entry.path, entry.name, split, key, id_prefix=prefix, columns=columns))
        if found:
            continue
        merged = benchmark.merged_train_file if split == "train" else ""
        if merged and (entry := look(merged, split)):
            by_merged.setdefault((merged, entry.name), []).append(key)
            entry_of[entry.name] = entry
        else:
            expected = " or ".join(f"{split}/{stem}.jsonl" for stem in finlora_stems(benchmark, split))
            missing[key] = f"no rows: there is no {expected}"
    for (stem, name), keys in by_merged.items():
        files.append(SourceFile(entry_of[name].path, name, split, merged=stem, wanted=frozenset(keys), columns=columns))
    doubles = frozenset(name for names in ambiguous for name in names)
    return Found(
        tuple(file for file in files if file.name not in doubles), missing,
        tuple(sorted((*listing.not_read, *_unknown_in_finlora(listing.entries)))), tuple(map(_doubles, ambiguous)),
    )  # fmt: skip


def _places(entries: Sequence[Entry]) -> dict[tuple[tuple[str, ...], str], list[Entry]]:
    """(folders and stem in lower case) -> the entries there."""
    places: dict[tuple[tuple[str, ...], str], list[Entry]] = {}
    for entry in entries:
        places.setdefault((tuple(part.lower() for part in entry.parents), entry.stem.lower()), []).append(entry)
    return places


def _unknown_in_finlora(entries: Sequence[Entry]) -> list[NotRead]:
    """Files with a known ending that no split reads, for any tasks."""
    stems = {split: {stem for entry in BENCHMARKS.values() for stem in finlora_stems(entry, split)} for split in SPLITS}
    present = _places(entries)
    own = {
        key
        for key, benchmark in BENCHMARKS.items()
        if any((parents, stem) in present for stem in benchmark.train_files for parents in (("train",), ()))
    }
    found = []
    for entry in entries:
        parents, stem = tuple(part.lower() for part in entry.parents), entry.stem.lower()
        splits = [split for split in SPLITS if stem in stems[split]]
        served = [key for key, benchmark in BENCHMARKS.items() if benchmark.merged_train_file == stem]
        if not splits and entry.is_folder:
            reason = "a folder of no benchmark's name"
        elif not splits:
            reason = split_of(entry.stem, ()).problem or "its name is no benchmark's file name" + _nearest(stem, stems)
        elif parents not in ((), (splits[0],)):
            reason = f"it is not in {splits[0]}/ or directly in the folder (dataset=jsonl reads every folder)"
        elif not parents and ((splits[0],), stem) in present:
            reason = f"the one in {splits[0]}/ is read"
        elif served and own.issuperset(served):
            reason = f"a merged file; the files of {', '.join(served)} themselves are read"
            found.append(NotRead(entry.name, reason, False))
            continue
        else:
            continue
        found.append(NotRead(entry.name + "/" * entry.is_folder, reason, True))
    return found


def _nearest(stem: str, stems: Mapping[str, Collection[str]]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(stem, sorted(name for names in stems.values() for name in names), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _bank(root: Path, split: str, wanted: Collection[str], columns: ColumnsConfig) -> Found:
    """A bank's files of this split that may hold a wanted task, by name."""
    listing = list_rows(root)
    entries = [entry for entry in listing.entries if not entry.is_folder]
    places = _places(entries)
    ambiguous = {tuple(entry.name for entry in same): None for same in places.values() if len(same) > 1}
    doubles = frozenset(name for names in ambiguous for name in names)
    own: dict[str, set[str]] = {}
    """Folder -> tasks that have a train file of their own there."""
    for entry in entries:
        if split_of(entry.stem, entry.parents).name == "train":
            own.setdefault(_folder(entry), set()).add(task_of(entry.stem)[0])
    files, not_read, refused, unclear = [], list(listing.not_read), [], []
    doubts: dict[str, str] = {}
    for entry in entries:
        task, merged = task_of(entry.stem)
        its_split, problem, contradicts, doubt = split_of(entry.stem, entry.parents)
        if problem and not contradicts:
            not_read.append(NotRead(entry.name, problem, True))
            continue
        served = {key for key, benchmark in BENCHMARKS.items() if merged and benchmark.merged_train_file == merged}
        left = served - own[_folder(entry)] if its_split == "train" and served else served
        if served and not left:
            not_read.append(
                NotRead(entry.name, "a merged file; this bank has files of their own for all its tasks", False)
            )
            continue
        asked = frozenset(wanted) or (frozenset(left) if left != served else frozenset())
        if left != served:
            asked &= left
        if its_split not in ("", split) or (task and wanted and task not in wanted) or (left != served and not asked):
            continue
        if contradicts:
            unclear.append(Refused((entry.name,), problem))
            continue
        if entry.name in doubles:
            refused.append(entry.name)
            continue
        if doubt:
            doubts[entry.name] = doubt
        prefix = "/".join((*entry.parents, entry.stem))
        files.append(SourceFile(entry.path, entry.name, split, task, merged, asked, _folder(entry), prefix, columns))
    twice = [_doubles(names) for names in ambiguous if any(name in refused for name in names)]
    return Found(tuple(files), {}, tuple(sorted(not_read)), (*twice, *unclear), doubts)


def _doubles(names: tuple[str, ...]) -> Refused:
    how = "letter case" if len({name.lower() for name in names}) == 1 else "their endings"
    if how == "their endings" and len({_without_ending(name) for name in names}) > 1:
        how = "their endings and in letter case"
    reason = (
        f"differ only in {how}: most likely the same rows twice, so none of them is read. "
        "Keep one of them, or give the other a name of its own if its rows are others"
    )
    return Refused(names, reason)


def _without_ending(name: str) -> str:
    """The name without its ending: `form_of` keeps the stem's letter case."""
    return form_of(name)[0]


def _folder(entry: Entry) -> str:
    """The bank that a file belongs to: the first folder level; "" for one directly in the root, or for all banks."""
    return entry.parents[0] if entry.parents and not folder_split(entry.parents[0]) else ""
