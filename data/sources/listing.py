"""What lies in a folder of rows: every file that may hold some, and every entry that is passed over, with the reason.

File names are bytes that any program may have chosen. `shown` makes them text that can be printed, logged and written
as UTF-8.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.sources.forms import Form, form_of, why_not_read
from fedfinlora.errors import printable


class Entry(NamedTuple):
    """A file (or, in its place, a folder or a dangling link) whose ending is that of a form."""

    path: Path
    name: str
    """Path below the root with forward slashes, printable: what reports, fingerprints and bad rows call it."""
    parents: tuple[str, ...]
    """The folders between the root and the file, printable."""
    stem: str
    """The file's name without its ending, printable."""
    form: Form
    is_folder: bool


class NotRead(NamedTuple):
    """Something in the folder that is not read."""

    name: str
    """As Entry.name; a folder's ends in a slash."""
    reason: str
    looks_like_rows: bool
    """Whether rows may be lost: not so for a README or a hidden folder."""


class Listing(NamedTuple):
    entries: tuple[Entry, ...]
    """Sorted as if every file ended in .jsonl, so that the form does not change the order of the rows."""
    not_read: tuple[NotRead, ...]


def shown(name: str) -> str:
    """A file name as printable text: bytes that are no UTF-8 and letters that would move the cursor are spelled out.

    >>> shown("fpb_train" + chr(0xDCFF) + ".csv"), shown("Zürich 'a'")
    ('fpb_train\\\\xff.csv', "Zürich 'a'")
    """
    return printable(os.fsencode(name).decode("utf-8", "backslashreplace"))


def list_rows(root: Path, only: tuple[str, ...] = ()) -> Listing:
    """Walk a folder through links too, each folder once; or take the one file that `root` is.

    `only` names folders directly in the root (in any letter case): the others, and folders in those, are named but not
    walked.
    """
    if not root.is_dir():
        stem, form = form_of(root.name)
        if special := special_file(root):
            return Listing((), (_unread(root.name, root, (), (f"not a file: {special}", True)),))
        if form is None:
            return Listing((), (_unread(root.name, root, (), why_not_read(root.name)),))
        return Listing((Entry(root, shown(root.name), (), shown(stem), form, False),), ())
    entries: list[Entry] = []
    not_read: list[NotRead] = []
    seen: dict[str, str] = {}
    for folder, folders, names in os.walk(
        root, followlinks=True, onerror=lambda error: not_read.append(_closed(root, error))
    ):
        place = Path(folder)
        parents = tuple(shown(part) for part in place.relative_to(root).parts)
        real = os.path.realpath(folder)
        if real in seen:
            not_read.append(NotRead("/".join(parents) + "/", f"the same folder as {seen[real] or 'the root'}", True))
            folders.clear()
            continue
        seen[real] = "/".join(parents)
        for name in sorted(folders):
            entries += _entries(place / name, parents, is_folder=True)
        walked = []
        for name in sorted(folders):
            if name.startswith("."):
                not_read.append(
                    _unread(name + "/", place / name, parents, ("hidden: its name begins with a dot", False))
                )
            elif only and (parents or name.lower() not in only):
                if form_of(name)[1] is None:
                    reason = (
                        f"a folder; this layout has its files directly in {' and '.join(f'{each}/' for each in only)}"
                    )
                    not_read.append(_unread(name + "/", place / name, parents, (reason, True)))
            else:
                walked.append(name)
        folders[:] = walked
        for name in sorted(names):
            path = place / name
            found = list(_entries(path, parents))
            if name.startswith("."):
                not_read.append(_unread(name, path, parents, ("hidden: its name begins with a dot", False)))
            elif not found:
                not_read.append(_unread(name, path, parents, why_not_read(name)))
            elif special := special_file(path):
                not_read.append(_unread(name, path, parents, (f"not a file: {special}", True)))
            else:
                entries += found
    entries.sort(key=lambda entry: (*entry.parents, f"{entry.stem}.jsonl", entry.name))
    return Listing(tuple(entries), tuple(sorted(not_read)))


def state_of_files(root: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size in bytes and time of change of every file that may be read: it changes whenever the rows may have."""
    found = []
    for entry in list_rows(root).entries:
        try:
            state = entry.path.stat()
        except OSError:
            continue
        found.append((entry.name, state.st_size, state.st_mtime_ns))
    return tuple(found)


def _entries(path: Path, parents: tuple[str, ...], is_folder: bool = False) -> Iterator[Entry]:
    stem, form = form_of(path.name)
    if form is not None and not path.name.startswith("."):
        yield Entry(path, "/".join((*parents, shown(path.name))), parents, shown(stem), form, is_folder)


def _unread(name: str, path: Path, parents: tuple[str, ...], why: tuple[str, bool]) -> NotRead:
    return NotRead("/".join((*parents, shown(name))), *why)


def special_file(path: Path) -> str:
    """What kind of thing a path is that would never end, or never begin, to be read; "" for a file or a dangling
    link.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return ""
    kinds = {
        stat.S_ISFIFO: "a named pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    return next((word for is_kind, word in kinds.items() if is_kind(mode)), "")


def _closed(root: Path, error: OSError) -> NotRead:
    name = shown(os.path.relpath(os.fsdecode(error.filename), root))
    return NotRead(f"{name}/", f"cannot be read: {error.strerror}", True)
