"""Through real Flower processes, as a person would start them: the truth in the exit status, kill -9 and Ctrl-C,
nothing left behind.

Every run has the same rows and settings, so each must end in the bytes of one that is made in this process.
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
from fake_grid import FakeGrid, simulated_banks
from flower_processes import (
    PATIENCE_S,
    ROOT,
    assert_nothing_left,
    error_of,
    events,
    finish,
    processes_of,
    start,
    wait_for,
)
from tiny_runs import SCORED, adapter_bytes, overrides, result_of, rounds_bytes, rounds_of, same_run, write_rows

from fedfinlora.compose import compose
from server_app.federated import run_federated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROUNDS = 3
STEPS = 60
"""Long enough for a round to be interrupted, at some ten milliseconds a step."""
ONE_WORKER = "workers=1"
"""Both banks in one process: a model is loaded once less, and nothing else is different."""
QUIET = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def words(rows: Path, output: Path, name: str, *more: str) -> list[str]:
    return overrides(rows, output, *SCORED, f"train.steps_per_round={STEPS}", *more, name=name, rounds=ROUNDS)


def simulate(*command: str) -> tuple[int, str, str]:
    return finish(start("simulate", *command))


def in_the_middle_of_round_2(run: Path, earlier: int = 0) -> Callable[[], dict[str, Any] | None]:
    """The run_start event, once round 2 has begun and no bank is done with it. `earlier` is how many events of the run
    belong to former commands.
    """

    def look() -> dict[str, Any] | None:
        seen = events(run)[earlier:]
        if not any(event["event"] == "round_start" and event["round"] == 2 for event in seen):
            return None
        assert not any(event["event"] == "round_done" and event["round"] == 2 for event in seen), (
            "the round was too short"
        )
        return next(event for event in seen if event["event"] == "run_start")

    return look


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for all runs; what is still alive below it at the end is killed."""
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
    """The uninterrupted run that the others are compared with, made in this process."""
    config = compose(words(rows, place, "whole"))
    return run_federated(FakeGrid(simulated_banks(config.banks, place / "states")), config)


@pytest.fixture(scope="module")
def interrupted(place: Path, rows: Path) -> Path:
    """A run of `simulate` whose server is killed in round 2, which is resumed and stopped by Ctrl-C, and resumed to its
    end. Each ending says how to resume.
    """
    run = place / "interrupted"
    process = start("simulate", *words(rows, place, "interrupted", ONE_WORKER))
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

    earlier = len(events(run))
    process = start("simulate", f"resume={run}")
    wait_for(process, in_the_middle_of_round_2(run, earlier))
    os.killpg(process.pid, signal.SIGINT)
    status, _, err = finish(process)
    assert status == 1
    assert "Traceback" not in err
    reported = re.search(r"stopped after round (\d); resume with: python -m fedfinlora (simulate resume=\S+)", err)
    assert reported is not None, err
    assert int(reported[1]) == len(rounds_of(run)) < ROUNDS
    assert result_of(run)["status"] == "stopped"
    assert_nothing_left(run)

    status, out, err = finish(start(*shlex.split(reported[2])))
    assert status == 0, err
    assert out.splitlines()[0] == f"run folder: {run}"
    assert out.rstrip().splitlines()[-1] == f"report: {run / 'report.html'}"
    assert_nothing_left(run)
    return run


class TestSimulate:
    def test_a_run_leaves_what_the_design_says(self, interrupted: Path) -> None:
        files = {path.relative_to(interrupted).as_posix() for path in interrupted.rglob("*") if path.is_file()}
        assert {
            "config.yaml", "manifest.json", "rounds.jsonl", "result.json", "report.html",
            *(f"adapters/{label}/{name}" for label in ("round_001", "round_002", "round_003", "final")
              for name in ("adapter_config.json", "adapter_model.safetensors")),
            *(f"eval/{label}/{name}" for label in ("base", "final") for name in ("fpb.jsonl", "metrics.json")),
        } <= files  # fmt: skip
        result = result_of(interrupted)
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
        row = json.loads((interrupted / "eval" / "final" / "fpb.jsonl").read_text().splitlines()[0])
        assert {
            "id", "prompt_sha256", "target", "output", "parsed", "correct", "finlora_correct", "finlora_ambiguous",
        } <= set(row)  # fmt: skip
        assert set(json.loads((interrupted / "manifest.json").read_text())) >= {
            "versions",
            "source_sha256",
            "data_sha256",
            "seed",
        }

    def test_the_adapter_loads_in_plain_peft(self, interrupted: Path) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        from fedfinlora.model.embedded import embedded_folder

        base = AutoModelForCausalLM.from_pretrained(embedded_folder("memory:tiny-random"))
        model = PeftModel.from_pretrained(base, interrupted / "adapters" / "final")
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


def test_kill_9_of_the_server_and_then_ctrl_c_in_a_round_cost_no_byte(interrupted: Path, whole: Path) -> None:
    """A run resumed twice ends in the bytes of one that was never interrupted."""
    assert same_run(whole, interrupted)
    assert result_of(interrupted)["status"] == "completed"
    assert result_of(interrupted)["scores"] == result_of(whole)["scores"]


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
