"""What happens during a run: events appended to `<run>/progress.jsonl`, followed, and summed up in a state.

The process that trains appends events (`EventWriter`); the process at the terminal reads them as they come (`follow`)
and shows them (`fedfinlora.run.progress_display`). A file lies between the two because Flower runs the job in a process
of its own.

    {"t": 1732300000.1, "event": "round_done", "round": 1, "train_loss": 1.2, "holdout_loss": 1.5, "seconds": 12.1, ...}
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from fedfinlora.errors import UserError

FILE_NAME = "progress.jsonl"
READ_BYTES = 2**20
"""A long run's file is read in parts: 10,000 rounds of 10 banks have 30 MB of events."""
PACE_ROUNDS = 5
"""Rounds from which the time left is estimated."""

Event = dict[str, Any]


class EventWriter:
    """Appends events to a file, one JSON object a line, each flushed at once. Safe to call from several threads."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"Cannot write {path}: {error.strerror}. Choose another output folder.") from error

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, event: str, **fields: Any) -> None:
        """Append one event. Numbers that JSON lacks (NaN, infinities) become null."""
        with self._lock:
            line = json.dumps(_plain({"t": self._clock(), "event": event, **fields}), allow_nan=False)
            try:
                self._file.write(line + "\n")
                self._file.flush()
            except OSError as error:
                raise UserError(
                    f"Cannot write {self._path}: {error.strerror}. Free some space and resume the run."
                ) from error

    def close(self) -> None:
        self._file.close()


class ShownEvents(EventWriter):
    """Writes events and hands each to `show` as well."""

    def __init__(self, path: Path, show: Callable[[Event], object], clock: Callable[[], float] = time.time) -> None:
        super().__init__(path, clock)
        self._show = show

    def write(self, event: str, **fields: Any) -> None:
        super().write(event, **fields)
        self._show({"t": self._clock(), "event": event, **fields})


def _plain(value: Any) -> Any:
    """Only what JSON knows: NumPy and torch scalars become numbers, anything else strange becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return _plain(value.item()) if hasattr(value, "item") else str(value)


def follow(path: Path, stop: Callable[[], bool], poll_s: float = 0.2, start_byte: int = 0) -> Iterator[Event]:
    """Yield the events of a run folder or progress file as they are appended, until `stop()` is true and all are read.

    The file need not exist yet. A line that is still being written waits for its end; a line that is no event is passed
    over. `start_byte` skips what an earlier attempt of a resumed run has left there. The last look at the file comes
    after `stop()`, so nothing is lost when the writer ends between two looks.
    """
    position, unfinished = start_byte, b""
    while True:
        ending = stop()
        file = path / FILE_NAME if path.is_dir() else path
        if file.is_file():
            with file.open("rb") as opened:
                opened.seek(position)
                while new := opened.read(READ_BYTES):
                    position += len(new)
                    *lines, unfinished = (unfinished + new).split(b"\n")
                    yield from filter(None, map(_parse, lines))
        if ending:
            return
        time.sleep(poll_s)


def _parse(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


@dataclass
class BankLine:
    """What is known of one bank in the current round."""

    status: str = "training"
    reason: str = ""
    rows: int | None = None
    train_loss: float | None = None
    rows_per_s: float | None = None
    tokens_per_s: float | None = None
    seconds: float | None = None
    epsilon_spent: float | None = None
    """Of a private bank, over all runs; it says neither rows nor losses."""
    epsilon_planned: float | None = None


@dataclass
class ProgressState:
    """What the events so far add up to; it draws nothing. Times are Unix seconds as the events give them."""

    run: str = ""
    model: str = ""
    peft: str = ""
    strategy: str = ""
    mode: str = ""
    run_dir: str = ""
    rounds: int = 0
    round: int = 0
    rounds_done: int = 0
    phase: str = "starting"
    started_t: float | None = None
    round_started_t: float | None = None
    round_seconds: list[float] = field(default_factory=list)
    """Of the last PACE_ROUNDS rounds."""
    train_loss: float | None = None
    holdout_loss: float | None = None
    validation: float | None = None
    """The last public validation score."""
    best_round: int | None = None
    stopped_early: bool = False
    banks: dict[str, BankLine] = field(default_factory=dict)
    step: int = 0
    steps: int = 0
    first_step: tuple[int, float] | None = None
    """Step number and time of the first `step` event, from which the pace is taken."""
    evaluation: Event = field(default_factory=dict)
    """The last `evaluate` event of an evaluation that is running, else empty."""
    evaluation_started_t: dict[str, float] = field(default_factory=dict)
    base_evaluation_s: float = 0.0
    final_evaluation_done: bool = False
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Label ("base", "final", …) -> benchmark -> accuracy."""
    done: Event | None = None

    def update(self, event: Event) -> None:
        """Apply one event. Events of unknown names change nothing."""
        change = getattr(self, f"_on_{event['event']}", None)
        if change is not None:
            change(event, number(event.get("t")) or 0.0)

    def seconds_left(self, now: float) -> float | None:
        """Estimated seconds to the end, or None while there is nothing to estimate from.

        Training: the mean of the last five rounds times the rounds to come (centralized: the pace of the steps so far).
        On top, while the final evaluation is ahead, what the base model's took: it has the same rows.
        """
        if self.done is not None:
            return 0.0
        training = self._training_seconds_left(now)
        if training is None:
            return None
        evaluation = 0.0 if self.final_evaluation_done else self.base_evaluation_s
        if "final" in self.evaluation_started_t:
            evaluation -= now - self.evaluation_started_t["final"]
        return max(training, 0.0) + max(evaluation, 0.0)

    def _training_seconds_left(self, now: float) -> float | None:
        if self.stopped_early or (self.rounds and self.rounds_done >= self.rounds):
            return 0.0
        if self.first_step is not None and self.steps and self.step > self.first_step[0]:
            step, since_t = self.first_step
            return (now - since_t) / (self.step - step) * (self.steps - self.step)
        if not self.round_seconds:
            return None
        expected = sum(self.round_seconds) / len(self.round_seconds)
        spent = (
            now - self.round_started_t if self.round_started_t is not None and self.round > self.rounds_done else 0.0
        )
        return max(expected - spent, 0.0) + expected * (self.rounds - self.rounds_done - 1)

    def _on_run_start(self, event: Event, t: float) -> None:
        for name in ("run", "model", "peft", "strategy", "mode", "run_dir"):
            setattr(self, name, clean(event.get(name, "")))
        self.rounds = int(number(event.get("rounds")) or 0)
        self.started_t = t

    def _on_phase(self, event: Event, t: float) -> None:
        self.phase = clean(event.get("name", ""))
        self.evaluation = {}

    def _on_round_start(self, event: Event, t: float) -> None:
        self.round = int(number(event.get("round")) or 0)
        # A resumed run starts in the middle: the rounds before this one are done.
        self.rounds_done = max(self.rounds_done, self.round - 1)
        self.round_started_t = t
        self.banks = {name: BankLine() for name in self.banks}

    def _on_banks_drawn(self, event: Event, t: float) -> None:
        self.banks = {clean(name): BankLine() for name in event.get("banks") or ()}

    def _on_bank_done(self, event: Event, t: float) -> None:
        self.banks[clean(event.get("bank", "?"))] = BankLine(
            status=clean(event.get("status", "")),
            reason=clean(event.get("reason") or ""),
            rows=None if (rows := number(event.get("rows"))) is None else int(rows),
            train_loss=number(event.get("train_loss")),
            rows_per_s=number(event.get("rows_per_s")),
            tokens_per_s=number(event.get("tokens_per_s")),
            seconds=number(event.get("seconds")),
            epsilon_spent=number(event.get("epsilon_spent")),
            epsilon_planned=number(event.get("epsilon_planned")),
        )

    def _on_round_done(self, event: Event, t: float) -> None:
        self.rounds_done = int(number(event.get("round")) or 0)
        self.train_loss = number(event.get("train_loss"))
        self.holdout_loss = number(event.get("holdout_loss"))
        seconds = number(event.get("seconds"))
        if seconds is not None:
            self.round_seconds = [*self.round_seconds, seconds][-PACE_ROUNDS:]
        validation, best_round = number(event.get("validation")), number(event.get("best_round"))
        if validation is not None:
            self.validation = validation
        if best_round is not None:
            self.best_round = int(best_round)

    def _on_stopped_early(self, event: Event, t: float) -> None:
        self.stopped_early = True

    def _on_step(self, event: Event, t: float) -> None:
        self.step, self.steps = int(number(event.get("step")) or 0), int(number(event.get("steps")) or 0)
        bank = self.banks.setdefault(clean(event.get("bank", "pooled")), BankLine())
        bank.train_loss, bank.tokens_per_s = number(event.get("loss")), number(event.get("tokens_per_s"))
        if self.first_step is None or self.step < self.first_step[0]:
            self.first_step = (self.step, t)

    def _on_evaluate(self, event: Event, t: float) -> None:
        self.evaluation = event
        self.evaluation_started_t.setdefault(str(event.get("label", "")), t)

    def _on_evaluate_done(self, event: Event, t: float) -> None:
        label = str(event.get("label", ""))
        self.evaluation = {}
        self.scores[label] = {clean(key): number(value) for key, value in (event.get("scores") or {}).items()}
        if label == "base":
            self.base_evaluation_s = t - self.evaluation_started_t.get(label, t)
        self.final_evaluation_done = self.final_evaluation_done or label == "final"

    def _on_run_done(self, event: Event, t: float) -> None:
        self.done = event


def clean(value: object) -> str:
    """The text of an untrusted value without line breaks and control characters, which could redraw a terminal."""
    return "".join(character if character.isprintable() else " " for character in str(value))


def number(value: object) -> float | None:
    """A finite number, or None for anything else that an event may hold."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None
