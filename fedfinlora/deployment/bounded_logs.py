"""Log files that another party can make grow, kept below a bound while `bank start` or `coordinator start` runs.

The writer holds a log open, so as with logrotate(8)'s `copytruncate` its end is copied to FILE.1, and the file begins
again at 0 bytes. Lines written in between are lost.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("fedfinlora.watch")
MOST_BYTES = 2**25
"""Of a log before it is copied: 32 MiB."""
LOOK_S = 5.0


@contextmanager
def bounded(*files: Path, most_bytes: int = MOST_BYTES, look_s: float = LOOK_S) -> Iterator[None]:
    """Keep log files short for as long as the block runs."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(look_s):
            for file in files:
                shorten(file, most_bytes)

    watching = threading.Thread(target=watch, name="logs", daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def shorten(file: Path, most_bytes: int = MOST_BYTES) -> None:
    """Begin a log of more than `most_bytes` again; its last `most_bytes` are in FILE.1, unless the disk is full."""
    try:
        if file.stat().st_size <= most_bytes:
            return
    except OSError:
        return
    try:
        with (
            open(file, "rb") as source,
            open(os.open(file.with_name(f"{file.name}.1"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as copy,
        ):
            source.seek(-most_bytes, os.SEEK_END)
            shutil.copyfileobj(source, copy)
    except OSError as error:
        log.warning("%s: its end is not kept (%s)", file, error.strerror)
    try:
        os.truncate(file, 0)
    except OSError as error:
        log.warning("%s cannot be shortened (%s)", file, error.strerror)
