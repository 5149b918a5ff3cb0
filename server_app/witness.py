"""The server as a witness of the banks' privacy ledgers: the newest head of each, over all runs, on the server's disk.

Each booked reply brings number and hash of its ledger's last line. The server keeps them by the bank's name, sends each
bank its own in the next request, and accepts no reply whose ledger has not grown since. A bank that puts back an older
ledger, or cuts lines off, is refused here by the number, and at the bank by the hash, which its ledger must still have.
The banks of a simulation share one ledger, so numbers are compared for each bank alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from fedfinlora.errors import UserError
from fedfinlora.files import unwritable, write_bytes
from fedfinlora.privacy.head import Head
from fedfinlora.privacy.ledger import ledger_root
from fedfinlora.run.records import RoundLine
from fedfinlora.system.locks import wait_for
from fedfinlora.wire.messages import RejectedReply

WITNESS_VARIABLE = "FEDFINLORA_WITNESS"
HEADS_FILE = "heads.json"


def witness_root() -> Path:
    """Where this server keeps what it has seen: $FEDFINLORA_WITNESS, which `coordinator start` sets to its own folder,
    or `witness` below the ledgers of this machine, so that a simulation with ledgers of its own has a witness of its
    own.
    """
    return Path(os.environ.get(WITNESS_VARIABLE) or ledger_root() / "witness").expanduser()


class Witness:
    """The heads that a server has seen. Several runs may share one folder, at the same time too."""

    def __init__(self, folder: Path, rounds: Iterable[RoundLine] = ()) -> None:
        """Begin with what is in `folder`, and with what the lines of a run's rounds.jsonl say. UserError where the file
        is damaged."""
        self.file = folder / HEADS_FILE
        self._heads: dict[str, Head] = {}
        self._read_as: tuple[int, int] | None = None
        self._read()
        for line in rounds:
            self._grow({entry.bank: entry.ledger for entry in line.banks if entry.ledger})

    def heads(self, banks: Iterable[str]) -> dict[str, Head]:
        """Bank -> newest head that any run has seen, of those banks that have shown one."""
        self._read()
        return {bank: self._heads[bank] for bank in banks if bank in self._heads}

    def check(self, bank: str, head: Head, sent: Head | None) -> None:
        """RejectedReply unless the ledger has grown since the head that the request brought (`sent`). Of two runs at
        once, the later line may arrive first; the same line never arrives twice.
        """
        newest = self._heads.get(bank)
        if (sent is None or head.number > sent.number) and (newest is None or head.number != newest.number):
            return
        known = max(each.number for each in (sent, newest) if each is not None)
        raise RejectedReply(
            "ledger",
            f"The bank's privacy ledger has {head.number} lines and had {known} before: lines were lost or taken back. "
            "The bank must book what is "
            f"missing, or its budget as spent (docs/privacy.md); then take its entry out of {self.file}.",
        )

    def keep(self, bank: str, head: Head) -> None:
        """Write a checked head down, before its reply is used. UserError where the disk does not take it."""
        with _locked(self.file):
            self._grow({bank: head})
            self._read()
            heads = {name: asdict(found) for name, found in sorted(self._heads.items())}
            write_bytes(self.file, (json.dumps(heads, allow_nan=False) + "\n").encode())
            self._read_as = _state_of(self.file)

    def _read(self) -> None:
        """Take over what other runs have written since."""
        state = _state_of(self.file)
        if state is not None and state != self._read_as:
            self._grow(_heads_in(self.file))
            self._read_as = state

    def _grow(self, heads: Mapping[str, Head]) -> None:
        """Take over every head that is newer than the one that is here."""
        for bank, head in heads.items():
            if bank not in self._heads or head.number > self._heads[bank].number:
                self._heads[bank] = head


def _state_of(file: Path) -> tuple[int, int] | None:
    """What changes whenever the file is replaced: (inode, nanoseconds of its last change); None where it is missing."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}). Set {WITNESS_VARIABLE}=FOLDER to keep it elsewhere."
        ) from error
    return found.st_ino, found.st_mtime_ns


def _heads_in(file: Path) -> dict[str, Head]:
    try:
        return {bank: Head(**head) for bank, head in json.loads(file.read_bytes()).items()}
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}). Set {WITNESS_VARIABLE}=FOLDER to keep it elsewhere."
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is damaged: it says how far each bank's privacy ledger had come. Take it away; a run that is "
            "resumed brings back what its "
            "rounds.jsonl says."
        ) from error


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the folder against the other runs of this server."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = wait_for(file.with_suffix(".lock"), f"The witness {file}")
    except OSError as error:
        raise unwritable(file, error) from error
    with lock:
        yield
