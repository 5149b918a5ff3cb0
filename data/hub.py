"""The public sets on the Hugging Face hub, brought into FinLoRA's prompt form by their columns.

What FinLoRA did to the public sets was done by hand and is only partly published, so these rows are close to its files
but not equal to them; scores that are to be compared with FinLoRA's need `dataset.source=finlora`. Known differences:
TFNS has its true labels here (FinLoRA's are swapped), FinanceBench has all 150 questions, FiNER's list of tags is in
one order for all rows, and the four XBRL extraction sets are questions without the filings and therefore give no rows.

With `dataset.root=FOLDER` nothing is fetched: FOLDER/<hub_id>/ holds a copy of each set, as written by `hf download
--repo-type dataset <hub_id> --local-dir FOLDER/<hub_id>`. Only data files are read, never a set's own code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.catalog import BENCHMARKS
from data.rows import BadRow, Row
from data.sources.flare import reference_of
from data.sources.public import Unusable, pairs
from data.sources.records import BadLine
from fedfinlora.errors import UserError
from fedfinlora.model.hub_faults import first_line, hub_fault
from fedfinlora.system.web import check_hub

PARQUET_BRANCH = "refs/convert/parquet"
"""Where the hub keeps a converted copy of sets that come as a program."""
PARQUET_FOLDERS = {"takala/financial_phrasebank": "sentences_50agree", "nlpaueb/finer-139": "finer-139"}
"""Set -> the folder on that branch to read. At least half of PhraseBank's annotators agreed: 4,846 sentences, as in
FinLoRA.
"""
TEST_SPLITS = ("test", "validation", "valid")
"""The first of these that a set has is the test part. A set with one part only is divided."""
TEST_SHARE, TEST_SEED = 0.25, 42
"""A set without a test part: a quarter of it, shuffled by seed 42. This gives FPB 3,634 and 1,212 rows, as many as
FinLoRA's files have.
"""


@dataclass(frozen=True)
class PublicRows:
    """Rows of several public sets, the records that make no row, and task -> reason for the sets that give none."""

    rows: tuple[Row, ...]
    bad_rows: tuple[BadRow, ...]
    missing: dict[str, str]
    files: dict[str, str]
    """`<hub_id>/<split>` -> SHA-256 of the rows made from it."""


def load_public_sets(tasks: Sequence[str], split: str, folder: Path | None = None) -> PublicRows:
    """Rows of each task's public set. Raises UserError when the hub cannot be reached; any other fault is one set's, in
    `missing`.
    """
    rows: list[Row] = []
    bad_rows: list[BadRow] = []
    missing: dict[str, str] = {}
    files: dict[str, str] = {}
    for task in tasks:
        hub_id = BENCHMARKS[task].hub_id
        try:
            if not hub_id:
                raise Unusable("has no public set on the hub; use dataset.source=finlora with a local folder")
            if sum(entry.hub_id == hub_id for entry in BENCHMARKS.values()) > 1:
                raise Unusable(
                    f"{hub_id} holds questions without their filings; use dataset.source=finlora with a local folder"
                )
            found, bad = rows_of(task, _open_split(hub_id, split, folder), f"{hub_id}/{split}", split)
        except Unusable as reason:
            missing[task] = str(reason)
            continue
        if not found:
            missing[task] = f"no usable record in {hub_id} ({len(bad)} bad)"
        rows += found
        bad_rows += bad
        files[f"{hub_id}/{split}"] = _digest(found)
    return PublicRows(tuple(rows), tuple(bad_rows), missing, files)


def rows_of(task: str, dataset: Any, name: str, split: str) -> tuple[list[Row], list[BadRow]]:
    """Rows of one `datasets.Dataset`, by the mapping that knows its columns. A bad record's line is its number from
    1.
    """
    rows: list[Row] = []
    bad_rows: list[BadRow] = []
    for position, made in enumerate(pairs(task, dataset)):
        if isinstance(made, str):
            bad_rows.append(BadRow(name, position + 1, made))
        else:
            try:
                reference = reference_of(made.prompt, made.target) if BENCHMARKS[task].parser == "entities" else ""
            except BadLine as reason:
                bad_rows.append(BadRow(name, position + 1, str(reason)))
                continue
            row_id = f"{task}/{split}/{position:06d}"
            rows.append(Row(row_id, task, made.prompt, made.target, made.issuer, reference=reference))
    return rows, bad_rows


def _open_split(hub_id: str, split: str, folder: Path | None) -> Any:
    parts = _open(hub_id, folder)
    test = next((name for name in TEST_SPLITS if name in parts), "")
    if split == "test" and test:
        return parts[test]
    if "train" not in parts:
        raise Unusable(f"{hub_id} has no {split} part, only {', '.join(sorted(parts))}")
    if test:
        return parts["train"]
    return parts["train"].train_test_split(test_size=TEST_SHARE, seed=TEST_SEED)[split]


def _open(hub_id: str, folder: Path | None) -> Any:
    import datasets

    path = hub_id
    if folder is None:
        check_hub()
    if folder is not None:
        path = str(folder / hub_id)
        if not Path(path).is_dir():
            raise Unusable(f"there is no folder {path}")
    try:
        return datasets.load_dataset(path)
    except ConnectionError as error:
        fault = hub_fault(error, hub_id, "data set", key="dataset.root") or "The Hugging Face hub cannot be reached."
        raise UserError(
            f"{fault} A copy is made by `hf download --repo-type dataset {hub_id} --local-dir FOLDER/{hub_id}`; local "
            "rows need no hub: dataset.source=finlora."
        ) from error
    except RuntimeError as error:
        if folder is not None or hub_id not in PARQUET_FOLDERS:
            raise Unusable(_why(error, hub_id)) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise Unusable(_why(error, hub_id)) from error
    try:
        return datasets.load_dataset(hub_id, data_dir=PARQUET_FOLDERS[hub_id], revision=PARQUET_BRANCH)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise Unusable(_why(error, hub_id)) from error


def _why(error: Exception, hub_id: str) -> str:
    return hub_fault(error, hub_id, "data set", key="dataset.root") or f"{type(error).__name__}: {first_line(error)}"


def _digest(rows: Sequence[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.prompt}\x1f{row.target}\x1e".encode())
    return digest.hexdigest()
