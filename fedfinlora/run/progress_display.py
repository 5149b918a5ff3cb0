"""The progress of a run as a person sees it: live on a terminal, one plain line for each event elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from fedfinlora.errors import plural
from fedfinlora.run.folder import ROUND_LABEL
from fedfinlora.run.monitor import line_of
from fedfinlora.run.progress import BankLine, Event, ProgressState, clean, number

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text


def plain_line(event: Event, state: ProgressState) -> str:
    """One line of plain text for one event (after `state` has taken it in), or "" for events not worth a line in a
    log.
    """

    def shown(name: str) -> str:
        return clean(event.get(name, "") if event.get(name) is not None else "")

    match event["event"]:
        case "run_start":
            job = " ".join(filter(None, (state.mode, state.model, state.peft, state.strategy)))
            banks, rounds = plural(int(number(event.get("banks")) or 0), "bank"), plural(state.rounds, "round")
            return f"{job}: {banks}, {rounds}, run folder {state.run_dir}"
        case "phase":
            return shown("name")
        case "trainable":
            names = {
                "parameters": "trainable parameters",
                "rows": "train rows",
                "answer_tokens": "answer tokens that carry loss",
            }
            return ", ".join(f"{label} {format_count(event[name])}" for name, label in names.items() if name in event)
        case "bank_done":
            bank = state.banks[clean(event.get("bank", "?"))]
            return f"round {shown('round')}/{state.rounds} {shown('bank')}: {_bank_summary(bank)}"
        case "round_done":
            left = state.seconds_left(number(event.get("t")) or 0.0)
            measured = number(event.get("validation")) is not None
            validation = f"{_validation(state)}, " if measured else ""
            return (
                f"round {shown('round')}/{state.rounds} done: train loss {format_loss(state.train_loss)}, "
                f"held-out loss {format_loss(state.holdout_loss)}, "
                f"{validation}{format_seconds(number(event.get('seconds')))}, "
                f"left about {format_seconds(left)}"
            )
        case "load" if "gpu_share" in event:
            return f"round {shown('round')}/{state.rounds} {shown('of')}: {line_of(event)}"
        case "stopped_early":
            return (
                f"stopped early after round {shown('round')}: no better validation score in {shown('validations')} "
                "validations, "
                f"best round {shown('best_round')}"
            )
        case "evaluate" if event.get("rows_done") in (0, None):
            return (
                f"evaluating {shown('label')}: {shown('benchmark')} ({shown('index')} of {shown('of')}), "
                f"{plural(int(number(event.get('rows')) or 0), 'row')}"
            )
        case "evaluate_done":
            mean = _mean(state.scores.get(str(event.get("label", "")), {}))
            return f"evaluated {shown('label')}: mean accuracy {format_percent(mean)}"
        case "step":
            return (
                f"step {shown('step')}/{shown('steps')} {shown('bank')}: loss "
                f"{format_loss(number(event.get('loss')))}, "
                f"{format_count(event.get('tokens_per_s'))} tokens/s"
            )
        case "message":
            return ": ".join(filter(None, (shown("level"), shown("text"))))
        case "run_done":
            return ": ".join(filter(None, (f"run {shown('status')}", shown("reason"))))
    return ""


class PlainProgress:
    """The lines of a log from events as they come: one a step, once."""

    def __init__(self, state: ProgressState | None = None) -> None:
        self.state = state or ProgressState()
        self._evaluated: tuple[object, object] | None = None

    def take(self, event: Event) -> str:
        """Apply one event; its line, or "" for none. A benchmark has one, however often the first of its rows is
        announced.
        """
        self.state.update(event)
        line = plain_line(event, self.state)
        if event["event"] == "evaluate":
            step = (event.get("label"), event.get("benchmark"))
            line, self._evaluated = "" if step == self._evaluated else line, step
        elif event["event"] in ("evaluate_done", "run_start"):
            self._evaluated = None
        return line


class _Listener(NamedTuple):
    on_event: Callable[[Event], None]
    is_shown: bool


_listener: ContextVar[_Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(on_event: Callable[[Event], None], is_shown: bool) -> Iterator[None]:
    """Give the events of the runs that are started inside to a function too, or, where `is_shown` is false, to it
    alone.
    """
    token = _listener.set(_Listener(on_event, is_shown))
    try:
        yield
    finally:
        _listener.reset(token)


def _console() -> Console:
    """A console whose closed pipe (`simulate | head`) ends the command as Ctrl-C does: the run's folder says how it
    ended, and the last line on standard error how to resume it.
    """
    from rich.console import Console

    class Interrupting(Console):
        def on_broken_pipe(self) -> None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is printed from now on goes nowhere
            raise KeyboardInterrupt

    return Interrupting()


class ProgressDisplay:
    """Shows events as they come: live on a terminal, one plain line for each event elsewhere (a log, a pipe).

    with ProgressDisplay() as display:
        for event in follow(run_dir, stop):
            display.handle(event)
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.time) -> None:
        self.state = ProgressState()
        self._plain = PlainProgress(self.state)
        self._console = console if console is not None else _console()
        self._clock = clock
        self._live: Live | None = None
        self._listener = _listener.get()
        self._is_shown = self._listener is None or self._listener.is_shown

    def __enter__(self) -> ProgressDisplay:
        if self._console.is_terminal and not self._console.is_dumb_terminal and self._is_shown:
            from rich.live import Live

            # Drawn twice a second, so that the time left counts down between events at next to no cost in CPU.
            self._live = Live(
                get_renderable=lambda: _draw(self.state, self._clock()),
                console=self._console,
                refresh_per_second=2,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_live()

    def handle(self, event: Event) -> None:
        """Apply one event and show it. After `run_done` the final table stays on the terminal."""
        line = self._plain.take(event)
        if self._listener is not None:
            self._listener.on_event(event)
        if not self._is_shown:
            return
        if event["event"] == "run_done":
            self._stop_live()
            self._print_end(event)
        elif line and (self._live is None or event["event"] in ("message", "stopped_early")):
            self._print(line)

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print_end(self, event: Event) -> None:
        table = _score_table(self.state)
        if table is not None:
            self._console.print(table)
        self._print(plain_line(event, self.state))
        for name, key in (("run folder", "run_dir"), ("report", "report")):
            if event.get(key):
                self._print(f"{name}: {clean(event[key])}")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _draw(state: ProgressState, now: float) -> RenderableType:
    """The live picture: a headline, the rounds bar, the banks, and the evaluation while there is one."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    elapsed = format_seconds(None if state.started_t is None else now - state.started_t)
    bars = Table.grid(padding=(0, 2))
    if state.rounds:
        bars.add_row(
            Text(f"rounds {state.rounds_done}/{state.rounds}"),
            ProgressBar(total=state.rounds, completed=state.rounds_done, width=32),
            Text(
                f"train loss {format_loss(state.train_loss)}   held-out loss {format_loss(state.holdout_loss)}   "
                f"{_validation(state)}"
            ),
        )
    if state.steps:
        bars.add_row(
            Text(f"steps {state.step}/{state.steps}"),
            ProgressBar(total=state.steps, completed=state.step, width=32),
            Text(""),
        )
    if state.evaluation:
        event = state.evaluation
        rows, rows_done = number(event.get("rows")) or 0, number(event.get("rows_done")) or 0
        bars.add_row(
            Text(f"evaluating {clean(event.get('label', ''))}"),
            ProgressBar(total=max(rows, 1), completed=rows_done, width=32),
            Text(
                f"{clean(event.get('benchmark', ''))} ({clean(event.get('index', ''))} of {clean(event.get('of', ''))})"
            ),
        )
    parts: list[RenderableType] = [
        Text.assemble(
            (" ".join(filter(None, (state.mode, state.model, state.peft, state.strategy))), "bold"),
            f"   {state.phase}   elapsed {elapsed}   left about {format_seconds(state.seconds_left(now))}",
        ),
        bars,
    ]
    if state.banks:
        banks = Table.grid(padding=(0, 2))
        for name, bank in state.banks.items():
            banks.add_row(Text(name), _styled(_bank_summary(bank), bank.status))
        parts.append(banks)
    return Group(*parts)


def _validation(state: ProgressState) -> str:
    """The last public validation score and the best round so far; nothing before there is one."""
    return (
        ""
        if state.validation is None
        else f"validation {format_percent(state.validation)} (best: round {state.best_round})"
    )


def _styled(text: str, status: str) -> Text:
    from rich.text import Text

    return Text(text, style={"ok": "green", "training": "dim"}.get(status, "bold red"))


def _bank_summary(bank: BankLine) -> str:
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


def _score_table(state: ProgressState) -> Table | None:
    """Accuracy of the base model next to that of each adapter that was scored, or None without scores."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    labels = [label for label in state.scores if not ROUND_LABEL.fullmatch(label)]
    keys = list(dict.fromkeys(key for label in labels for key in state.scores[label]))
    if not keys:
        return None
    changes = "base" in labels and "final" in labels
    table = Table(box=box.SIMPLE_HEAD, title="accuracy, %", title_justify="left")
    table.add_column("benchmark")
    for heading in [*map(clean, labels), *(["change"] if changes else [])]:
        table.add_column(heading, justify="right")
    rows = [(key, {label: state.scores[label].get(key) for label in labels}) for key in keys]
    common = [key for key, values in rows if all(value is not None for value in values.values())]
    rows.append(
        (
            f"mean of {len(common)}",
            {label: _mean({key: state.scores[label][key] for key in common}) for label in labels},
        )
    )
    for index, (name, values) in enumerate(rows):
        cells = [format_percent(values[label], unit="") for label in labels]
        if changes:
            before, after = values["base"], values["final"]
            cells.append("–" if before is None or after is None else f"{100 * (after - before):+.1f}")
        table.add_row(Text(name), *map(Text, cells), end_section=index == len(rows) - 2)
    return table


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


def format_count(value: object) -> str:
    found = number(value)
    return "–" if found is None else f"{found:,.0f}"


def _mean(scores: Mapping[str, float | None]) -> float | None:
    known = [value for value in scores.values() if value is not None]
    return sum(known) / len(known) if known else None
