"""What lies in a run's folder, in a bank's state and in a ledger is for its owner alone, unless the owner has opened
it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Message
from round_runs import Runs
from tiny_runs import SCORED, overrides, write_rows

from fedfinlora.cli import main
from fedfinlora.files import made_as, make_private, write_bytes
from fedfinlora.privacy.ledger_chain import opened


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """As most systems have it: others may read."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(write_rows(tmp_path / "rows"), tmp_path)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_to_others(folder: Path) -> list[str]:
    """What in a folder others than its owner may read or write."""
    return [f"{path} {mode(path):04o}" for path in [folder, *folder.rglob("*")] if mode(path) & 0o077]


def test_everything_in_a_finished_run_is_its_owners_alone(runs: Runs) -> None:
    run = runs.start("run", *SCORED, "evaluation.every=1")
    found = {path.name for path in run.rglob("*")}
    assert {
        "fpb.jsonl",
        "adapter_model.safetensors",
        "result.json",
        "rounds.jsonl",
        "progress.jsonl",
        "report.html",
    } <= found
    assert "server.lock" in found
    assert open_to_others(run) == []
    assert open_to_others(runs.folder / "states") in ([], [f"{runs.folder / 'states'} 0755"])
    assert os.umask(0o022) == 0o022, "the rest of the process is as before"


def test_a_ledger_is_its_owners_alone(tmp_path: Path) -> None:
    with opened(tmp_path / "ledger", writing=True):
        pass
    assert {path.name for path in (tmp_path / "ledger").iterdir()} >= {"lock", "head.json", "key"}
    assert open_to_others(tmp_path / "ledger") == []


def test_a_baseline_is_its_owners_alone(runs: Runs) -> None:
    assert main(["centralized", *overrides(runs.rows, runs.folder, name="alone", rounds=1)]) == 0
    assert open_to_others(runs.folder / "alone") == []


def test_a_run_opened_to_a_group_stays_open_when_it_resumes(runs: Runs) -> None:
    def stop(bank: str, message: Message, reply: Message) -> Message:
        if message.metadata.group_id == "2":
            raise KeyboardInterrupt
        return reply

    with pytest.raises(KeyboardInterrupt):
        runs.start("run", rounds=2, tamper=stop)
    run = runs.folder / "run"
    for path in [run, *list(run.rglob("*"))]:
        path.chmod(0o750 if path.is_dir() else 0o640)
    runs.resume(run)
    assert mode(run) == 0o750
    made = {path.name: mode(path) for path in run.rglob("*") if path.name != "server.lock"}
    assert set(made.values()) == {0o750, 0o640}
    assert made["result.json"] == made["adapter_model.safetensors"] == 0o640


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path) -> None:
    for wanted in (0o600, 0o640, 0o644):
        write_bytes(tmp_path / "file", b"one")
        (tmp_path / "file").chmod(wanted)
        write_bytes(tmp_path / "file", b"two")
        assert mode(tmp_path / "file") == wanted


def test_folders_are_made_private_and_those_that_are_there_stay(tmp_path: Path) -> None:
    make_private(tmp_path / "new")
    assert mode(tmp_path / "new") == 0o700
    (tmp_path / "new").chmod(0o770)
    make_private(tmp_path / "new")
    assert mode(tmp_path / "new") == 0o770
    with made_as(tmp_path / "new"):
        (tmp_path / "new" / "file").write_text("x")
    assert mode(tmp_path / "new" / "file") == 0o660
