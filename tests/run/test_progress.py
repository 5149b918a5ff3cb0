"""Progress: events written, followed and shown, and the same figures as TensorBoard scalars."""

from __future__ import annotations

import builtins
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fedfinlora.errors import UserError
from fedfinlora.report.tensorboard import TensorBoardWriter, round_scalars
from fedfinlora.run.evaluation import BenchmarkMetrics, Estimate
from fedfinlora.run.events import KINDS, Event, Message, RoundDone, RoundStart, Step, bank_done, event_json, read_event
from fedfinlora.run.progress import EventWriter, ProgressState, follow
from fedfinlora.run.progress_display import ProgressDisplay
from fedfinlora.run.progress_lines import format_seconds
from fedfinlora.run.records import BankEntry, BankPrivacy, BankTimings, RoundLine


def events_of_a_run() -> list[Event]:
    """Two banks, two rounds of 10 seconds; the base evaluation takes 5 seconds, bank-1 is rejected in round 2."""
    start = {"run": "demo", "model": "smollm2-135m", "peft": "lora", "strategy": "fedavg", "rounds": 2, "banks": 2}
    ok = {
        "status": "ok",
        "reason": "",
        "rows": 160,
        "train_loss": 1.5,
        "rows_per_s": 30.0,
        "tokens_per_s": 800.0,
        "seconds": 5.5,
    }
    done = {"train_loss": 1.4, "holdout_loss": 1.6, "seconds": 10.0, "bytes_up": 100, "bytes_down": 100}
    scoring = {"benchmark": "fpb", "index": 1, "of": 2, "rows": 24}
    return read(
        [
            {"t": 0.0, "event": "run_start", **start, "run_dir": "/runs/demo", "mode": "federated"},
            {"t": 1.0, "event": "phase", "name": "evaluating base"},
            {"t": 1.0, "event": "evaluate", "label": "base", **scoring, "rows_done": 0},
            {"t": 6.0, "event": "evaluate_done", "label": "base", "scores": {"fpb": 0.2, "fiqa": 0.3}},
            {"t": 6.0, "event": "phase", "name": "training"},
            {"t": 6.0, "event": "trainable", "parameters": 460800, "answer_tokens": 900, "rows": 320},
            {"t": 6.0, "event": "round_start", "round": 1},
            {"t": 11.0, "event": "bank_done", "round": 1, "bank": "bank-0", **ok},
            {"t": 16.0, "event": "bank_done", "round": 1, "bank": "bank-1", **ok},
            {"t": 16.0, "event": "round_done", "round": 1, **done},
            {"t": 16.0, "event": "round_start", "round": 2},
            {"t": 21.0, "event": "bank_done", "round": 2, "bank": "bank-0", **ok},
            {
                "t": 26.0,
                "event": "bank_done",
                "round": 2,
                "bank": "bank-1",
                "status": "rejected",
                "reason": "norm\x1b[2J\nfake line",
            },
            {"t": 26.0, "event": "round_done", "round": 2, **done},
            {"t": 26.0, "event": "evaluate", "label": "final", **scoring, "rows_done": 0},
            {"t": 31.0, "event": "evaluate_done", "label": "final", "scores": {"fpb": 0.7, "fiqa": 0.4}},
            {
                "t": 31.0,
                "event": "run_done",
                "status": "completed",
                "reason": "",
                "run_dir": "/runs/demo",
                "report": "/runs/demo/report.html",
            },
        ]
    )


def read(events: list[dict[str, Any]]) -> list[Event]:
    return [event for values in events if (event := read_event(values))]


def finished() -> bool:
    return True


def shown(events: list[Event], terminal: bool) -> str:
    out = io.StringIO()
    with ProgressDisplay(Console(file=out, force_terminal=terminal, width=100), clock=lambda: 20.0) as display:
        for event in events:
            display.handle(event)
    return out.getvalue()


def test_written_events_are_followed_in_order(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "run" / "progress.jsonl", clock=lambda: 7.0) as writer:
        writer.write(RoundStart(round=1))
        writer.write(Message(level="info", text="ünï\ncode"))
    assert list(follow(tmp_path / "run", finished, poll_s=0)) == [
        RoundStart(t=7.0, round=1),
        Message(t=7.0, level="info", text="ünï\ncode"),
    ]


def test_numbers_that_json_lacks_become_null_and_foreign_ones_plain(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "progress.jsonl") as writer:
        numbers: dict[str, Any] = {"seconds": np.float32(1.5), "bytes_up": np.int64(3), "best_round": tmp_path}
        writer.write(RoundDone(train_loss=float("nan"), **numbers))
    event = json.loads((tmp_path / "progress.jsonl").read_text())
    found = (event["train_loss"], event["seconds"], event["bytes_up"], event["best_round"])
    assert found == (None, 1.5, 3, str(tmp_path))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.event)
def test_an_event_is_read_as_it_was_written(kind: type[Event]) -> None:
    for event in (kind(), kind(t=3.0)):
        values = event_json(event)
        assert list(values)[:2] == ["t", "event"]
        assert read_event(json.loads(json.dumps(values))) == event


def test_a_private_bank_has_its_epsilon_in_place_of_rows_and_speed() -> None:
    timing = BankTimings(train_s=2.0, tokens_per_s=30.0)
    plain = event_json(bank_done(1, BankEntry("north", "ok", rows=8, train_loss=1.5), timing))
    assert (plain["rows"], plain["rows_per_s"]) == (8, 4.0)
    assert "epsilon_spent" not in plain
    private = event_json(bank_done(1, BankEntry("north", "ok", privacy=BankPrivacy(8.0, None, 1e-5)), timing))
    assert (private["epsilon_planned"], private["epsilon_spent"], private["delta"]) == (8.0, None, 1e-5)
    assert not {"rows", "train_loss", "seconds", "rows_per_s", "tokens_per_s"} & set(private)


def test_threads_never_mix_their_lines(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "progress.jsonl") as writer:

        def write_many(bank: int) -> None:
            for step in range(100):
                writer.write(Message(level=f"bank-{bank}", text=f"{step:500}"))

        threads = [threading.Thread(target=write_many, args=(bank,)) for bank in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    events = list(follow(tmp_path, finished, poll_s=0))
    assert len(events) == 400
    for bank in range(4):
        of_bank = [event for event in events if isinstance(event, Message) and event.level == f"bank-{bank}"]
        assert [int(event.text) for event in of_bank] == list(range(100))


def test_follow_waits_for_the_file_and_for_the_end_of_a_line(tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"

    def append(text: str) -> None:
        with file.open("a", encoding="utf-8") as opened:
            opened.write(text)

    # One entry for each look at the file: what happens just before it.
    happenings: list[Callable[[], None]] = [
        lambda: None,
        lambda: append('{"event": "round_st'),
        lambda: append('art", "round": 1}\nnot json\n[1]\n{"event": 3}\n'),
        lambda: append('{"event": "run_done"}\n{"event": "cut o'),
    ]

    def stop() -> bool:
        happenings.pop(0)()
        return not happenings

    assert [event.event for event in follow(file, stop, poll_s=0)] == ["round_start", "run_done"]


def test_follow_can_skip_what_an_earlier_attempt_wrote(tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    file.write_text('{"event": "run_start"}\n')
    start_byte = file.stat().st_size
    with EventWriter(file) as writer:
        writer.write(RoundStart(round=2))
    assert [event.event for event in follow(file, finished, start_byte=start_byte)] == ["round_start"]


def test_unwritable_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Choose another output folder"):
        EventWriter(tmp_path / "file" / "progress.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is needed to play a full disk")
def test_full_disk_is_a_user_error() -> None:
    writer = EventWriter(Path("/dev/full"))
    with pytest.raises(UserError, match="No space left"):
        writer.write(RoundStart(round=1))


def test_plain_output_is_one_line_an_event_without_control_characters() -> None:
    out = shown(events_of_a_run(), terminal=False)
    assert all(character.isprintable() or character == "\n" for character in out)
    lines = out.splitlines()
    assert lines[0] == "federated smollm2-135m lora fedavg: 2 banks, 2 rounds, run folder /runs/demo"
    assert "round 1/2 bank-0: ok, 160 rows, loss 1.500, 30.0 rows/s, 800 tokens/s, 6 s" in lines
    assert "round 1/2 done: train loss 1.400, held-out loss 1.600, 10 s, left about 15 s" in lines
    assert "round 2/2 bank-1: rejected: norm [2J fake line" in lines
    assert "evaluated base: mean accuracy 25.0 %" in lines
    assert lines[-3:] == ["run completed", "run folder: /runs/demo", "report: /runs/demo/report.html"]


@pytest.mark.parametrize("terminal", [True, False])
def test_final_table_shows_base_against_final(terminal: bool) -> None:
    out = shown(events_of_a_run(), terminal)
    for cells in (["fpb", "20.0", "70.0", "+50.0"], ["mean of 2", "25.0", "55.0", "+30.0"]):
        assert any(" ".join(line.split()) == " ".join(cells) for line in out.splitlines()), out


def test_live_picture_shows_rounds_banks_and_time_left() -> None:
    out = shown(events_of_a_run()[:12], terminal=True)
    for part in ("rounds 1/2", "bank-0", "800 tokens/s", "left about 11 s"):
        assert part in out


def test_untrusted_text_cannot_redraw_the_terminal() -> None:
    assert "\x1b[2J" not in shown(events_of_a_run(), terminal=True)


def test_events_of_unknown_names_or_without_fields_are_passed_over() -> None:
    names = (
        "run_start phase trainable round_start bank_done round_done evaluate evaluate_done step message run_done "
        "sunrise"
    )
    events = read([{"event": name, "round": "x", "t": None} for name in names.split()])
    assert len(events) == 11
    shown(events, terminal=False)
    shown(events, terminal=True)


def state_after(count: int) -> ProgressState:
    state = ProgressState()
    for event in events_of_a_run()[:count]:
        state.update(event)
    return state


def test_time_left_is_unknown_before_the_first_round_ends() -> None:
    assert state_after(8).seconds_left(12.0) is None


def test_time_left_counts_the_rounds_to_come_and_the_final_evaluation() -> None:
    # Round 2 began at 16 and should take 10 seconds, the evaluation 5 as for the base model.
    assert state_after(11).seconds_left(20.0) == 6.0 + 5.0
    assert state_after(15).seconds_left(28.0) == 3.0
    assert state_after(17).seconds_left(99.0) == 0.0


def test_time_left_of_a_centralized_run_comes_from_its_steps() -> None:
    state = ProgressState()
    for step, t in ((1, 10.0), (2, 12.0), (3, 14.0)):
        state.update(Step(t=t, step=step, steps=10, loss=1.0, tokens_per_s=5.0))
    assert state.seconds_left(14.0) == 14.0


def test_seconds_are_printed_for_people() -> None:
    assert [format_seconds(seconds) for seconds in (None, 7.4, 59.7, 185, 3725)] == [
        "–",
        "7 s",
        "1:00 min",
        "3:05 min",
        "1:02 h",
    ]


def round_of(number: int) -> RoundLine:
    entry = BankEntry("bank-0", "ok", train_loss=1.0, bytes_up=100)
    estimates = {"accuracy": Estimate(0.5), "f1_macro": Estimate(None)}
    scores = {"fpb": BenchmarkMetrics(24, estimates=estimates)}
    return RoundLine(number, banks=(entry,), train_loss=1.0 / number, bytes_up=100, scores=scores)


def test_round_scalars_leave_out_what_was_not_measured() -> None:
    assert dict(round_scalars(round_of(2))) == {
        "loss/train": 0.5,
        "banks/accepted": 1.0,
        "bytes/up": 100.0,
        "bytes/down": 0.0,
        "seconds/round": 0.0,
        "train_loss/bank-0": 1.0,
        "bytes_up/bank-0": 100.0,
        "accuracy/fpb": 0.5,
    }


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, make_ndarray(event.tensor_proto).item()) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def test_what_a_run_writes_is_read_back_from_tensorboard(tmp_path: Path) -> None:
    with TensorBoardWriter(tmp_path) as writer:
        writer.add_scores({"fpb": BenchmarkMetrics(estimates={"accuracy": Estimate(0.25)})}, step=0)
        for number in (1, 2):
            writer.add_round(round_of(number))
        writer.add_scores({"fiqa": BenchmarkMetrics(estimates={"accuracy": Estimate(0.75)})}, step=2)
    scalars = read_scalars(tmp_path / "tensorboard")
    assert scalars["loss/train"] == [(1, 1.0), (2, 0.5)]
    assert scalars["accuracy/fpb"] == [(0, 0.25), (1, 0.5), (2, 0.5)]
    assert scalars["accuracy/fiqa"] == [(2, 0.75)]


def test_without_tensorboard_nothing_is_written_and_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def import_without_tensorboard(name: str, *arguments: Any) -> Any:
        if name.startswith("tensorboard"):
            raise ImportError(name)
        return real_import(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", import_without_tensorboard)
    said: list[str] = []
    with TensorBoardWriter(tmp_path, said.append) as writer:
        writer.add_round(round_of(1))
        writer.add_scores({"fpb": {"accuracy": 0.5}}, step=1)
    assert len(said) == 1
    assert "pip install tensorboard" in said[0]
    assert not (tmp_path / "tensorboard").exists()


def test_importing_progress_report_and_tensorboard_is_light() -> None:
    code = (
        "import sys, fedfinlora.run.progress, fedfinlora.run.progress_display, fedfinlora.report, "
        "fedfinlora.report.tensorboard;"
        "print([name for name in ('rich', 'torch', 'numpy', 'yaml', 'tensorboard') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
