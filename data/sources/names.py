"""What the names of a file and its folders say about its rows: their task and split, or why the split is open.

Names that say both train and test, or validation, are not guessed at: test rows would be trained on.
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
_SPLIT_WORD = re.compile(r"(train|test)(?:s|ing|set|data|rows|files?|split|batched)*")
_GLUED = re.compile(r"(train|test)(?:s|ing|set|data|rows|files?|split|batched)*?|" + "|".join(HELD_OUT))
"""What may be written in one word with the name of a benchmark, or with another such word: fpbtest, testfpb, trainval.
"""
_NO_TEST = re.compile(r"(?:la|con|back|at|pro|de|un|grea|fas|shor)test|test(?:imon|ament|at|if)")
"""Letters of words that have "test" in them and mean something else."""
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Where a word begins inside another, as in fpbTest; benchmarks' names such as FiNER are tried first."""
_DIGITS = "0123456789"


class Split(NamedTuple):
    """What a file is for."""

    name: str
    """train or test; "" where the names leave it open."""
    problem: str = ""
    """Why they do, and what to do about it."""
    contradicts: bool = False
    """The names say both train and test, or train and validation: no run may begin. Else the file is only passed over.
    """
    doubt: str = ""
    """What speaks against the split, though not clearly."""


def split_of(stem: str, parents: Sequence[str]) -> Split:
    """The split that the file's name says, else its folders, else train.

    >>> split_of("fpbTest1", ()).name, split_of("fpb", ("north", "Test set")).name, split_of("letters", ("north",)).name
    ('test', 'test', 'train')
    >>> split_of("fpb_train_test", ()).problem[:34], split_of("fpb_train", ("test",)).problem[:44]
    ('its name says both train and test:', 'its name says train and its folder test: ren')
    """
    parts = _divided(words(_HUMP.sub(" ", stem)))
    in_name = {said for word in parts if (said := _split_word(word.rstrip(_DIGITS)))}
    in_folders = {said for folder in parents if (said := folder_split(folder))}
    held_out = next((word for word in parts if word in HELD_OUT), "")
    plainly_held_out = next((word for word in _divided(words(stem)) if word in HELD_OUT), "")
    """Not so for DevOps."""
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
    if held_out and "train" in in_name:
        return Split("", f"its name says both train and {held_out}: rename it so that it says one of them", True)
    if plainly_held_out and not in_name and "train" in in_folders:
        return Split(
            "",
            f"its name says {plainly_held_out} and its folder train: rename it, or move it to a folder of its own",
            True,
        )
    if found := in_name or in_folders:
        return Split(min(found), doubt="" if in_name else _doubt(parts, min(found)))
    if any(len(_splits_of(folder)) > 1 for folder in parents):
        return Split("", "its folder says both train and test: rename it so that it says one of them", True)
    if held_out := plainly_held_out or next((folder.lower() for folder in parents if folder.lower() in HELD_OUT), ""):
        return Split(
            "", f"its name or folder says {held_out}: rename it to train (trained on) or test (scored) to have it read"
        )
    return Split("train", doubt=_doubt(parts, "train"))


def folder_split(folder: str) -> str:
    """train or test for a folder of that name ("Test", "training", "test-set", "Testing data"); "" for a bank's, such
    as "test1".
    """
    said = _splits_of(folder)
    return min(said) if len(said) == 1 else ""


def _splits_of(folder: str) -> set[str]:
    """What a folder says it is for. One word is enough for test: a bank may be called North Training, and trains on its
    rows anyway.
    """
    parts = _divided(words(_HUMP.sub(" ", folder)))
    said = {_split_word(part) for part in parts}
    if "test" not in said:
        said = {_split_word("".join(words(folder)))}
    return said - {""}


def _doubt(parts: Sequence[str], split: str) -> str:
    hidden = split == "train" and any("test" in _NO_TEST.sub("", part) for part in parts)
    return "read as train: its name contains 'test'" if hidden else ""


def task_of(stem: str) -> tuple[str, str]:
    """(task, "") or ("", merged stem) from the longest known name that the file's name begins with, else ("", "")."""
    for parts in (words(stem), words(_HUMP.sub(" ", stem))):
        for length in range(len(parts), 0, -1):
            name = "_".join(parts[:length])
            if name in merged_files():
                return "", name
            if name in _known_names():
                return _known_names()[name], ""
    parts = _divided(words(stem))
    while parts != words(stem) and parts and _split_word(parts[0]):
        parts = parts[1:]
    if parts and parts != words(stem):
        return task_of("_".join(parts))
    return "", ""


def words(stem: str) -> list[str]:
    """The words of a name in lower case.

    >>> words("FPB_train-2024.v2")
    ['fpb', 'train', '2024', 'v2']
    """
    return [word for word in re.split(r"[^a-z0-9]+", stem.lower()) if word]


def _divided(parts: Sequence[str]) -> list[str]:
    """The words, those glued to a benchmark's name or to each other apart.

    >>> _divided(["fpbtest"]), _divided(["testfpb"]), _divided(["xbrl", "termtest"]), _divided(["contest"])
    (['fpb', 'test'], ['test', 'fpb'], ['xbrl', 'term', 'test'], ['contest'])
    """
    found: list[str] = []
    for position, word in enumerate(parts):
        before, after = "".join(parts[:position]), "".join(parts[position + 1 :])
        pieces = _pieces(word.rstrip(_DIGITS), before, after)
        found += pieces if len(pieces) > 1 else _pieces(word, before, after) or [word]
    return found


def _pieces(word: str, before: str, after: str) -> list[str]:
    """The parts of a word that begin or end with one that says a split; [] for a word that is whole.

    `before` and `after` are the words around it: a benchmark's name may have several.
    """
    if _SPLIT_WORD.fullmatch(word) or word in HELD_OUT:
        return [word]
    for cut in range(1, len(word)):
        left, right = word[:cut], word[cut:]
        if _GLUED.fullmatch(right):
            if before + left in _glued_names() or left in _glued_names():
                return [left, right]
            if rest := _pieces(left, before, ""):
                return [*rest, right]
        if _GLUED.fullmatch(left):
            if right in _glued_names() or right + after in _glued_names():
                return [left, right]
            if rest := _pieces(right, "", after):
                return [left, *rest]
    return []


def _split_word(word: str) -> str:
    found = _SPLIT_WORD.fullmatch(word)
    return found[1] if found else ""


@cache
def _known_names() -> dict[str, str]:
    """Every name a benchmark goes by in file names -> its key: the key, and its file names with and without split and
    "batched".
    """
    names: dict[str, str] = {}
    for key, entry in BENCHMARKS.items():
        for stem in (key, entry.test_file, *entry.train_files):
            parts = words(stem)
            names["_".join(parts)] = key
            names["_".join(word for word in parts if word not in (*SPLITS, "batched"))] = key
    return names


@cache
def _glued_names() -> frozenset[str]:
    """The names that say no split, in one word."""
    return frozenset(name.replace("_", "") for name in _known_names() if not {*SPLITS} & {*name.split("_")})
