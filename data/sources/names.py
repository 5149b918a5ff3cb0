"""What the name of a file, and those of its folders, say about its rows: their task and their split, or why they leave the split open.

Names that say both train and test, or that say validation, are never guessed at: rows to score on would be trained on without a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from data.catalog import BENCHMARKS, merged_files

SPLITS = ("train", "test")
HELD_OUT = ("validation", "valid", "val", "dev", "eval", "evaluation", "holdout")
"""Words that other programs use for rows which are neither trained on nor the test."""
_SPLIT_WORD = re.compile(r"(train|test)(?:s|ing|set|data|rows|file|split)?")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Where a word begins inside another one, as in fpbTest; names of benchmarks such as FiNER are tried without it first."""
_DIGITS = "0123456789"


class Split(NamedTuple):
    """What a file is for."""

    name: str
    """train or test; "" where the names leave it open."""
    problem: str = ""
    """Why they do, and what to do about it."""
    contradicts: bool = False
    """The names say both train and test: no run may begin. Else they say neither, and the file is only passed over."""


def split_of(stem: str, parents: Sequence[str]) -> Split:
    """The split that the file's name says, else its folders, else train.

    >>> split_of("fpbTest1", ()).name, split_of("fpb", ("north", "Test set")).name, split_of("letters", ("north",)).name
    ('test', 'test', 'train')
    >>> split_of("fpb_train_test", ()).problem[:34], split_of("fpb_train", ("test",)).problem[:44]
    ('its name says both train and test:', 'its name says train and its folder test: ren')
    """
    in_name = {said for word in words(_HUMP.sub(" ", stem)) if (said := _split_word(word.rstrip(_DIGITS)))}
    in_folders = {said for folder in parents if (said := folder_split(folder))}
    if len(in_name) > 1:
        return Split("", "its name says both train and test: rename it so that it says one of them", True)
    if len(in_folders) > 1:
        return Split("", "one of its folders says train and another test: move it out of one of them", True)
    if in_name and in_folders and in_name != in_folders:
        return Split(
            "",
            f"its name says {min(in_name)} and its folder {min(in_folders)}: rename it, or move it to the other folder",
            True,
        )
    if found := in_name or in_folders:
        return Split(min(found))
    held_out = [word for word in (*words(stem), *map(str.lower, parents)) if word in HELD_OUT]
    if held_out:
        return Split(
            "", f"its name or folder says {held_out[0]}: rename it to train (trained on) or test (scored) to have it read"
        )
    return Split("train")


def folder_split(folder: str) -> str:
    """train or test for a folder of that name ("Test", "training", "test-set"); "" for a bank's, such as "test1"."""
    return _split_word("".join(words(folder)))


def task_of(stem: str) -> tuple[str, str]:
    """(task, "") or ("", merged stem) from the longest known name that the file's name begins with, else ("", "")."""
    for parts in (words(stem), words(_HUMP.sub(" ", stem))):
        for length in range(len(parts), 0, -1):
            name = "_".join(parts[:length])
            if name in merged_files():
                return "", name
            if name in _known_names():
                return _known_names()[name], ""
    return "", ""


def words(stem: str) -> list[str]:
    """The words of a name in lower case.

    >>> words("FPB_train-2024.v2")
    ['fpb', 'train', '2024', 'v2']
    """
    return [word for word in re.split(r"[^a-z0-9]+", stem.lower()) if word]


def _split_word(word: str) -> str:
    found = _SPLIT_WORD.fullmatch(word)
    return found[1] if found else ""


@cache
def _known_names() -> dict[str, str]:
    """Every name a benchmark goes by in file names -> its key: the key, and its file names with and without split and "batched"."""
    names: dict[str, str] = {}
    for key, entry in BENCHMARKS.items():
        for stem in (key, entry.test_file, *entry.train_files):
            parts = words(stem)
            names["_".join(parts)] = key
            names["_".join(word for word in parts if word not in (*SPLITS, "batched"))] = key
    return names
