"""The events of a run as plain lines for a log, and numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedfinlora.errors import plural
from fedfinlora.run import events
from fedfinlora.run.events import Event
from fedfinlora.run.monitor import line_of
from fedfinlora.run.progress import ProgressState, clean

if TYPE_CHECKING:
    pass


def plain_line(event: Event, state: ProgressState) -> str:
    """One line of plain text for an event that `state` has taken in, or "" for events not worth a line."""
    return clean(_line(event, state))


def _line(event: Event, state: ProgressState) -> str:
    match event:
        case events.RunStart():
            rounds = plural(state.rounds, "round")
            return f"{job(state)}: {plural(event.banks, 'bank')}, {rounds}, run folder {state.run_dir}"
        case events.Phase():
            return event.name
        case events.Trainable():
            counts = {
                "trainable parameters": event.parameters,
                "train rows": event.rows,
                "answer tokens that carry loss": event.answer_tokens,
            }
            return ", ".join(f"{label} {format_count(count)}" for label, count in counts.items() if count is not None)
        case events.BankDone():
            summary = bank_summary(state.banks[clean(event.bank)])
            return f"round {event.round}/{state.rounds} {event.bank}: {summary}"
        case events.RoundDone():
            validation = f"{validation_words(state)}, " if event.validation is not None else ""
            return (
                f"round {event.round}/{state.rounds} done: train loss {format_loss(state.train_loss)}, "
                f"held-out loss {format_loss(state.holdout_loss)}, {validation}{format_seconds(event.seconds)}, "
                f"left about {format_seconds(state.seconds_left(event.t))}"
            )
        case events.Load() if event.gpu_share is not None:
            return f"round {event.round}/{state.rounds} {event.of}: {line_of(event)}"
        case events.StoppedEarly():
            return (
                f"stopped early after round {event.round}: no better validation score in {event.validations} "
                f"validations, best round {event.best_round}"
            )
        case events.Evaluate() if event.rows_done == 0:
            rows = plural(event.rows, "row")
            return f"evaluating {event.label}: {event.benchmark} ({event.index} of {event.of}), {rows}"
        case events.EvaluateDone():
            mean = mean_score(state.scores.get(event.label, {}))
            return f"evaluated {event.label}: mean accuracy {format_percent(mean)}"
        case events.Step():
            speed = f"{format_count(event.tokens_per_s)} tokens/s"
            return f"step {event.step}/{event.steps} {event.bank}: loss {format_loss(event.loss)}, {speed}"
        case events.Message():
            return ": ".join(filter(None, (event.level, event.text)))
        case events.RunDone():
            return ": ".join(filter(None, (f"run {event.status}", event.reason)))
    return ""


class PlainProgress:
    """The lines of a log from events as they come: one a step, once."""

    def __init__(self, state: ProgressState | None = None) -> None:
        self.state = state or ProgressState()
        self._evaluated: tuple[object, object] | None = None

    def take(self, event: Event) -> str:
        """Apply one event; its line, or "" for none."""
        self.state.update(event)
        line = plain_line(event, self.state)
        if isinstance(event, events.Evaluate):
            step = (event.label, event.benchmark)
            line, self._evaluated = "" if step == self._evaluated else line, step
        elif isinstance(event, events.EvaluateDone | events.RunStart):
            self._evaluated = None
        return line


def job(state: ProgressState) -> str:
    return " ".join(filter(None, (state.mode, state.model, state.peft, state.strategy)))


def validation_words(state: ProgressState) -> str:
    """The last public validation score and the best round so far."""
    return (
        ""
        if state.validation is None
        else f"validation {format_percent(state.validation)} (best: round {state.best_round})"
    )


def bank_summary(bank: events.BankDone) -> str:
    if bank.status not in ("ok", "training"):
        return ": ".join(filter(None, (bank.status, bank.reason)))
    known = [
        "" if bank.rows is None else plural(bank.rows, "row"),
        "" if bank.train_loss is None else f"loss {format_loss(bank.train_loss)}",
        "" if bank.rows_per_s is None else f"{bank.rows_per_s:.1f} rows/s",
        "" if bank.tokens_per_s is None else f"{format_count(bank.tokens_per_s)} tokens/s",
        "" if bank.seconds is None else format_seconds(bank.seconds),
        "" if bank.epsilon_spent is None else f"epsilon spent {bank.epsilon_spent:.3g}",
        "" if bank.epsilon_planned is None else f"planned for this run {bank.epsilon_planned:.3g}",
    ]
    return ", ".join(filter(None, [bank.status, *known]))


def format_seconds(seconds: float | None) -> str:
    """12 s, 3:05 min, 1:02 h; a dash for None."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def format_loss(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.3f}"


def format_percent(fraction: float | None, unit: str = " %") -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}{unit}"


def format_count(count: float | None) -> str:
    return "–" if count is None else f"{count:,.0f}"


def mean_score(scores: Mapping[str, float | None]) -> float | None:
    known = [value for value in scores.values() if value is not None]
    return sum(known) / len(known) if known else None
