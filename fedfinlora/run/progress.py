"""Events appended to `<run>/progress.jsonl` (`fedfinlora.run.events`), followed, and summed up in a state.

The process that trains appends (`EventWriter`); the one at the terminal reads (`follow`) and shows them
(`fedfinlora.run.progress_display`): Flower runs the job in a process of its own.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedfinlora.errors import UserError
from fedfinlora.run import events
from fedfinlora.run.events import BankDone, Evaluate, Event, RunDone, event_json, read_event

FILE_NAME = "progress.jsonl"
READ_BYTES = 2**20
"""A long run's file is read in parts: 10,000 rounds of 10 banks have 30 MB of events."""
PACE_ROUNDS = 5
"""Rounds from which the time left is estimated."""
TRAINING = BankDone(status="training")


class EventWriter:
    """Appends events to a file, each flushed at once. Safe to call from several threads."""

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

    def __exit__(self, *error: object) -> None:
        self.close()

    def write(self, event: Event) -> None:
        """Append one event, with the time of now."""
        with self._lock:
            self._append({**event_json(event), "t": self._clock()})

    def _append(self, values: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(values, allow_nan=False) + "\n")
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

    def _append(self, values: dict[str, Any]) -> None:
        super()._append(values)
        if event := read_event(values):
            self._show(event)


def follow(path: Path, stop: Callable[[], bool], poll_s: float = 0.2, start_byte: int = 0) -> Iterator[Event]:
    """Yield the events of a run folder or progress file as they are appended, until `stop()` is true and all are read.

    The file need not exist yet. A line that is still being written waits for its end; one that is no event is passed
    over. `start_byte` skips an earlier attempt.
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
        return read_event(json.loads(line))
    except (ValueError, RecursionError):
        return None


@dataclass
class ProgressState:
    """What the events so far add up to. Times are Unix seconds."""

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
    banks: dict[str, BankDone] = field(default_factory=dict)
    """What is known of each bank in the current round; status "training" until its reply has come."""
    step: int = 0
    steps: int = 0
    first_step: tuple[int, float] | None = None
    """Step number and time of the first `step` event, from which the pace is taken."""
    evaluation: Evaluate | None = None
    """The last event of an evaluation that is running."""
    evaluation_started_t: dict[str, float] = field(default_factory=dict)
    base_evaluation_s: float = 0.0
    final_evaluation_done: bool = False
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Label ("base", "final", …) -> benchmark -> accuracy."""
    done: RunDone | None = None

    def update(self, event: Event) -> None:
        change = getattr(self, f"_on_{event.event}", None)
        if change is not None:
            change(event)

    def seconds_left(self, now: float) -> float | None:
        """Estimated seconds to the end, or None while there is nothing to estimate from.

        Training: the mean of the last rounds times the rounds to come (centralized: the pace of the steps so far). On
        top, while the final evaluation is ahead, what the base model's took.
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

    def _on_run_start(self, event: events.RunStart) -> None:
        for name in ("run", "model", "peft", "strategy", "mode", "run_dir"):
            setattr(self, name, clean(getattr(event, name)))
        self.rounds = event.rounds
        self.started_t = event.t

    def _on_phase(self, event: events.Phase) -> None:
        self.phase = clean(event.name)
        self.evaluation = None

    def _on_round_start(self, event: events.RoundStart) -> None:
        self.round = event.round
        # A resumed run starts in the middle: the rounds before this one are done.
        self.rounds_done = max(self.rounds_done, self.round - 1)
        self.round_started_t = event.t
        self.banks = dict.fromkeys(self.banks, TRAINING)

    def _on_banks_drawn(self, event: events.BanksDrawn) -> None:
        self.banks = dict.fromkeys(map(clean, event.banks), TRAINING)

    def _on_bank_done(self, event: BankDone) -> None:
        self.banks[clean(event.bank)] = replace(event, status=clean(event.status), reason=clean(event.reason))

    def _on_round_done(self, event: events.RoundDone) -> None:
        self.rounds_done = event.round
        self.train_loss, self.holdout_loss = event.train_loss, event.holdout_loss
        if event.seconds is not None:
            self.round_seconds = [*self.round_seconds, event.seconds][-PACE_ROUNDS:]
        if event.validation is not None:
            self.validation = event.validation
        if event.best_round is not None:
            self.best_round = event.best_round

    def _on_stopped_early(self, event: events.StoppedEarly) -> None:
        self.stopped_early = True

    def _on_step(self, event: events.Step) -> None:
        self.step, self.steps = event.step, event.steps
        name = clean(event.bank)
        known = self.banks.get(name, TRAINING)
        self.banks[name] = replace(known, train_loss=event.loss, tokens_per_s=event.tokens_per_s)
        if self.first_step is None or self.step < self.first_step[0]:
            self.first_step = (self.step, event.t)

    def _on_evaluate(self, event: Evaluate) -> None:
        self.evaluation = event
        self.evaluation_started_t.setdefault(event.label, event.t)

    def _on_evaluate_done(self, event: events.EvaluateDone) -> None:
        self.evaluation = None
        self.scores[event.label] = {clean(key): value for key, value in event.scores.items()}
        if event.label == "base":
            self.base_evaluation_s = event.t - self.evaluation_started_t.get(event.label, event.t)
        self.final_evaluation_done = self.final_evaluation_done or event.label == "final"

    def _on_run_done(self, event: RunDone) -> None:
        self.done = event


def clean(text: str) -> str:
    """An untrusted text without line breaks and control characters, which could redraw a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
