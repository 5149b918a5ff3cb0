"""A coordinator's folder with one run that is finished and one that is running, and a bank's that has sent a round,
for the tests of metrics and status page.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from pathlib import Path

from report_runs import make_run, round_record

from fedfinlora.deployment.bank_settings import SETTINGS, BankSettings, settings_text
from fedfinlora.deployment.certificates import issue_server, issue_signing, make_authority
from fedfinlora.deployment.run_list import note_run
from fedfinlora.files import write_bytes, write_json
from fedfinlora.privacy.head import Head
from fedfinlora.privacy.history import Event, history_file, record
from fedfinlora.privacy.ledger_files import write_head
from fedfinlora.run.events import BankDone, BanksDrawn, Phase, RoundDone, RoundStart, RunDone, RunStart
from fedfinlora.run.progress import EventWriter

HOSTILE = "<b>bank & co</b>"
"""A name that no bank can be enrolled under; a damaged run folder may hold it."""
RULE = "The bank's policy does not allow an adapter of this rank (rule: max_rank)."


def bank_done(
    events: EventWriter, number: int, bank: str, status: str = "ok", code: str = "", reason: str = ""
) -> None:
    events.write(
        BankDone(
            round=number, bank=bank, status=status, code=code, reason=reason,
            rows=160, train_loss=2.0 / number, seconds=5.5, rows_per_s=29.0, tokens_per_s=800.0,
        )
    )  # fmt: skip


def run_start(events: EventWriter, name: str, rounds: int, process: int) -> None:
    events.write(
        RunStart(
            run=name, model="smollm2-135m", peft="lora", strategy="fedavg", rounds=rounds, banks=2, run_dir="",
            mode="federated", process=process,
        )
    )  # fmt: skip


def make_home(home: Path, days: int = 5, process: int = 0) -> Path:
    """`process` is the server of the running run; 0 = this one."""
    make_authority(home, 3650)
    issue_server(home, ["aggregator.example"], days)
    issue_signing(home, 365)
    for name in ("bank-0", "bank-1", "bank-2"):
        write_bytes(home / "enrolled" / f"{name}.pub", b"key")
    write_json(home / "banks.json", {"bank-0": str(2**64 - 5), "bank-1": "7"})
    with sqlite3.connect(home / "state.db") as database:
        database.execute("CREATE TABLE node (node_id INTEGER, status TEXT, online_until REAL)")
        rows = [(-5, "online", time.time() + 60), (7, "online", time.time() - 60)]
        database.executemany("INSERT INTO node VALUES (?, ?, ?)", rows)
    database.close()
    note_run(home, finished(home.parent / "runs" / "finished"))
    note_run(home, going_on(home.parent / "runs" / "going-on", process or os.getpid()))
    return home


def finished(folder: Path) -> Path:
    make_run(folder, rounds=3, reason=RULE)
    with EventWriter(folder / "progress.jsonl") as events:
        run_start(events, folder.name, 3, 1)
        for number in (1, 2, 3):
            events.write(RoundStart(round=number))
            events.write(BanksDrawn(round=number, banks=("bank-0", "bank-1")))
            bank_done(events, number, "bank-0")
            refused = {"status": "error", "code": "policy-max_rank", "reason": RULE} if number == 3 else {}
            bank_done(events, number, "bank-1", **refused)
            events.write(RoundDone(round=number, train_loss=2.4 / number, holdout_loss=2.6 / number, seconds=12.1))
        events.write(RunDone(status="completed"))
    return folder


def going_on(folder: Path, process: int) -> Path:
    """Resumed after round 1; round 2 waits for one of its two banks. bank-1 is private."""
    make_run(folder, rounds=1, final=None)
    os.unlink(folder / "result.json")
    line = round_record(1, 2)
    line["banks"][1]["privacy"] = {"epsilon_planned": 8.0, "epsilon_spent": 1.25, "delta": 1e-5}
    (folder / "rounds.jsonl").write_text(json.dumps(line) + "\n")
    with EventWriter(folder / "progress.jsonl") as events:
        run_start(events, folder.name, 4, 1)
        events.write(RoundStart(round=1))
        bank_done(events, 1, "bank-0")
        bank_done(events, 1, "bank-1")
        events.write(RoundDone(round=1, train_loss=2.4, holdout_loss=2.6, seconds=12.1))
        run_start(events, folder.name, 4, process)
        events.write(Phase(name="training"))
        events.write(RoundStart(round=2))
        events.write(BanksDrawn(round=2, banks=("bank-1", HOSTILE)))
        bank_done(events, 2, HOSTILE, status="late", code="late", reason="<script>alert(1)</script>")
    return folder


def without_the_run_folder(home: Path, name: str) -> None:
    shutil.rmtree(home.parent / "runs" / name)


def a_bank_that_has_worked(home: Path, budget_epsilon: float = 8.0) -> Path:
    """north, with one round that was sent and booked as line 3 of its ledger, and one that it refused."""
    make_authority(home, 3650)
    shutil.copy(home / "ca.crt", home / "bank.crt")
    write_bytes(
        home / SETTINGS, settings_text(BankSettings(name="north", data="/rows", budget_epsilon=budget_epsilon)).encode()
    )
    (home / "ledger").mkdir()
    write_head(home / "ledger", Head(3, 64 * "a"))
    file = history_file(home / "state", "north")
    record(file, Event("run", 1, "begun", bytes_received=400))
    record(
        file,
        Event(
            "run", 1, "sent", rows=8, steps=2, bytes_sent=400, bytes_received=400, ledger_number=3, epsilon_spent=6.5
        ),
    )
    record(file, Event("run", 2, "refused", code="policy-max_rank"))
    return home
