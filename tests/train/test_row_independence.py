"""What reaches the server besides the noisy delta does not depend on rows, and what the bank books is what it does:
each found by somebody who tried.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from private_bank import ask, config_of, facts, lines_of, own_rows, refused
from tiny_runs import write_lines, write_rows

import client_app.prepared_rows
import client_app.privacy_plan
from client_app.facts import BankFacts, bank_facts
from client_app.prepared_rows import bank_rows
from fedfinlora.deployment.bank_settings import BankSettings, settings_text
from fedfinlora.deployment.policy import Policy
from fedfinlora.errors import UserError
from fedfinlora.model.loading import get_session
from fedfinlora.privacy.cohorts import CUSTOMER_BIT, hash_rows
from fedfinlora.privacy.ledger import read_lines
from fedfinlora.privacy.ledger_repair import book_as_spent, reconcile
from fedfinlora.wire.messages import TrainRequest, pack_request, unpack_request

NOISE = ("privacy.epsilon=0", "privacy.noise_multiplier=4")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"), train=60)


@pytest.fixture(autouse=True)
def forget() -> None:
    client_app.prepared_rows._rows.clear()
    client_app.privacy_plan._tested.clear()


def bank_file(place: Path, task: str = "fpb") -> Path:
    return place / "bank" / "train" / f"{task}_train.jsonl"


def test_the_reported_epsilon_does_not_show_that_two_tasks_share_a_row(rows: Path, tmp_path: Path) -> None:
    reported = []
    for name, shared in (("apart", False), ("shared", True)):
        place = tmp_path / name
        write_lines(bank_file(place), lines_of("fpb", 40))
        write_lines(bank_file(place, "tfns"), [*lines_of("tfns", 39), lines_of("fpb" if shared else "tfns", 40)[-1]])
        at = own_rows(place)
        reported.append(
            [
                ask(config_of(rows, place, *NOISE, f"dataset.tasks=[{task}]"), at).figures.epsilon_spent
                for task in ("fpb", "tfns")
            ]
        )
    assert reported[0] == reported[1]


def test_spellings_of_a_customer_are_one_customer_to_clip_and_ledger(rows: Path, tmp_path: Path) -> None:
    names = ["cust 1", "CUST  1", "ｃust 1", "cust\u00a01", "cust\u200b 1", "other"]
    lines = [
        json.dumps({"context": f"row {n} Answer:", "target": "x", "issuer": names[n % len(names)]}) for n in range(36)
    ]
    write_lines(bank_file(tmp_path), lines)
    config, at = config_of(rows, tmp_path, "privacy.unit=customer"), own_rows(tmp_path)
    found = bank_rows(config, at, get_session(config).tokenizer)
    assert sorted(map(len, found.units)) == [6, 30]
    assert len(set((hash_rows(found.in_ledger, bytes(32)).customers & CUSTOMER_BIT).tolist())) == 1
    assert len(set(hash_rows(found.in_ledger, bytes(32)).customers.tolist())) == len(found.units)


def test_a_row_without_a_customer_is_dropped_and_no_reason_to_refuse(rows: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"context": f"row {n} Answer:", "target": "x", "issuer": f"c {n % 10}"}) for n in range(40)]
    write_lines(bank_file(tmp_path), [*lines, json.dumps({"context": "no one's Answer:", "target": "x"})])
    config, at = config_of(rows, tmp_path, "privacy.unit=customer"), own_rows(tmp_path)
    assert ask(config, at).figures.steps == 2
    assert len(bank_rows(config, at, get_session(config).tokenizer).train) == 40


def test_one_bad_line_is_never_a_reason_to_refuse(rows: Path, tmp_path: Path) -> None:
    write_lines(bank_file(tmp_path), [*lines_of("fpb", 40), "no row"])
    assert ask(config_of(rows, tmp_path, "dataset.on_bad_row=stop"), own_rows(tmp_path)).figures.steps == 2


def test_fewer_units_with_budget_than_min_units_are_not_trained_on(rows: Path, tmp_path: Path) -> None:
    write_lines(bank_file(tmp_path), lines_of("fpb", 40))
    at = own_rows(tmp_path, declared_rows=("fpb:60",), min_units=20)
    spent = ask(config_of(rows, tmp_path), at).figures.epsilon_spent
    write_lines(bank_file(tmp_path), lines_of("fpb", 41))
    refused(config_of(rows, tmp_path), replace(at, budget_epsilon=spent * 1.01), "fewer than min_units=20")


def test_a_resident_process_does_not_train_on_changed_or_deleted_rows(rows: Path, tmp_path: Path) -> None:
    write_lines(bank_file(tmp_path), lines_of("fpb", 40))
    config, at = config_of(rows, tmp_path), own_rows(tmp_path)
    tokenizer = get_session(config).tokenizer
    assert len(bank_rows(config, at, tokenizer).train) == 40
    write_lines(bank_file(tmp_path), lines_of("fpb", 30))
    assert len(bank_rows(config, at, tokenizer).train) == 30
    bank_file(tmp_path).unlink()
    with pytest.raises(UserError):
        bank_rows(config, at, tokenizer)
    assert not client_app.prepared_rows._rows


def with_history(rows: Path, place: Path) -> BankFacts:
    """A bank with a bank.yaml, and so a history."""
    policy = Policy(models=("memory:tiny-random",), privacy=("example",), max_epsilon=0.0)
    settings = BankSettings(name="north", data=str(rows), declared_rows=("fpb:60",), policy=policy)
    (place / "bank.yaml").write_text(settings_text(settings), "utf-8")
    return bank_facts(
        {"settings": str(place / "bank.yaml"), "state-dir": str(place / "state"), "ledger-dir": str(place / "ledger")}
    )


def test_the_banks_own_history_is_a_witness_when_the_server_sends_no_head(rows: Path, tmp_path: Path) -> None:
    at, config = with_history(rows, tmp_path), config_of(rows, tmp_path, *NOISE)
    ask(config, at)
    shutil.copytree(at.ledger_folder, tmp_path / "old")
    ask(config, at, 2)
    shutil.rmtree(at.ledger_folder)
    for with_old in (False, True):
        if with_old:
            shutil.rmtree(at.ledger_folder, ignore_errors=True)
            shutil.copytree(tmp_path / "old", at.ledger_folder)
        refused(config, at, "the bank's own history")
    reconcile(at.ledger_folder, at.history_file)
    assert ask(config, at, 3).figures.steps == 2


def test_a_repair_of_the_wrong_folder_or_with_no_history_is_refused(rows: Path, tmp_path: Path) -> None:
    at, config = with_history(rows, tmp_path), config_of(rows, tmp_path, *NOISE)
    ask(config, at)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="other things"):
        book_as_spent(tmp_path / "home")
    (tmp_path / "empty.jsonl").write_text("")
    for wrong in (tmp_path / "empty.jsonl", at.ledger_folder / "key"):
        with pytest.raises(UserError, match="history"):
            reconcile(at.ledger_folder, wrong)
    assert len(read_lines(at.ledger_folder)) == 1


@pytest.mark.parametrize("run", ["r\n    9  forged", "r\x1b[2J", "r" * 300, "..", "a/b", ""])
def test_a_run_name_that_could_forge_a_line_of_a_log_is_refused(rows: Path, tmp_path: Path, run: str) -> None:
    config = config_of(rows, tmp_path)
    session = get_session(config)
    request = TrainRequest(config, run, 1, session.layout.id, "0" * 64, session.untrained)
    with pytest.raises(UserError, match=r"run name|run is not a text of"):
        unpack_request(pack_request(request))


def test_more_rounds_than_an_accountant_can_add_up_are_refused(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_server_rounds"):
        config_of(rows, tmp_path, rounds=10**9)
    assert facts(tmp_path).banks == 2
