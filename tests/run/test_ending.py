"""However a command ends, nothing that it started is left, and its folder says how it ended and how to resume. Through
real processes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_grid import FakeGrid, simulated_banks
from flower_processes import assert_nothing_left, error_of, events, finish, processes_of, start, wait_for
from flwr.app import Message
from tiny_runs import overrides, result_of, rounds_of, same_run, write_rows

from fedfinlora.cli import main
from fedfinlora.compose import compose
from server_app.federated import run_federated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("ending")
    yield folder
    for process in processes_of(folder):
        process.kill()


@pytest.fixture(scope="module")
def rows(place: Path) -> Path:
    return write_rows(place / "rows")


def words(rows: Path, place: Path, name: str, rounds: int = 200) -> list[str]:
    """A run that would take minutes."""
    return overrides(rows, place, "train.steps_per_round=30", "workers=1", name=name, rounds=rounds)


@pytest.fixture(scope="module")
def one_round(place: Path, rows: Path) -> Path:
    """A run that was stopped in its second round, made in this process; others resume from it."""
    run = place / "one-round"

    def stops(bank: str, message: Message, reply: Message) -> Message:
        if (run / "rounds.jsonl").is_file():
            raise KeyboardInterrupt
        return reply

    config = compose(words(rows, place, run.name))
    with pytest.raises(KeyboardInterrupt):
        run_federated(FakeGrid(simulated_banks(config.banks, place / "banks"), tamper=stops), config)
    (run / "result.json").unlink(missing_ok=True)  # how this one ended is not how the others do
    return run


def begun(one_round: Path, name: str) -> tuple[subprocess.Popen[str], Path]:
    """A simulation in its second round."""
    run = one_round.with_name(name)
    shutil.copytree(one_round, run)
    earlier = len(events(run))
    process = start("simulate", f"resume={run}")
    wait_for(process, lambda: any(event["event"] == "round_start" for event in events(run)[earlier:]))
    return process, run


def of_program(run: Path, program: str) -> list[psutil.Process]:
    return [process for process in processes_of(run) if any(program in word for word in process.cmdline()[:4])]


def kill_all(run: Path, program: str) -> None:
    found = of_program(run, program)
    assert found, f"no {program}"
    for process in found:
        process.kill()


ENDINGS: dict[str, tuple[Callable[[subprocess.Popen[str], Path], object], str]] = {
    "SuperLink killed": (lambda process, run: kill_all(run, "flower-superlink"), ""),
    "guardian killed": (lambda process, run: kill_all(run, "guardian.py"), ""),
    "Ray killed": (lambda process, run: kill_all(run, "raylet/raylet"), ""),
    "command killed": (lambda process, run: process.kill(), "the command that followed the run was killed"),
}


@pytest.mark.parametrize("how", ENDINGS)
def test_nothing_is_left_and_the_folder_says_how_it_ended(one_round: Path, how: str) -> None:
    end, reason = ENDINGS[how]
    process, run = begun(one_round, how.replace(" ", "-"))
    end(process, run)
    code, _, err = finish(process)
    assert code != 0
    assert_nothing_left(run)
    result = result_of(run)
    assert result["status"] == "failed"
    assert result["reason"]
    assert reason in result["reason"]
    assert f"simulate resume={run}" in err.rstrip().splitlines()[-1]
    assert "Traceback" not in err
    assert result["rounds"] == len(rounds_of(run)) >= 1


def test_a_second_ctrl_c_ends_at_once(one_round: Path) -> None:
    process, run = begun(one_round, "twice")
    [link] = of_program(run, "flower-superlink")
    link.suspend()  # it does not hear the first
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert (code, result_of(run)["status"]) == (1, "stopped")
    assert time.monotonic() - asked < 5
    assert f"simulate resume={run}" in err
    assert_nothing_left(run)


def cli(*command: str) -> tuple[int, str, str]:
    return finish(start(*command))


class TestDetached:
    def test_a_run_continues_without_its_terminal_and_stops_from_another(self, place: Path, rows: Path) -> None:
        run = place / "detached"
        status, out, err = cli("simulate", *words(rows, place, "detached", rounds=40), "--detach")
        assert (status, err) == (0, "")
        lines = out.splitlines()
        assert lines[0] == f"run folder: {run}"
        assert lines[2:] == [
            f"python -m fedfinlora {what}" for what in (f"attach {run}", f"stop {run}", f"list {place}")
        ]
        process = psutil.Process(int(lines[1].split()[1].rstrip(",")))
        assert os.getsid(process.pid) == process.pid
        follower = start("attach", "detached", "--output-dir", str(place))
        wait_for(follower, (run / "rounds.jsonl").is_file)
        follower.send_signal(signal.SIGINT)
        status, out, err = finish(follower)
        assert status == 1
        assert f"attach {run}" in err
        assert f"stop {run}" in err
        assert "federated tiny-random" in out
        assert process.is_running()
        status, out, _ = cli("list", str(place), "--json")
        states = {one["name"]: one["state"] for one in json.loads(out)}
        assert states["detached"] == "running"

        status, _, err = cli("simulate", f"resume={run}")
        assert status == 1
        assert "in use" in error_of(err)

        status, out, err = cli("stop", str(run))
        assert status == 0, err
        assert f"resume with: python -m fedfinlora simulate resume={run}" in out
        assert_nothing_left(run)
        assert result_of(run)["status"] == "stopped"
        status, _, err = cli("stop", str(run))
        assert status == 1
        assert "does not run" in error_of(err)
        status, _, err = cli("attach", str(run))
        assert status == 1
        assert "interrupted" in error_of(err)

    def test_what_is_wrong_is_said_where_it_was_typed(self, place: Path, rows: Path) -> None:
        status, out, err = cli("simulate", *words(rows, place, "wrong"), "train.nonsense=1", "--detach")
        assert (status, out) == (2, "")
        assert "nonsense" in error_of(err)

    def test_a_detached_baseline_gives_the_bytes_of_one_with_a_terminal(self, place: Path, rows: Path) -> None:
        """Also where the option is abbreviated: it starts one process."""
        own = overrides(rows, place, name="alone")
        assert main(["centralized", *own]) == 0
        status, out, err = cli("centralized", *overrides(rows, place, name="far"), "--deta")
        assert status == 0, err
        assert out.splitlines()[0] == f"run folder: {place / 'far'}"
        status, _, err = cli("attach", str(place / "far"))
        assert status == 0, err
        assert same_run(place / "alone", place / "far")
        assert "run completed" in (place / "far" / "state" / "command.log").read_text()

    def test_local_trains_each_bank_and_is_found_by_the_name_prefix(self, place: Path, rows: Path) -> None:
        status, out, err = cli("local", *words(rows, place, "each"), "--detach")
        assert status == 0, err
        begins = place / "each-bank-"
        assert out.splitlines()[0] == f"run folder: {begins}0"
        assert f"python -m fedfinlora stop {begins}" in out.splitlines()
        status, out, err = cli("stop", str(begins))
        assert status == 0, err
        assert_nothing_left(place / "each-bank-0")
        assert result_of(place / "each-bank-0")["status"] == "stopped"
        assert not (place / "each-bank-1").exists(), "the command has ended with its first bank"

    def test_a_command_that_cannot_leave_its_terminal_says_which_can(self) -> None:
        status, _, err = cli("bench", "train", "--detach")
        assert status == 2
        assert "--detach goes with simulate, demo, centralized, local, evaluate" in err

    def test_an_evaluation_leaves_its_terminal(self, place: Path, rows: Path) -> None:
        scored = overrides(rows, place, "evaluation.benchmarks=[fpb]", name="scored far")
        status, out, err = cli("evaluate", *scored, "--detach")
        assert status == 0, err
        assert f"python -m fedfinlora attach '{place / 'scored far'}'" in out
        status, _, err = cli("attach", "scored", "--output-dir", str(place))
        assert status == 0, err
        assert result_of(place / "scored far")["status"] == "completed"


def test_a_baseline_ends_in_good_order_when_it_is_asked_to(place: Path, rows: Path) -> None:
    process = start("centralized", *words(rows, place, "asked"))
    run = place / "asked"
    wait_for(process, (run / "rounds.jsonl").is_file)
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process)
    assert status == 1
    assert f"resume with: python -m fedfinlora centralized resume={run}" in error_of(err)
    assert result_of(run)["status"] == "stopped"


@contextmanager
def sent_when(file: Path, number: signal.Signals) -> Iterator[None]:
    """Send this process a signal as soon as a file is there."""
    over = threading.Event()

    def sends() -> None:
        while not file.is_file() and not over.wait(0.02):
            pass
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=sends)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()


@contextmanager
def handled(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Another handler of a signal, as whoever starts a command may have set it."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGHUP])
def test_a_closed_terminal_ends_a_baseline_in_good_order(
    place: Path, rows: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    """In this process; what is not heeded would come here."""
    unheeded: list[int] = []
    run = place / number.name
    with handled(number, lambda *given: unheeded.append(number)), sent_when(run / "rounds.jsonl", number):
        status = main(["centralized", *words(rows, place, number.name)])
    assert (status, unheeded) == (1, [])
    assert f"resume with: python -m fedfinlora centralized resume={run}" in error_of(capsys.readouterr().err)
    assert result_of(run)["status"] == "stopped"


def test_a_closed_pipe_ends_a_run_in_good_order(place: Path, rows: Path) -> None:
    """`simulate … | head`: no process reads what is printed any more."""
    process = start("centralized", *words(rows, place, "piped"))
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    status, _, err = finish(process)
    assert status == 1
    assert "piped" in error_of(err)
    assert result_of(place / "piped")["status"] == "stopped"


def test_nohup_is_heeded(place: Path, rows: Path) -> None:
    """It starts a command with SIGHUP ignored."""
    run = place / "nohup"
    with handled(signal.SIGHUP, signal.SIG_IGN), sent_when(run / "progress.jsonl", signal.SIGHUP):
        assert main(["centralized", *overrides(rows, place, name="nohup")]) == 0
    assert result_of(run)["status"] == "completed"
