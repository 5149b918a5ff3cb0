"""A bank under privacy=example with few rows: its settings, one round of it, and a round that it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import overrides

from client_app.bank import RoundReply, train_round
from client_app.facts import BankFacts
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.model.loading import get_session, initial_adapter
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.wire.messages import BankError, TrainRequest

PRIVATE = ("privacy=example", "privacy.epsilon=8")


def config_of(rows: Path, place: Path, *more: str, rounds: int = 4) -> Config:
    return compose(overrides(rows, place / "runs", *PRIVATE, *more, rounds=rounds))


def facts(place: Path, name: str = "north", banks: int = 2, **values: Any) -> BankFacts:
    return BankFacts(name, 0, banks, "", place / "state", place / "ledger", **values)


def own_rows(place: Path, **values: Any) -> BankFacts:
    """A bank with the rows below `place`/bank; it declares the sizes that most tests give it."""
    declared = {"declared_rows": ("fpb:40", "tfns:40", "customers:10"), **values}
    return replace(facts(place, banks=0, **declared), data_path=str(place / "bank"))


def ask(config: Config, at: BankFacts, round_number: int = 1, run: str = "run-1", **changes: Any) -> RoundReply:
    session = get_session(config)
    adapter = initial_adapter(session, config)
    request = TrainRequest(config, run, round_number, session.layout.id, source_fingerprint(), adapter)
    return train_round(replace(request, **changes), at)


def refused(config: Config, at: BankFacts, reason: str, round_number: int = 1, **changes: Any) -> None:
    """Refused as `privacy`, the one code for all that depends on rows, ledger or budget."""
    with pytest.raises(BankError, match=reason) as caught:
        ask(config, at, round_number, **changes)
    assert caught.value.code == "privacy"


def lines_of(task: str, count: int) -> list[str]:
    return [json.dumps({"context": f"{task} {number} Answer:", "target": "positive"}) for number in range(count)]
