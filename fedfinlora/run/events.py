"""The events of a run: one frozen dataclass for each kind of line of progress.jsonl.

    {"t": 1732300000.1, "event": "round_done", "round": 1, "train_loss": 1.2, "holdout_loss": 1.5, "seconds": 12.1, ...}

The order of the fields is the order of the keys, after `t` and `event`. docs/run-folder.md is made from this file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from fedfinlora.run.records import BankEntry, BankTimings
from fedfinlora.run.typed import from_json, omitted, to_json

SHORTEST_S = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all events have."""

    event: ClassVar[str] = ""
    """The kind."""
    t: float = 0.0
    """When it was written, Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart(Event):
    """A run begins, or is resumed."""

    event: ClassVar[str] = "run_start"
    run: str = ""
    model: str = ""
    peft: str = ""
    strategy: str = ""
    rounds: int = 0
    banks: int = 0
    bank_names: tuple[str, ...] = omitted(())
    """Sorted, of a federated run."""
    run_dir: str = ""
    mode: str = ""
    """federated, centralized, local or evaluate."""
    process: int = 0
    """Number of the process that trains."""
    resumed_after_round: int | None = None
    """None: from the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase(Event):
    """A part of the run begins."""

    event: ClassVar[str] = "phase"
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable(Event):
    """The model is loaded, and in a baseline the rows too."""

    event: ClassVar[str] = "trainable"
    parameters: int | None = omitted()
    """Trainable ones."""
    load_s: float | None = omitted()
    rows: int | None = omitted()
    skipped_rows: int | None = omitted()
    steps: int | None = omitted()
    """Optimiser steps of the whole run."""
    answer_tokens: int | None = omitted()
    """Tokens that carry loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStart(Event):
    """A round begins."""

    event: ClassVar[str] = "round_start"
    round: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BanksDrawn(Event):
    """The banks of a round are sampled."""

    event: ClassVar[str] = "banks_drawn"
    round: int = 0
    banks: tuple[str, ...] = ()


FIGURES, PRIVATE = (
    ("rows", "train_loss", "seconds", "rows_per_s", "tokens_per_s"),
    ("epsilon_planned", "epsilon_spent", "delta"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BankDone(Event):
    """What became of the request to one bank. A private bank has the keys of its ledger in place of rows, loss and
    speed.
    """

    event: ClassVar[str] = "bank_done"
    round: int = 0
    bank: str = "?"
    status: str = ""
    """As in `BankEntry`; code and reason too."""
    code: str = ""
    reason: str = ""
    rows: int | None = None
    train_loss: float | None = None
    seconds: float | None = None
    rows_per_s: float | None = None
    tokens_per_s: float | None = None
    epsilon_planned: float | None = None
    """For this run."""
    epsilon_spent: float | None = None
    """Over all runs."""
    delta: float | None = None
    ledger_number: int | None = omitted()
    """Lines in the bank's privacy ledger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundDone(Event):
    """A round is closed."""

    event: ClassVar[str] = "round_done"
    round: int = 0
    train_loss: float | None = None
    holdout_loss: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float | None = None
    """Without scoring."""
    validation: float | None = None
    """The public validation score of this round."""
    best_round: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load(Event):
    """What the machine did since the last such event (`fedfinlora.run.monitor`). What is not measured has no key."""

    event: ClassVar[str] = "load"
    round: int = 0
    of: str = ""
    """round or evaluation."""
    cpu_share: float | None = omitted()
    rss_gib: float | None = omitted()
    """Of the process that writes; the other figures are the whole machine's."""
    memory_gib: float | None = omitted()
    gpu_share: float | None = omitted()
    gpu_memory_gib: float | None = omitted()
    gpu_watts: float | None = omitted()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppedEarly(Event):
    """The validation score got no better."""

    event: ClassVar[str] = "stopped_early"
    round: int = 0
    validations: int = 0
    """Without a better score."""
    best_round: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate(Event):
    """How far the evaluation of one benchmark is."""

    event: ClassVar[str] = "evaluate"
    label: str = ""
    benchmark: str = ""
    rows_done: int = 0
    rows: int = 0
    index: int = 0
    """Of the benchmark, from 1."""
    of: int = 0
    """Benchmarks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateDone(Event):
    """An evaluation is over."""

    event: ClassVar[str] = "evaluate_done"
    label: str = ""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """Benchmark -> accuracy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Event):
    """An optimiser step of a baseline."""

    event: ClassVar[str] = "step"
    bank: str = "pooled"
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message(Event):
    """A line for people."""

    event: ClassVar[str] = "message"
    level: str = ""
    """info or warning."""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDone(Event):
    """The run has ended."""

    event: ClassVar[str] = "run_done"
    status: str = ""
    """completed, failed or stopped."""
    reason: str = ""
    run_dir: str = ""
    report: str = ""
    """Path; "" where there is none."""


KINDS: tuple[type[Event], ...] = (
    RunStart, Phase, Trainable, RoundStart, BanksDrawn, BankDone, RoundDone, Load, StoppedEarly, Evaluate,
    EvaluateDone, Step, Message, RunDone,
)  # fmt: skip
_BY_NAME = {kind.event: kind for kind in KINDS}


def a_second(count: float, seconds: float) -> float:
    """So many a second; 0 for a time too short to measure."""
    return count / seconds if seconds >= SHORTEST_S else 0.0


def bank_done(round_number: int, entry: BankEntry, timing: BankTimings) -> BankDone:
    """The event of a bank's part in a round."""
    done = BankDone(
        round=round_number,
        bank=entry.bank,
        status=entry.status,
        code=entry.code,
        reason=entry.reason,
        ledger_number=entry.ledger.number if entry.ledger else None,
    )
    if entry.privacy:
        return replace(done, **asdict(entry.privacy))
    seconds = timing.train_s or 0.0
    return replace(
        done,
        rows=entry.rows,
        train_loss=entry.train_loss,
        seconds=seconds,
        rows_per_s=a_second(entry.rows, seconds),
        tokens_per_s=timing.tokens_per_s or 0.0,
    )


def event_json(event: Event) -> dict[str, Any]:
    """The JSON object of an event. Numbers that JSON lacks (NaN, infinities) become null."""
    values = to_json(event)
    if isinstance(event, BankDone):
        for name in FIGURES if event.rows is None else PRIVATE:
            del values[name]
    return {"t": _plain(values.pop("t")), "event": event.event} | {key: _plain(value) for key, value in values.items()}


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


def read_event(values: Any) -> Event | None:
    """An event from its JSON object; None for what is none, or of an unknown kind. A value of another type than its
    field's is left aside.
    """
    kind = _BY_NAME.get(str(values.get("event"))) if isinstance(values, Mapping) else None
    return from_json(kind, values, "", []) if kind else None
