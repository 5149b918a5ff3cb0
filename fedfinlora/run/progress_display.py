"""The progress of a run as a person sees it: live on a terminal, one plain line for each event elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from fedfinlora.run import events
from fedfinlora.run.events import Event
from fedfinlora.run.folder import ROUND_LABEL
from fedfinlora.run.progress import ProgressState, clean
from fedfinlora.run.progress_lines import (
    PlainProgress,
    bank_summary,
    format_loss,
    format_percent,
    format_seconds,
    job,
    mean_score,
    plain_line,
    validation_words,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text


class _Listener(NamedTuple):
    on_event: Callable[[Event], None]
    is_shown: bool


_listener: ContextVar[_Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(on_event: Callable[[Event], None], is_shown: bool) -> Iterator[None]:
    """Give the events of the runs started inside to a function; where `is_shown` is false, to it alone."""
    token = _listener.set(_Listener(on_event, is_shown))
    try:
        yield
    finally:
        _listener.reset(token)


def _console() -> Console:
    """A console whose closed pipe (`simulate | head`) ends the command as Ctrl-C does."""
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

    def __exit__(self, *error: object) -> None:
        self._stop_live()

    def handle(self, event: Event) -> None:
        """Apply one event and show it. After `run_done` the final table stays on the terminal."""
        line = self._plain.take(event)
        if self._listener is not None:
            self._listener.on_event(event)
        if not self._is_shown:
            return
        if isinstance(event, events.RunDone):
            self._stop_live()
            self._print_end(event)
        elif line and (self._live is None or isinstance(event, events.Message | events.StoppedEarly)):
            self._print(line)

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print_end(self, event: events.RunDone) -> None:
        table = _score_table(self.state)
        if table is not None:
            self._console.print(table)
        self._print(plain_line(event, self.state))
        for name, path in (("run folder", event.run_dir), ("report", event.report)):
            if path:
                self._print(f"{name}: {clean(path)}")

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
                f"{validation_words(state)}"
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
        bars.add_row(
            Text(clean(f"evaluating {event.label}")),
            ProgressBar(total=max(event.rows, 1), completed=event.rows_done, width=32),
            Text(clean(f"{event.benchmark} ({event.index} of {event.of})")),
        )
    parts: list[RenderableType] = [
        Text.assemble(
            (job(state), "bold"),
            f"   {state.phase}   elapsed {elapsed}   left about {format_seconds(state.seconds_left(now))}",
        ),
        bars,
    ]
    if state.banks:
        banks = Table.grid(padding=(0, 2))
        for name, bank in state.banks.items():
            banks.add_row(Text(name), _styled(bank_summary(bank), bank.status))
        parts.append(banks)
    return Group(*parts)


def _styled(text: str, status: str) -> Text:
    from rich.text import Text

    return Text(text, style={"ok": "green", "training": "dim"}.get(status, "bold red"))


def _score_table(state: ProgressState) -> Table | None:
    """Accuracy of the base model next to that of each scored adapter."""
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
            {label: mean_score({key: state.scores[label][key] for key in common}) for label in labels},
        )
    )
    for index, (name, values) in enumerate(rows):
        cells = [format_percent(values[label], unit="") for label in labels]
        if changes:
            before, after = values["base"], values["final"]
            cells.append("–" if before is None or after is None else f"{100 * (after - before):+.1f}")
        table.add_row(Text(name), *map(Text, cells), end_section=index == len(rows) - 2)
    return table
