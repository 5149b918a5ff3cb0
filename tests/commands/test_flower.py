"""Through real Flower processes, as a person would start them: the truth in the exit status, kill -9 and Ctrl-C,
nothing left behind.

Seven runs in all. Every one has the same rows and settings, so each must end in the bytes of the first.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_runs import SCORED, adapter_bytes, overrides, result_of, rounds_bytes, rounds_of, same_run, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 3
STEPS = 60
"""Long enough for a round to be interrupted, at some ten milliseconds a step."""
ONE_WORKER = "workers=1"
"""Both banks in one process: a model is loaded once less, and nothing else is different."""
PATIENCE_S = 240.0
QUIET = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def words(rows: Path, output: Path, name: str, *more: str) -> list[str]:
    return overrides(rows, output, *SCORED, f"train.steps_per_round={STEPS}", *more, name=name, rounds=ROUNDS)


def start(*command: str, **environment: str) -> subprocess.Popen[str]:
    """A command in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "fedfinlora", *command],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where the tests run in the background
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(exit status, stdout, stderr). What does not end by itself is interrupted, so that it can tidy up, and is a
    failure.
    """
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=60)
        finally:
            process.kill()
        pytest.fail(f"still running after {PATIENCE_S:g} s: {process.args}")
    return process.returncode, out, err


def simulate(*command: str) -> tuple[int, str, str]:
    return finish(start("simulate", *command))


def events(run: Path) -> list[dict[str, Any]]:
    file = run / "progress.jsonl"
    text = file.read_text("utf-8") if file.is_file() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def wait_for(process: subprocess.Popen[str], what: Callable[[], Any], deadline_s: float = PATIENCE_S) -> Any:
    """The first true value of `what`; a failure when the process ends before."""
    deadline = time.monotonic() + deadline_s
    while not (found := what()):
        if process.poll() is not None or time.monotonic() > deadline:
            process.send_signal(signal.SIGINT)
            pytest.fail(f"ended or went quiet too early: {process.communicate(timeout=60)}")
        time.sleep(0.02)
    return found


def in_the_middle_of_round_2(run: Path) -> Callable[[], dict[str, Any] | None]:
    """The run_start event, once round 2 has begun and no bank is done with it."""

    def look() -> dict[str, Any] | None:
        seen = events(run)
        if not any(event["event"] == "round_start" and event["round"] == 2 for event in seen):
            return None
        assert not any(event["event"] == "round_done" and event["round"] == 2 for event in seen), (
            "the round was too short"
        )
        return next(event for event in seen if event["event"] == "run_start")

    return look


def processes_of(*folders: Path) -> list[psutil.Process]:
    """Every living process that was started for one of the folders, by its Flower home or its command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            place = process.environ().get("FLWR_HOME", "") + "\0" + process.environ().get("HOME", "")
            text = place + "\0" + "\0".join(process.cmdline())
            ours = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
            if ours and any(str(folder) in text for folder in folders):
                found.append(process)
    return found


def assert_nothing_left(*folders: Path, patience_s: float = 20.0) -> None:
    deadline = time.monotonic() + patience_s
    while (left := processes_of(*folders)) and time.monotonic() < deadline:
        time.sleep(0.2)
    names = []
    for process in left:
        with contextlib.suppress(psutil.Error):
            names.append(" ".join(process.cmdline()[:3])[:120])
            process.kill()
    assert not names


def error_of(err: str) -> str:
    """The one line on stderr that says what is wrong."""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert err.rstrip().splitlines()[-1] == lines[0]
    return lines[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for all runs; whatever is still alive below it at the end is killed."""
    folder = tmp_path_factory.mktemp("flower")
    yield folder
    for process in processes_of(folder):
        with contextlib.suppress(psutil.Error):
            process.kill()


@pytest.fixture(scope="module")
def rows(place: Path) -> Path:
    return write_rows(place / "rows")


@pytest.fixture(scope="module")
def whole(place: Path, rows: Path) -> Path:
    """The uninterrupted run that the others are compared with."""
    status, out, err = simulate(*words(rows, place, "whole"))
    assert status == 0, err
    run = place / "whole"
    assert out.splitlines()[0] == f"run folder: {run}"
    assert out.rstrip().splitlines()[-1] == f"report: {run / 'report.html'}"
    assert_nothing_left(run)
    return run


class TestSimulate:
    def test_a_run_leaves_what_the_design_says(self, whole: Path) -> None:
        files = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
        assert {
            "config.yaml", "manifest.json", "rounds.jsonl", "result.json", "report.html",
            *(f"adapters/{label}/{name}" for label in ("round_001", "round_002", "round_003", "final")
              for name in ("adapter_config.json", "adapter_model.safetensors")),
            *(f"eval/{label}/{name}" for label in ("base", "final") for name in ("fpb.jsonl", "metrics.json")),
        } <= files  # fmt: skip
        result = result_of(whole)
        assert {
            "schema_version", "mode", "status", "run", "model", "peft", "strategy", "rounds", "banks", "seed",
            "rows_trained",
            "tokens_trained", "wall_s", "bytes_up", "bytes_down", "privacy", "scores", "skipped",
        } <= set(result)  # fmt: skip
        assert (result["schema_version"], result["mode"], result["status"]) == (1, "federated", "completed")
        assert (result["rounds"], result["banks"], result["synthetic"]) == (ROUNDS, 2, False)
        assert result["rows_trained"] == 2 * ROUNDS * STEPS * 4
        assert set(result["wall_s"]) >= {"total", "train", "evaluate", "aggregate"}
        assert {
            "n", "unparsed", "accuracy", "accuracy_ci95", "f1_macro", "f1_weighted", "finlora_accuracy", "finlora_f1",
        } <= set(result["scores"]["final"]["fpb"])  # fmt: skip
        row = json.loads((whole / "eval" / "final" / "fpb.jsonl").read_text().splitlines()[0])
        assert {
            "id", "prompt_sha256", "target", "output", "parsed", "correct", "finlora_correct", "finlora_ambiguous",
        } <= set(row)  # fmt: skip
        assert set(json.loads((whole / "manifest.json").read_text())) >= {
            "versions",
            "source_sha256",
            "data_sha256",
            "seed",
        }

    def test_the_adapter_loads_in_plain_peft(self, whole: Path) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        from fedfinlora.model.embedded import embedded_folder

        base = AutoModelForCausalLM.from_pretrained(embedded_folder("memory:tiny-random"))
        model = PeftModel.from_pretrained(base, whole / "adapters" / "final")
        assert any(parameter.abs().max() > 0 for name, parameter in model.named_parameters() if "lora_B" in name)

    def test_a_failed_app_is_status_1_and_one_line(self, place: Path, rows: Path) -> None:
        """Flower itself would call this run completed: no row fits the window, so no bank has anything to train on."""
        status, _, err = simulate(
            *words(rows, place, "failing", "model.context_tokens=12", "evaluation=none", ONE_WORKER)
        )
        run = place / "failing"
        said = error_of(err)
        assert status == 1
        assert re.search(r"Round 1: 0 of 2 replies are usable|context_tokens", said), said
        assert result_of(run)["status"] == "failed"
        assert result_of(run)["reason"] in said
        assert_nothing_left(run)


class TestInterrupted:
    def test_kill_9_of_the_server_in_the_middle_of_a_round_then_resume(
        self, place: Path, rows: Path, whole: Path
    ) -> None:
        run = place / "killed"
        process = start("simulate", *words(rows, place, "killed", ONE_WORKER))
        server = int(wait_for(process, in_the_middle_of_round_2(run))["process"])
        time.sleep(0.1)
        os.kill(server, signal.SIGKILL)
        killed = time.monotonic()
        status, _, err = finish(process)
        assert status == 1
        assert time.monotonic() - killed < 60
        assert re.search(r"server's process has died.*simulate resume=", error_of(err))
        assert result_of(run)["status"] == "failed"
        assert len(rounds_of(run)) == 1
        assert_nothing_left(run)

        status, _, err = simulate(f"resume={run}")
        assert status == 0, err
        assert same_run(whole, run)
        assert result_of(run)["status"] == "completed"
        assert result_of(run)["scores"] == result_of(whole)["scores"]
        assert_nothing_left(run)

    def test_ctrl_c_saves_the_state_and_says_how_to_go_on(self, place: Path, rows: Path, whole: Path) -> None:
        run = place / "stopped"
        process = start("simulate", *words(rows, place, "stopped", ONE_WORKER))
        wait_for(process, in_the_middle_of_round_2(run))
        os.killpg(process.pid, signal.SIGINT)
        status, _, err = finish(process)
        assert status == 1
        assert "Traceback" not in err
        reported = re.search(r"stopped after round (\d); go on with: python -m fedfinlora (simulate resume=\S+)", err)
        assert reported is not None, err
        assert int(reported[1]) == len(rounds_of(run)) < ROUNDS
        assert result_of(run)["status"] == "stopped"
        assert_nothing_left(run)

        status, _, err = finish(start(*shlex.split(reported[2])))
        assert status == 0, err
        assert same_run(whole, run)
        assert result_of(run)["status"] == "completed"
        assert_nothing_left(run)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class PlainRun:
    """A run through `flwr run .` alone."""

    folder: Path
    log: str
    """What `flwr log` shows of it."""


@pytest.fixture(scope="module")
def plain(place: Path, rows: Path) -> PlainRun:
    """`flwr run .` as a person types it in the project's folder, in a fresh HOME; then the daemon that it has started
    is ended.
    """
    home = place / "home"
    home.mkdir()
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("FLWR_", "FEDFINLORA_", "XDG_"))
    }
    environment |= QUIET | {
        "HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }

    def flwr(*command: str) -> str:
        done = subprocess.run(
            ["flwr", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def asked(*command: str) -> dict[str, Any]:
        text = flwr(*command, "--format", "json")
        answer: dict[str, Any] = json.loads(text[text.index("{") :])
        return answer

    further = [
        "model.threads=1", "train.batch_rows=4", f"train.steps_per_round={STEPS}", "evaluation.benchmarks=[fpb]",
        "evaluation.limit=2",
    ]  # fmt: skip
    settings = (
        f"num-server-rounds={ROUNDS} model='tiny-random' dataset='finlora' dataset-root='{rows}' "
        f"overrides='{' '.join(further)}'"
    )
    try:
        run_id = str(asked("run", ".", "--run-config", settings)["run-id"])
        deadline = time.monotonic() + PATIENCE_S
        while not (found := asked("ls", "--run-id", run_id)["runs"][0])["status"].startswith("finished"):
            assert time.monotonic() < deadline, found
            time.sleep(1.0)
        log = flwr("log", run_id, "--show")
    finally:
        for process in processes_of(home):
            with contextlib.suppress(psutil.Error):
                if "flower-superlink" in " ".join(process.cmdline()):
                    process.terminate()
        assert_nothing_left(home)
    assert found["status"] == "finished:completed", f"{found}\n{log}"
    [run] = (home / ".fedfinlora" / "runs").iterdir()
    return PlainRun(run, log)


class TestFlwrRun:
    def test_a_run_in_a_fresh_home_gives_the_bytes_of_simulate(self, plain: PlainRun, whole: Path) -> None:
        result = result_of(plain.folder)
        assert (result["status"], result["run_dir"], result["banks"]) == ("completed", str(plain.folder), 2)
        assert rounds_bytes(plain.folder) == rounds_bytes(whole)
        assert adapter_bytes(plain.folder) == adapter_bytes(whole)
        assert result["scores"] == result_of(whole)["scores"]

    def test_the_stream_says_how_to_follow_and_stop_it_and_has_a_line_a_step(self, plain: PlainRun) -> None:
        ours = [
            line.partition("fedfinlora.server: ")[2] for line in plain.log.splitlines() if "fedfinlora.server: " in line
        ]
        assert re.match(r"follow: flwr log (\d+)   stop: flwr stop \1", ours[0])
        assert re.search(r"local SuperLink stays .* kill [1-9]\d*$", ours[1])
        assert "evaluation='full'" in ours[2]
        steps = [f"round {number}/{ROUNDS} done" for number in range(1, ROUNDS + 1)]
        assert [line.partition(":")[0] for line in ours if " done: " in line] == steps
        assert len([line for line in ours if line.startswith("evaluating base: fpb")]) == 1
        assert "run completed" in ours

    def test_the_run_folder_is_logged_first_and_last(self, plain: PlainRun) -> None:
        assert plain.log.count(f"run folder: {plain.folder}") == 2
