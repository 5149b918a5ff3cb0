"""What a person sees while a run goes on: events appended to `<run>/progress.jsonl`, followed, and shown.

The process that trains appends events (`EventWriter`); the process at the terminal reads them as they come (`follow`) and
shows them (`ProgressDisplay`). A file lies between the two because Flower runs the job in a process of its own.

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
from typing import TYPE_CHECKING, Any

from fedfinlora.errors import UserError
from fedfinlora.runfolder import ROUND_LABEL

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

FILE_NAME = "progress.jsonl"

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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def write(self, event: str, **fields: Any) -> None:
        """Append one event. Numbers that JSON lacks (NaN, infinities) become null."""
        with self._lock:
            line = json.dumps(_plain({"t": self._clock(), "event": event, **fields}), allow_nan=False)
            try:
                self._file.write(line + "\n")
                self._file.flush()
            except OSError as error:
                raise UserError(f"Cannot write {self._path}: {error.strerror}. Free some space and resume the run.") from error

    def close(self) -> None:
        self._file.close()


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

    The file need not exist yet. A line that is still being written waits for its end; a line that is no event is passed over.
    `start_byte` skips what an earlier attempt of a resumed run has left there. The last look at the file comes after
    `stop()`, so nothing is lost when the writer ends between two looks.
    """
    position, unfinished = start_byte, b""
    while True:
        ending = stop()
        file = path / FILE_NAME if path.is_dir() else path
        if file.is_file():
            with file.open("rb") as opened:
                opened.seek(position)
                new = opened.read()
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
    """The last `evaluate` event of an evaluation that is going on, else empty."""
    evaluation_started_t: dict[str, float] = field(default_factory=dict)
    base_evaluation_s: float = 0.0
    final_evaluation_done: bool = False
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Label ("base", "final", …) -> benchmark -> accuracy."""
    done: Event | None = None

    def update(self, event: Event) -> None:
        """Take in one event. Events of unknown names change nothing."""
        change = getattr(self, f"_on_{event['event']}", None)
        if change is not None:
            change(event, _number(event.get("t")) or 0.0)

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
        recent = self.round_seconds[-5:]
        expected = sum(recent) / len(recent)
        spent = now - self.round_started_t if self.round_started_t is not None and self.round > self.rounds_done else 0.0
        return max(expected - spent, 0.0) + expected * (self.rounds - self.rounds_done - 1)

    def _on_run_start(self, event: Event, t: float) -> None:
        for name in ("run", "model", "peft", "strategy", "mode", "run_dir"):
            setattr(self, name, clean(event.get(name, "")))
        self.rounds = int(_number(event.get("rounds")) or 0)
        self.started_t = t

    def _on_phase(self, event: Event, t: float) -> None:
        self.phase = clean(event.get("name", ""))
        self.evaluation = {}

    def _on_round_start(self, event: Event, t: float) -> None:
        self.round = int(_number(event.get("round")) or 0)
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
            rows=None if (rows := _number(event.get("rows"))) is None else int(rows),
            train_loss=_number(event.get("train_loss")),
            rows_per_s=_number(event.get("rows_per_s")),
            tokens_per_s=_number(event.get("tokens_per_s")),
            seconds=_number(event.get("seconds")),
            epsilon_spent=_number(event.get("epsilon_spent")),
            epsilon_planned=_number(event.get("epsilon_planned")),
        )

    def _on_round_done(self, event: Event, t: float) -> None:
        self.rounds_done = int(_number(event.get("round")) or 0)
        self.train_loss = _number(event.get("train_loss"))
        self.holdout_loss = _number(event.get("holdout_loss"))
        seconds = _number(event.get("seconds"))
        if seconds is not None:
            self.round_seconds.append(seconds)
        validation, best_round = _number(event.get("validation")), _number(event.get("best_round"))
        if validation is not None:
            self.validation = validation
        if best_round is not None:
            self.best_round = int(best_round)

    def _on_stopped_early(self, event: Event, t: float) -> None:
        self.stopped_early = True

    def _on_step(self, event: Event, t: float) -> None:
        self.step, self.steps = int(_number(event.get("step")) or 0), int(_number(event.get("steps")) or 0)
        bank = self.banks.setdefault(clean(event.get("bank", "pooled")), BankLine())
        bank.train_loss, bank.tokens_per_s = _number(event.get("loss")), _number(event.get("tokens_per_s"))
        if self.first_step is None or self.step < self.first_step[0]:
            self.first_step = (self.step, t)

    def _on_evaluate(self, event: Event, t: float) -> None:
        self.evaluation = event
        self.evaluation_started_t.setdefault(str(event.get("label", "")), t)

    def _on_evaluate_done(self, event: Event, t: float) -> None:
        label = str(event.get("label", ""))
        self.evaluation = {}
        self.scores[label] = {clean(key): _number(value) for key, value in (event.get("scores") or {}).items()}
        if label == "base":
            self.base_evaluation_s = t - self.evaluation_started_t.get(label, t)
        self.final_evaluation_done = self.final_evaluation_done or label == "final"

    def _on_run_done(self, event: Event, t: float) -> None:
        self.done = event


def plain_line(event: Event, state: ProgressState) -> str:
    """One line of plain text for one event (after `state` has taken it in), or "" for events not worth a line in a log."""

    def shown(name: str) -> str:
        return clean(event.get(name, "") if event.get(name) is not None else "")

    match event["event"]:
        case "run_start":
            job = " ".join(filter(None, (state.mode, state.model, state.peft, state.strategy)))
            return f"{job}: {shown('banks')} banks, {state.rounds} rounds, run folder {state.run_dir}"
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
            left = state.seconds_left(_number(event.get("t")) or 0.0)
            measured = _number(event.get("validation")) is not None
            validation = f"{_validation(state)}, " if measured else ""
            return (
                f"round {shown('round')}/{state.rounds} done: train loss {format_loss(state.train_loss)}, "
                f"held-out loss {format_loss(state.holdout_loss)}, {validation}{format_seconds(_number(event.get('seconds')))}, "
                f"left about {format_seconds(left)}"
            )
        case "stopped_early":
            return (
                f"stopped early after round {shown('round')}: no better validation score in {shown('validations')} validations, "
                f"best round {shown('best_round')}"
            )
        case "evaluate" if event.get("rows_done") in (0, None):
            return (
                f"evaluating {shown('label')}: {shown('benchmark')} ({shown('index')} of {shown('of')}), {shown('rows')} rows"
            )
        case "evaluate_done":
            mean = _mean(state.scores.get(str(event.get("label", "")), {}))
            return f"evaluated {shown('label')}: mean accuracy {format_percent(mean)}"
        case "step":
            return (
                f"step {shown('step')}/{shown('steps')} {shown('bank')}: loss {format_loss(_number(event.get('loss')))}, "
                f"{format_count(event.get('tokens_per_s'))} tokens/s"
            )
        case "message":
            return ": ".join(filter(None, (shown("level"), shown("text"))))
        case "run_done":
            return ": ".join(filter(None, (f"run {shown('status')}", shown("reason"))))
    return ""


class ProgressDisplay:
    """Shows events as they come: live on a terminal, one plain line for each event elsewhere (a log, a pipe).

    with ProgressDisplay() as display:
        for event in follow(run_dir, stop):
            display.handle(event)
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.time) -> None:
        from rich.console import Console

        self.state = ProgressState()
        self._console = console if console is not None else Console()
        self._clock = clock
        self._live: Live | None = None

    def __enter__(self) -> ProgressDisplay:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop_live()

    def handle(self, event: Event) -> None:
        """Take in one event and show it. After `run_done` the final table stands on the terminal."""
        self.state.update(event)
        if event["event"] == "run_done":
            self._stop_live()
            self._print_end(event)
        elif self._live is None:
            if line := plain_line(event, self.state):
                self._print(line)
        elif event["event"] in ("message", "stopped_early"):
            self._print(plain_line(event, self.state))

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
                f"train loss {format_loss(state.train_loss)}   held-out loss {format_loss(state.holdout_loss)}   {_validation(state)}"
            ),
        )
    if state.steps:
        bars.add_row(
            Text(f"steps {state.step}/{state.steps}"), ProgressBar(total=state.steps, completed=state.step, width=32), Text("")
        )
    if state.evaluation:
        event = state.evaluation
        rows, rows_done = _number(event.get("rows")) or 0, _number(event.get("rows_done")) or 0
        bars.add_row(
            Text(f"evaluating {clean(event.get('label', ''))}"),
            ProgressBar(total=max(rows, 1), completed=rows_done, width=32),
            Text(f"{clean(event.get('benchmark', ''))} ({clean(event.get('index', ''))} of {clean(event.get('of', ''))})"),
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
    return "" if state.validation is None else f"validation {format_percent(state.validation)} (best: round {state.best_round})"


def _styled(text: str, status: str) -> Text:
    from rich.text import Text

    return Text(text, style={"ok": "green", "training": "dim"}.get(status, "bold red"))


def _bank_summary(bank: BankLine) -> str:
    if bank.status not in ("ok", "training"):
        return ": ".join(filter(None, (bank.status, bank.reason)))
    known = [
        "" if bank.rows is None else f"{bank.rows} rows",
        "" if bank.train_loss is None else f"loss {format_loss(bank.train_loss)}",
        "" if bank.rows_per_s is None else f"{bank.rows_per_s:.1f} rows/s",
        "" if bank.tokens_per_s is None else f"{format_count(bank.tokens_per_s)} tokens/s",
        "" if bank.seconds is None else format_seconds(bank.seconds),
        "" if bank.epsilon_spent is None else f"epsilon spent {bank.epsilon_spent:.3g}",
        "" if bank.epsilon_planned is None else f"planned for this run {bank.epsilon_planned:.3g}",
    ]
    return ", ".join(filter(None, [bank.status, *known]))


def _score_table(state: ProgressState) -> Table | None:
    """Accuracy of the base model beside that of each adapter that was scored, or None without scores."""
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
        (f"mean of {len(common)}", {label: _mean({key: state.scores[label][key] for key in common}) for label in labels})
    )
    for index, (name, values) in enumerate(rows):
        cells = [format_percent(values[label], unit="") for label in labels]
        if changes:
            before, after = values["base"], values["final"]
            cells.append("–" if before is None or after is None else f"{100 * (after - before):+.1f}")
        table.add_row(Text(name), *map(Text, cells), end_section=index == len(rows) - 2)
    return table


def clean(value: object) -> str:
    """The text of an untrusted value without line breaks and control characters, which could redraw a terminal."""
    return "".join(character if character.isprintable() else " " for character in str(value))


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
    number = _number(value)
    return "–" if number is None else f"{number:,.0f}"


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _mean(scores: Mapping[str, float | None]) -> float | None:
    known = [value for value in scores.values() if value is not None]
    return sum(known) / len(known) if known else None
