"""The deltas of a round, kept on the aggregator's disk until all have come.

The mean must not depend on who answers first, so it is summed in a fixed order, and the last bank in that order may be the first to answer. In
memory there is one delta at a time, however many banks there are. The file has no name: it is gone with the process, whatever ends it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from fedfinlora.adapter import Vector
from fedfinlora.errors import UserError
from fedfinlora.runfolder import unwritable


class StoredDeltas:
    """Deltas by bank, each of shape (size,) float32."""

    def __init__(self, folder: Path, size: int) -> None:
        """Keep them in `folder`. UserError where nothing can be written there."""
        self._folder, self._bytes = folder, 4 * size
        self._places: dict[str, int] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise unwritable(folder, error) from error

    def keep(self, bank: str, delta: Vector) -> None:
        """Write one down. UserError where the disk does not take it."""
        content = memoryview(np.ascontiguousarray(delta, np.float32).view(np.uint8).data)
        assert bank not in self._places
        assert len(content) == self._bytes
        place = len(self._places) * self._bytes
        try:
            written = 0
            while written < len(content):
                written += os.pwrite(self._file.fileno(), content[written:], place + written)
        except OSError as error:
            raise unwritable(self._folder, error) from error
        self._places[bank] = place

    def read(self, banks: Iterable[str], block: slice) -> Iterator[Vector]:
        """Numbers block.start to block.stop of the deltas of `banks`, in that order, one after the other in the same memory: each is good until the
        next is asked for.
        """
        numbers = np.empty(block.stop - block.start, np.float32)
        content = memoryview(numbers.view(np.uint8).data)
        for bank in banks:
            read, place = 0, self._places[bank] + 4 * block.start
            while read < len(content):
                got = os.preadv(self._file.fileno(), [content[read:]], place + read)
                if not got:
                    raise UserError(f"A delta in {self._folder} cannot be read again.")
                read += got
            yield numbers

    def __enter__(self) -> StoredDeltas:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
