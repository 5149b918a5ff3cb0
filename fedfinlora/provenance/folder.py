"""What lies in a folder that is checked. Nothing is opened that could wait or lead out of the folder."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

OTHER_KINDS = (
    (stat.S_ISLNK, "a symbolic link"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip
"""What neither a run nor an adapter is made of."""
MOST_BYTES = 2**34
"""Of a file that is read or hashed: an adapter of a 70B model has a few GB; a sparse file may claim terabytes."""
DEEPEST = 50
"""Folders in one another; a run has four."""


@dataclass(frozen=True)
class Contents:
    """All that lies below a folder, dotfiles too. Paths are relative to it, with "/"."""

    files: list[str] = field(default_factory=list)
    """Sorted."""
    odd: dict[str, str] = field(default_factory=dict)
    """Path -> what it is instead of a file or folder, in words."""


def contents_of(folder: Path) -> Contents:
    """Walk a folder without following a link and without opening a file.

    | there is | result |
    |---|---|
    | a link, be it to a file, to a folder or to nothing | in `odd`; what it leads to is not looked at |
    | a FIFO, socket or device | in `odd` |
    | a folder that cannot be read | in `odd` |
    | an empty folder | nothing |
    """
    found = Contents()
    for path, what in sorted(_walk(folder, "")):
        if what:
            found.odd[path] = what
        else:
            found.files.append(path)
    return found


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, str]]:
    """(path, "" for a file or else what it is)."""
    if prefix.count("/") > DEEPEST:
        yield prefix.rstrip("/"), "nested too deep"
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        yield prefix.rstrip("/") or ".", f"not to be read ({error.strerror})"
        return
    for entry in entries:
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, next((words for is_kind, words in OTHER_KINDS if is_kind(mode)), "")


def sha256_of_file(file: Path) -> str:
    """OSError for what is no file: a link is not followed, a FIFO not waited for."""
    with regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_bytes(file: Path) -> bytes:
    """Likewise, its content."""
    with regular(file) as stream:
        return stream.read()


def regular(file: Path) -> BufferedReader:
    """A file, open to be read. OSError as `sha256_of_file`."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
        os.close(descriptor)
        regular = stat.S_ISREG(found.st_mode)
        what = "larger than any file of a run" if regular else "not a regular file"
        raise OSError(errno.EFBIG if regular else errno.EINVAL, what, str(file))
    return os.fdopen(descriptor, "rb")
