"""A privacy officer's walk through docs/privacy.md: a bank with a budget, a ledger that is looked at, lost, rolled back
and made usable again.

tests/project/test_docs.py runs the other commands of that page.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from documents import OURS
from private_bank import config_of
from tiny_runs import write_rows

import client_app.prepared_rows
import client_app.privacy_plan
from client_app.bank import RoundReply, train_round
from client_app.facts import BankFacts, bank_facts
from fedfinlora.cli import main
from fedfinlora.config.schema import Config
from fedfinlora.deployment.bank_settings import BankSettings, settings_text
from fedfinlora.deployment.policy import Policy
from fedfinlora.model.loading import get_session, initial_adapter
from fedfinlora.privacy.head import Head
from fedfinlora.privacy.history import read_history
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.wire.messages import BankError, TrainRequest

WORDS = ("privacy.epsilon=2", "num_server_rounds=2", "privacy.delta=0")


@pytest.fixture
def bank(tmp_path: Path) -> BankFacts:
    """A deployed bank with a bank.yaml: budget, declared sizes, its own least units."""
    rows = write_rows(tmp_path / "rows", train=120)
    settings = BankSettings(
        name="north",
        data=str(rows),
        budget_epsilon=3.0,
        declared_rows=("fpb:120",),
        min_units=50,
        min_rows=50,
        policy=Policy(models=("memory:tiny-random",), privacy=("example",), max_epsilon=2.0),
    )
    (tmp_path / "bank.yaml").write_text(settings_text(settings), "utf-8")
    client_app.prepared_rows._rows.clear()
    client_app.privacy_plan._tested.clear()
    node = {
        "settings": str(tmp_path / "bank.yaml"),
        "state-dir": str(tmp_path / "state"),
        "ledger-dir": str(tmp_path / "ledger"),
    }
    return bank_facts(node)


def ask(config: Config, at: BankFacts, number: int, run: str = "run", seen: Head | None = None) -> RoundReply:
    session = get_session(config)
    adapter = initial_adapter(session, config)
    heads = {at.name: seen} if seen else {}
    return train_round(TrainRequest(config, run, number, session.layout.id, source_fingerprint(), adapter, heads), at)


def refused(config: Config, at: BankFacts, number: int, run: str = "run", seen: Head | None = None) -> BankError:
    with pytest.raises(BankError) as caught:
        ask(config, at, number, run, seen)
    return caught.value


def command(ledger: Path, option: str, history: Path) -> list[str]:
    """The page's own `privacy ledger` command with this option, on the bank's folders."""
    words = next(
        list(found.words[3:])
        for found in OURS
        if found.document.name == "privacy.md"
        and found.words[3:5] == ("privacy", "ledger")
        and (option in found.words or not option)
    )
    return [
        str(history) if word.endswith(".jsonl") else str(ledger) if word.startswith("~") else word for word in words
    ]


def test_the_walk(bank: BankFacts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows"
    config = config_of(rows, tmp_path, *WORDS, "strategy.weighting=equal")
    config = replace(config, train=replace(config.train, batch_rows=12))

    # The first round is accepted, booked, and says so; the page's command shows it.
    first = ask(config, bank, 1)
    assert first.ledger is not None
    assert 0 < first.figures.epsilon_spent <= first.figures.epsilon_planned <= 2.0
    assert first.figures.delta == 1e-5
    assert main(command(bank.ledger_folder, "", bank.history_file)) == 0
    shown = capsys.readouterr().out
    assert "120 rows" in shown
    assert first.ledger.hash in shown

    # What the budget does not allow is refused, and the history says why; the server learns one code.
    for words in (("privacy=none",), ("privacy=bank", "privacy.accept_noise=true")):
        words = (*words, "train.holdout_max_rows=0")
        asked = config_of(
            rows, tmp_path, *words, "privacy.epsilon=0" if words[0] == "privacy=none" else "privacy.epsilon=2"
        )
        assert refused(asked, bank, 1, "other").code == "policy-privacy"
    second = ask(config, bank, 2)
    assert second.ledger is not None
    again = refused(config, bank, 2)
    assert again.code == "privacy", "a third round would bring the run above the policy's max_epsilon"
    assert {line["outcome"] for line in read_history(bank.history_file)} >= {"begun", "booked", "sent", "refused"}

    # A ledger from a backup is refused, since the aggregator has seen a later head.
    shutil.copytree(bank.ledger_folder, tmp_path / "spare")
    ledger_lines = next(bank.ledger_folder.glob("*.jsonl"))
    ledger_lines.write_text("".join(ledger_lines.read_text().splitlines(keepends=True)[:1]))
    rolled_back = refused(config, bank, 1, "later", second.ledger)
    assert rolled_back.code == "privacy"
    assert "--reconcile" in str(rolled_back)
    assert "restore" not in str(rolled_back)

    # Reconciled with the history nothing is forgotten: as much is spent as before.
    assert main(command(bank.ledger_folder, "--reconcile", bank.history_file)) == 0
    assert "booked again" in capsys.readouterr().out
    later = config_of(rows, tmp_path, "privacy.epsilon=0.9", "num_server_rounds=1")
    later = replace(later, train=replace(later.train, batch_rows=12))
    third = ask(later, bank, 1, "later", second.ledger)
    assert second.figures.epsilon_spent < third.figures.epsilon_spent <= 3.0

    # Booked as spent nothing private is trained any more.
    assert main(command(bank.ledger_folder, "--book-as-spent", bank.history_file)) == 0
    assert "inf" in capsys.readouterr().out
    assert refused(later, bank, 1, "last").code == "privacy"


def test_every_file_that_the_page_tells_a_reviewer_to_run_is_there() -> None:
    page = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text("utf-8")
    named = [
        word
        for line in page.splitlines()
        if "python -m pytest" in line
        for word in line.replace("`", " ").split()
        if word.startswith("tests/")
    ]
    assert len(named) >= 5
    assert all((Path(__file__).parents[2] / file).is_file() for file in named)
