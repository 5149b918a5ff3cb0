"""The resident worker: the same bytes as without it, one model load, and what happens when it dies, idles, or cannot be
had.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from reliability import OUTCOMES
from tiny_runs import overrides, write_rows

import client_app.prepared_rows
from client_app import worker
from client_app.bank import RoundReply, train_round
from client_app.facts import bank_facts
from client_app.worker import PROCESS_FILE, end_worker, socket_path, train_in_worker
from fedfinlora.compose import compose
from fedfinlora.model.loading import get_session, initial_adapter
from fedfinlora.privacy.head import Head
from fedfinlora.privacy.ledger import read_lines
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.system.process_identity import start_of
from fedfinlora.wire.messages import BankError, TrainRequest

pytestmark = pytest.mark.slow
PRIVATE = ("privacy=example", "privacy.epsilon=8")


class Bank:
    """A bank in a folder of its own, and its worker."""

    def __init__(self, place: Path, **more: Any) -> None:
        self.rows = write_rows(place / "rows", train=24)
        self.node_config = {
            "bank": "north", "data-path": str(self.rows), "state-dir": str(place / "state"),
            "ledger-dir": str(place / "ledger"),
            "worker": True, "declared-rows": "fpb:24", **more,
        }  # fmt: skip
        self.facts = bank_facts(self.node_config)
        self.words = overrides(self.rows, place / "runs", "train.optimizer_state=reset")

    def request(self, round_number: int = 1, *more: str) -> TrainRequest:
        config = compose([*self.words, *more])
        session = get_session(config)
        adapter = initial_adapter(session, config)
        return TrainRequest(config, "run", round_number, session.layout.id, source_fingerprint(), adapter)

    def ask(self, *more: str, **changes: Any) -> RoundReply:
        return train_in_worker(replace(self.request(1, *more), **changes), self.facts, self.node_config)

    @property
    def process(self) -> int:
        return int((self.facts.state_folder / PROCESS_FILE).read_text())


@pytest.fixture(autouse=True)
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the test's own, with a short name."""
    with tempfile.TemporaryDirectory(prefix="worker-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture
def bank(tmp_path: Path, sockets: Path) -> Iterator[Bank]:
    made = Bank(tmp_path)
    yield made
    end_worker(made.facts.state_folder)
    client_app.prepared_rows._rows.clear()


@pytest.fixture(scope="module")
def resident(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bank, str]]:
    """A bank whose worker serves several tests, and the folder of its socket."""
    with tempfile.TemporaryDirectory(prefix="worker-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", folder)
        made = Bank(tmp_path_factory.mktemp("bank"))
        yield made, folder
        end_worker(made.facts.state_folder)


@pytest.fixture
def shared(resident: tuple[Bank, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Bank]:
    made, folder = resident
    monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
    yield made
    client_app.prepared_rows._rows.clear()


def test_it_gives_the_same_bytes_and_keeps_the_model(shared: Bank) -> None:
    bank = shared
    here, there = train_round(bank.request(), bank.facts), bank.ask()
    assert np.array_equal(here.delta, there.delta)
    assert here.layout_id == there.layout_id
    assert here.figures.train_loss == there.figures.train_loss
    first = bank.process
    again = bank.ask()
    assert np.array_equal(here.delta, again.delta)
    assert again.figures.load_s < 0.1, "it had the model"
    assert bank.process == first
    path = socket_path(bank.facts)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_an_error_comes_back_as_its_code(shared: Bank) -> None:
    bank = shared
    with pytest.raises(BankError) as error:
        bank.ask("model.context_tokens=3")
    assert error.value.code == "data"
    bank.ask()


def test_the_ledgers_head_comes_back_and_the_servers_is_handed_over(shared: Bank) -> None:
    bank = shared
    before = len(read_lines(bank.facts.ledger_folder))
    heads = [bank.ask(*PRIVATE).ledger for _ in range(2)]
    written = read_lines(bank.facts.ledger_folder)[before:]
    assert heads == [Head(line["number"], line["hash"]) for line in written]
    assert [head and head.number for head in heads] == [before + 1, before + 2]
    seen = heads[1]
    assert seen is not None
    bank.ask(*PRIVATE, ledger_heads={"north": seen, "south": Head(7, "f" * 64)})
    with pytest.raises(BankError, match=f"the aggregator has seen its line {seen.number}") as error:
        bank.ask(*PRIVATE, ledger_heads={"north": Head(seen.number, "f" * 64)})
    assert error.value.code == "privacy"
    assert len(read_lines(bank.facts.ledger_folder)) == before + 3


def test_a_private_round_that_fails_in_it_is_privacy_for_any_reason(shared: Bank) -> None:
    bank = shared
    before = read_lines(bank.facts.ledger_folder)
    for wrong in (("model.context_tokens=3",), ("privacy.unit=customer",), ("privacy.budget_epsilon=0.001",)):
        with pytest.raises(BankError) as error:
            bank.ask(*PRIVATE, *wrong)
        assert error.value.code == "privacy"
    assert read_lines(bank.facts.ledger_folder) == before


def test_garbage_on_the_socket_changes_nothing(shared: Bank) -> None:
    bank = shared
    bank.ask()
    odd = json.dumps(
        {
            **dict.fromkeys(("run", "layout_id", "source_sha256"), "x"),
            "round": 1,
            "config": '{"banks": 0}',
            "numbers": 0,
        }
    )
    lines = (
        b"",
        b"hello\n",
        b'{"numbers": 99999999999}\n',
        b'{"numbers": 2}\nxxxx',
        b'{"numbers": 0}\n',
        f"{odd}\n".encode(),
    )
    for garbage in lines:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(socket_path(bank.facts)))
            connection.sendall(garbage)
    process = bank.process
    bank.ask()
    assert bank.process == process


def test_one_that_was_killed_or_has_other_code_is_restarted(shared: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = shared
    bank.ask()
    earlier = psutil.Process(bank.process)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "source_fingerprint", lambda: "0" * 64)
        bank.ask()
    assert not earlier.is_running(), "two would hold two models"
    killed = bank.process
    os.kill(killed, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(killed)] if psutil.pid_exists(killed) else [], timeout=10)
    bank.ask()
    assert bank.process != killed


@pytest.mark.parametrize(("words", "code"), [((), "internal"), (PRIVATE, "privacy")], ids=["open", "private"])
def test_one_that_dies_at_work_is_an_error_and_not_done_again(
    shared: Bank, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: str
) -> None:
    bank = shared
    bank.ask()
    os.kill(bank.process, signal.SIGSTOP)
    sent: list[int] = []
    real = worker._send

    def send(*arguments: Any) -> None:
        real(*arguments)
        sent.append(bank.process)
        os.kill(bank.process, signal.SIGKILL)

    monkeypatch.setattr(worker, "_send", send)
    with pytest.raises(BankError) as error:
        bank.ask(*words)
    assert (error.value.code, len(sent)) == (code, 1)


def test_without_work_it_ends(tmp_path: Path) -> None:
    bank = Bank(tmp_path, **{"worker-idle-s": 1.0})
    bank.ask()
    deadline = time.monotonic() + 30
    while socket_path(bank.facts).exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("at_work", [False, True], ids=["idle", "at work"])
def test_it_ends_at_once_with_the_bank_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_work: bool
) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        bank = Bank(tmp_path, **{"bank-process": f"{started.pid}:{start_of(started.pid)}"})
        bank.ask()
        process = psutil.Process(bank.process)
        assert "ends at once" in OUTCOMES["bank start killed"].does
        waiting: list[str] = []
        asking = threading.Thread(target=lambda: waiting.append(asked(bank)))
        if at_work:
            real, sent = worker._send, threading.Event()
            monkeypatch.setattr(worker, "_send", lambda *arguments: (real(*arguments), sent.set())[0])
            asking.start()
            assert sent.wait(60)
        assert process.is_running()
        started.kill()
        process.wait(timeout=20)
        assert not socket_path(bank.facts).exists()
        if at_work:
            asking.join(60)
            assert waiting == ["internal"]


def asked(bank: Bank) -> str:
    """The code of a request that takes long."""
    try:
        bank.ask("train.steps_per_round=5000")
    except BankError as error:
        return error.code
    return "ok"


def test_where_none_can_be_had_the_work_is_done_here(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    here = train_round(bank.request(), bank.facts).delta
    socket_path(bank.facts).parent.mkdir(mode=0o777)
    os.chmod(socket_path(bank.facts).parent, 0o777)
    assert np.array_equal(bank.ask().delta, here), "a folder that others can write to is not used"
    os.chmod(socket_path(bank.facts).parent, 0o700)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert np.array_equal(bank.ask().delta, here)


def test_a_socket_lies_where_its_path_is_short_enough(
    bank: Bank, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = socket_path(bank.facts)
    assert near.is_relative_to(sockets)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(sockets / ("deep" * 20)))
    assert socket_path(bank.facts) == Path(tempfile.gettempdir()) / near.relative_to(sockets)
    monkeypatch.setattr(tempfile, "tempdir", str(sockets / ("deep" * 20)))
    assert socket_path(bank.facts) == Path("/tmp") / near.relative_to(sockets)


def test_a_worker_answers_within_its_memory_limit_and_fails_beyond_it(tmp_path: Path) -> None:
    bank = Bank(tmp_path, **{"worker-memory-gib": 0.15})
    with pytest.raises(BankError) as error:
        bank.ask()
    assert error.value.code in ("memory", "internal", "model")
