"""What a bank has spent on each of its data sets, on its own disk: append-only, chained by hashes, over all runs.

A data set is the bank's rows of one task, known by the hash of their content, so that neither another run, seed or choice of tasks nor a
sample of the rows begins a new account. Each line is one round's steps, written and synced before the round's training begins: what was
never written can therefore never have left. A round that is asked for again is paid for again, for its noise is fresh.

    {"number", "time", "run", "round", "bank", "mechanism", "unit", "sampling_rate", "noise_multiplier", "steps", "delta", "accountant",
     "epsilon", "reproducible_noise", "previous", "hash"}

`hash` is the SHA-256 of the line without it; `previous` is the hash of the line before. The head file holds number and hash of the last line,
so that lines cut off at the end are noticed too. Clock times are for people and decide nothing.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfinlora.errors import UserError
from fedfinlora.privacy.accounting import Steps, accountant_name, epsilon
from fedfinlora.runfolder import write_bytes

BEGINNING = "0" * 64
"""`previous` of the first line."""


class LedgerError(UserError):
    """A ledger that cannot be believed or written: nothing private may leave."""


class BudgetError(UserError):
    """The next round would spend more than the bank allows."""


@dataclass(frozen=True)
class Spending:
    """One round's steps and what they belong to."""

    run: str
    round: int
    bank: str
    mechanism: str
    unit: str
    steps: Steps
    delta: float
    reproducible_noise: bool


def ledger_root() -> Path:
    """Where the ledgers of this machine's banks and server lie, a folder each: $FEDFINLORA_LEDGER, or ~/.fedfinlora/ledger."""
    return Path(os.environ.get("FEDFINLORA_LEDGER") or Path.home() / ".fedfinlora" / "ledger").expanduser()


def fingerprint(rows: Sequence[tuple[str, str]]) -> str:
    """SHA-256 of a data set's (prompt, target) pairs, whatever their order."""
    hashes = sorted(
        hashlib.sha256(f"{len(prompt)}:{prompt}{target}".encode("utf-8", "surrogatepass")).hexdigest()
        for prompt, target in rows
    )
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def spend(folder: Path, data_sets: Mapping[str, str], spending: Spending, budget_epsilon: float = 0.0) -> float:
    """Write one round to the ledgers of all its data sets (fingerprint -> name); returns the largest epsilon spent so far.

    `budget_epsilon` 0 means no limit. Raises BudgetError before anything is written, LedgerError for a ledger that was damaged or edited or
    cannot be written (some of the others may then have the round already: too much is booked, never too little). The files stay locked
    meanwhile: two processes spend one after the other.
    """
    with ExitStack() as stack:
        accounts = [stack.enter_context(_opened(folder, data_set)) for data_set in sorted(data_sets)]
        after = {}
        for account in accounts:
            after[account.data_set] = epsilon([*account.spent, spending.steps], spending.delta)
            if budget_epsilon and after[account.data_set] > budget_epsilon:
                raise BudgetError(
                    f"{spending.bank}: round {spending.round} of {spending.run} would bring epsilon on {data_sets[account.data_set]} to "
                    f"{after[account.data_set]:.3g}, more than privacy.budget_epsilon={budget_epsilon:g} (spent so far: "
                    f"{epsilon(account.spent, spending.delta):.3g}). Nothing was trained."
                )
        for account in accounts:
            account.append(spending, after[account.data_set])
    return max(after.values(), default=0.0)


def read_ledger(folder: Path, data_set: str) -> list[dict[str, Any]]:
    """The lines of one ledger, checked; [] where there is none."""
    if not _files(folder, data_set)[0].exists():
        return []
    with _opened(folder, data_set) as account:
        return account.lines


class _Account:
    """One ledger, held open and locked."""

    def __init__(self, folder: Path, data_set: str, descriptor: int) -> None:
        self.data_set, self.descriptor = data_set, descriptor
        self.file, self.head_file = _files(folder, data_set)
        self.lines = self._checked(os.pread(descriptor, os.fstat(descriptor).st_size, 0))

    @property
    def spent(self) -> list[Steps]:
        """All steps so far."""
        return [Steps(line["sampling_rate"], line["noise_multiplier"], line["steps"]) for line in self.lines]

    def append(self, spending: Spending, epsilon_after: float) -> None:
        """Write one line and make sure that it is on the disk."""
        steps = spending.steps
        line: dict[str, Any] = {
            "number": len(self.lines) + 1,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "run": spending.run,
            "round": spending.round,
            "bank": spending.bank,
            "mechanism": spending.mechanism,
            "unit": spending.unit,
            "sampling_rate": steps.sampling_rate,
            "noise_multiplier": steps.noise_multiplier,
            "steps": steps.count,
            "delta": spending.delta,
            "accountant": accountant_name(),
            "epsilon": epsilon_after,
            "reproducible_noise": spending.reproducible_noise,
            "previous": self.lines[-1]["hash"] if self.lines else BEGINNING,
        }
        line["hash"] = _hash(line)
        content = (json.dumps(line) + "\n").encode()
        try:
            if os.write(self.descriptor, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self.descriptor)
            write_bytes(self.head_file, (json.dumps({"number": line["number"], "hash": line["hash"]}) + "\n").encode())
        except (OSError, UserError) as error:
            raise LedgerError(
                f"{self.file} cannot be written ({error}): nothing private may leave. Free space first."
            ) from error
        self.lines.append(line)

    def _checked(self, content: bytes) -> list[dict[str, Any]]:
        """Every line, its hash and its place; a last line that a crash cut off was never spent and is taken away."""
        whole, newline, torn = content.rpartition(b"\n")
        lines: list[dict[str, Any]] = []
        for number, text in enumerate(whole.split(b"\n") if newline else [], 1):
            try:
                line = json.loads(text)
                sound = line["number"] == number and line["previous"] == (lines[-1]["hash"] if lines else BEGINNING)
                sound = sound and line["hash"] == _hash({key: value for key, value in line.items() if key != "hash"})
                Steps(line["sampling_rate"], line["noise_multiplier"], line["steps"])
            except (ValueError, KeyError, TypeError):
                sound = False
            if not sound:
                raise LedgerError(self._refusal(f"line {number} is damaged or was changed"))
            lines.append(line)
        if self.head_file.exists():
            try:
                head = json.loads(self.head_file.read_bytes())
                number, last = int(head["number"]), str(head["hash"])
            except (ValueError, KeyError, TypeError) as error:
                raise LedgerError(self._refusal(f"{self.head_file.name} is damaged")) from error
            # One line more than the head: a crash came between the two. Fewer, or others: somebody was here.
            if number not in (len(lines), len(lines) - 1) or (number and lines[number - 1]["hash"] != last):
                raise LedgerError(self._refusal(f"it has {len(lines)} lines, {number} were written"))
        elif len(lines) > 1:
            raise LedgerError(self._refusal(f"{self.head_file.name} is missing"))
        if torn:
            os.ftruncate(self.descriptor, len(content) - len(torn))
        return lines

    def _refusal(self, what: str) -> str:
        return (
            f"The privacy ledger {self.file} cannot be believed: {what}. No private training is possible on this data until the bank's privacy "
            "officer has restored it from a backup."
        )


def _files(folder: Path, data_set: str) -> tuple[Path, Path]:
    return folder / f"{data_set}.jsonl", folder / f"{data_set}.head.json"


@contextmanager
def _opened(folder: Path, data_set: str) -> Iterator[_Account]:
    """Open (or begin) one ledger and hold it against all other processes."""
    file = _files(folder, data_set)[0]
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise LedgerError(f"{file} cannot be opened ({error.strerror}): nothing private may leave.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield _Account(folder, data_set, descriptor)
    finally:
        os.close(descriptor)


def _hash(line: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()
