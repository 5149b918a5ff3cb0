"""Which memory of its rounds a bank has, by optimiser and rule; what each is worth, `test_rules_at_banks` shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import overrides

from client_app.facts import BankFacts
from client_app.memories import REMEMBERING, LocalRound, memory_of
from fedfinlora.compose import compose
from fedfinlora.config.strategy import STRATEGIES
from fedfinlora.model.loading import get_session, initial_adapter
from fedfinlora.train.gradient_step import PLAIN
from fedfinlora.train.loop import Stretch
from fedfinlora.wire.messages import TrainRequest

SGD = "train.optimizer=sgd"


@pytest.mark.parametrize(
    ("words", "memory"),
    [
        (("train.optimizer=adamw", "train.optimizer_state=keep"), "Moments"),
        (("train.optimizer=adamw", "train.optimizer_state=reset"), "NoMemory"),
        ((SGD,), "NoMemory"),
        (("strategy=rolora", "train.optimizer=adamw"), "NoMemory"),
        (("strategy=scaffold", SGD), "ControlVariate"),
        (("strategy=fedadamw_local", "train.optimizer=adamw"), "GlobalStep"),
    ],
)
def test_a_bank_remembers_what_its_rule_and_optimiser_go_on_from(
    tmp_path: Path, words: tuple[str, ...], memory: str
) -> None:
    config = compose([*overrides(tmp_path, tmp_path), *words])
    session = get_session(config)
    request = TrainRequest(config, "run-1", 1, session.layout.id, "", initial_adapter(session, config))
    now = LocalRound(request, BankFacts("bank-0", 0, 2, "", tmp_path), session, [], Stretch(0, 2, 4, 2.0), PLAIN)
    assert type(memory_of(now)).__name__ == memory


def test_only_rules_that_there_are_remember() -> None:
    assert set(REMEMBERING) <= set(STRATEGIES)
