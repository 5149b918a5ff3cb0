"""`make deploy-demo`, with the tiny random model: the story is in the files, and no process is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from parties import SOON
from tiny_runs import result_of, rounds_of

from benchmarks.demo_liar import LIAR, LIES
from benchmarks.demo_parties import RULE
from benchmarks.demo_setting import DESKS, KILLED, LONG, MARK, REFUSED, ROUNDS, fresh, share_out
from data.sample import FOLDER as SAMPLE
from fedfinlora.compose import PROJECT_ROOT
from fedfinlora.errors import UserError
from fedfinlora.privacy.history import read_history
from fedfinlora.system.family import end_family

TINY = (
    "strategy.deadline_s=90",
    "model=tiny-random", "dataset.max_rows_per_task=24", "train.steps_per_round=40", "train.batch_rows=4",
    "evaluation.limit=2",
    "evaluation.benchmarks=[fpb,headline]",
    "workers=1",
)  # fmt: skip
"""Many short steps, so that a bank is still at work when it is killed."""


def deploy_demo(*words: str) -> subprocess.CompletedProcess[str]:
    """SIGTERM first where it takes too long: it ends all its parties, which would otherwise go on."""
    command = [sys.executable, "-m", "benchmarks.deploy_demo", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=PROJECT_ROOT, env={**os.environ, **QUICK}, stdout=pipe, stderr=pipe, text=True
    ) as running:
        try:
            out, err = running.communicate(timeout=800)
        except subprocess.TimeoutExpired:
            running.terminate()
            out, err = running.communicate(timeout=60)
            pytest.fail(f"after 800 s not yet at its end:\n{out}{err}")
    return subprocess.CompletedProcess(command, running.returncode, out, err)


QUICK = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5", **SOON}
"""Flower looks for work twice a second, and for messages every second."""


def processes_in(folder: Path) -> list[str]:
    """Command lines of all processes whose HOME is in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME", "").startswith(f"{folder}{os.sep}"):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_story_is_in_the_files(tmp_path: Path) -> None:
    output = tmp_path / "a folder" / ("deep" * 12)
    done = deploy_demo("--output", str(output), *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not processes_in(output)

    deployed, simulated = output / "deployed", output / "simulated"
    lines = rounds_of(deployed)
    reported = [{bank["bank"]: bank["code"] for bank in line["banks"]} for line in lines]
    codes = [{name: code for name, code in by_bank.items() if name != LIAR} for by_bank in reported]
    assert len(lines) == ROUNDS
    assert [by_bank[LIAR] for by_bank in reported][: len(LIES)] == list(LIES.values())
    assert codes[0] == codes[-1] == dict.fromkeys(DESKS, "")
    assert codes[REFUSED - 1]["bank-2"] == f"policy-{RULE}"
    assert codes[KILLED - 1] == {"bank-0": "", "bank-1": codes[KILLED - 1]["bank-1"], "bank-2": ""}
    assert codes[KILLED - 1]["bank-1"] in ("away", "crashed", "late")
    hashes = {line["round"]: line["banks"][2].get("policy_sha256") for line in lines}
    assert hashes[REFUSED - 1] == hashes[REFUSED + 1] != hashes[REFUSED]

    def history(bank: str) -> list[tuple[int, str, str]]:
        kept = output / bank / ".fedfinlora" / "bank" / "state" / "history" / f"{bank}.jsonl"
        return [(line["round"], line["outcome"], line["code"]) for line in read_history(kept)]

    assert [event for event in history("bank-2") if event[1] == "refused"] == [(REFUSED, "refused", f"policy-{RULE}")]
    killed = [event for event in history("bank-1") if event[0] == KILLED and event[1] != "booked"]
    assert killed == [(KILLED, "begun", "")]
    assert (ROUNDS, "sent", "") in history("bank-1")

    assert lines[0]["adapter_sha256"] == rounds_of(simulated)[0]["adapter_sha256"]
    assert result_of(deployed)["synthetic"]
    assert (deployed / "report.html").is_file()
    assert (output / "report.html").is_file()
    assert f"refused policy-{RULE}" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("All was seen as expected.")


@pytest.mark.slow
def test_an_interrupt_leaves_no_process_running(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.deploy_demo", "--output", str(tmp_path / "out"), *TINY]
    demo = subprocess.Popen(
        command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert demo.stdout is not None
    try:
        for line in demo.stdout:
            if "bank-2" in line and "bank init" in line:
                break
        assert processes_in(tmp_path)
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=120)
    finally:
        end_family(demo)
    assert (demo.returncode, errors.splitlines()[-1]) == (1, "stopped")
    assert not processes_in(tmp_path)


def test_each_desk_gets_the_train_files_of_its_own_tasks_only(tmp_path: Path) -> None:
    tasks = share_out(SAMPLE, tmp_path)
    held = {bank: sorted(file.name for file in (tmp_path / bank / "rows").iterdir()) for bank in DESKS}
    assert held["bank-1"] == ["headline_train.jsonl", "ner_train.jsonl"]
    assert sum(map(len, held.values())) == len({name for names in held.values() for name in names})
    assert tasks == [task for desk in DESKS.values() for task in desk.tasks if task not in LONG]
    assert sorted(file.name for file in (tmp_path / "simulation" / "rows").iterdir()) == [*DESKS, "test"]
    assert all(
        file.name.endswith(("_test.jsonl", "_test_batched.jsonl"))
        for file in (tmp_path / "aggregator" / "rows" / "test").iterdir()
    )


def test_a_desk_without_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "fpb_train.jsonl").touch()
    with pytest.raises(UserError, match="no rows for the news desk"):
        share_out(tmp_path / "data", tmp_path / "output")


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UserError, match="is not replaced"), fresh(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").is_file()
    assert not (tmp_path / MARK).exists()
