"""One SGD step a round at the banks and AdamW at the server are centralised AdamW on the banks' batches pooled.

The banks' side is the real round of `client_app.bank`, without Flower; the other side is the training loop on the same
rows together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import MakeSession, text_examples, tiny_config

from client_app.local_training import train_received
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.config.train import TrainConfig
from fedfinlora.errors import ConfigError
from fedfinlora.model.adapter import Vector, read_adapter, write_adapter
from fedfinlora.model.loading import Session
from fedfinlora.model.packing import Example
from fedfinlora.train.loop import Stretch, train
from fedfinlora.train.optimizers import OptimizerState
from fedfinlora.train.row_order import rows_of_step
from fedfinlora.wire.messages import Figures, Reply
from server_app.replies import replies_of
from server_app.strategies import rule_of
from server_app.strategies.strategy import ServerState, take_step

ROUNDS, BATCH, BANKS = 5, 8, 4
AGREE = 1e-5
"""Of the adapter, as the length of the difference over its own."""
ONE_NUMBER = 3e-5
"""Of a single number: Adam divides by the root of a second moment that may be near 0, and enlarges the rounding of
float32, which differs between CPUs.
"""


def by_filer(rows: list[Example]) -> list[list[Example]]:
    """The rows of a filer (here: of a first letter) stay together, so that banks have unequal numbers of rows."""
    found: list[list[Example]] = [[] for _ in range(BANKS)]
    for row in rows:
        found[row.prompt_ids[11] % BANKS].append(row)
    return found


def by_label(rows: list[Example]) -> list[list[Example]]:
    """A bank has answers of one length only: banks differ in their answer tokens as much as they can."""
    return [[row for row in rows if len(row.answer_ids) == length] for length in (1, 2, 3, 4)]


DIVISIONS = {"iid": lambda rows: [rows[bank::BANKS] for bank in range(BANKS)], "label": by_label, "filer": by_filer}


def bank_rows(kind: str) -> list[list[Example]]:
    """The rows of each bank, numbered from 0 as a bank numbers its own."""
    parts = [part for part in DIVISIONS[kind](text_examples(64, seed=3)) if part]
    return [[replace(row, index=place) for place, row in enumerate(part)] for part in parts]


def federated(session: Session, start: Vector, parts: list[list[Example]], config: Config) -> Vector:
    """The adapter after ROUNDS rounds of one SGD step at each bank and the server's rule."""
    rule = rule_of(config.strategy, ROUNDS)
    state = ServerState(0, start)
    for number in range(ROUNDS):
        replies = []
        for bank, rows in enumerate(parts):
            stretch = Stretch(number, 1, ROUNDS, BATCH / BANKS)
            delta, result = train_received(session, state.adapter, rows, stretch, config, f"bank-{bank}")
            figures = Figures(result.rows, 1, result.tokens, result.answer_tokens, result.loss, 0, 0.0, 0.0, 0.0, 0, 0)
            replies.append(Reply(f"bank-{bank}", delta, figures, 1.0))
        state = take_step(rule, state, replies_of(replies, rule.weights(replies)))
    return state.adapter


def centralized(session: Session, start: Vector, parts: list[list[Example]], config: TrainConfig) -> Vector:
    """The adapter after as many AdamW steps on the rows that the banks' steps take, pooled."""
    write_adapter(session.model, start)
    moments: OptimizerState | None = None
    for number in range(ROUNDS):
        pooled = [
            rows[place]
            for bank, rows in enumerate(parts)
            for place in rows_of_step(number, len(rows), BATCH / BANKS, 0, f"bank-{bank}")
        ]
        numbered = [replace(row, index=place) for place, row in enumerate(pooled)]
        stretch = Stretch(number, 1, ROUNDS, len(numbered))
        result = train(session.model, numbered, stretch, config, seed=0, bank="pooled", optimizer=moments)
        moments = result.optimizer
    return read_adapter(session.model)


@pytest.mark.parametrize("kind", DIVISIONS)
@pytest.mark.parametrize(("clip_norm", "weight_decay"), [(0.0, 0.0), (0.05, 0.1)])
def test_one_sgd_step_and_server_adamw_are_pooled_adamw(
    session_of: MakeSession, kind: str, clip_norm: float, weight_decay: float
) -> None:
    session, parts = session_of(), bank_rows(kind)
    start = read_adapter(session.model)
    pooled = TrainConfig(
        learning_rate=1e-3, schedule="cosine", warmup_steps=0, clip_norm=clip_norm, weight_decay=weight_decay
    )  # fmt: skip
    strategy = StrategyConfig(
        name="fedadamw", weighting="answer_tokens", server_learning_rate=1e-3, schedule="cosine", beta2=0.999,
        tau=1e-8, clip_norm=clip_norm, weight_decay=weight_decay,
    )  # fmt: skip
    config = tiny_config(
        train=replace(pooled, optimizer="sgd", steps_per_round=1, clip_norm=0.0, weight_decay=0.0),
        strategy=strategy, num_server_rounds=ROUNDS, banks=BANKS, seed=0,
    )  # fmt: skip
    expected, found = centralized(session, start, parts, pooled), federated(session, start, parts, config)
    assert np.abs(expected - start).max() > 2e-3, "the adapter has moved"
    assert np.linalg.norm(found - expected) <= AGREE * np.linalg.norm(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ONE_NUMBER)


def test_without_the_weights_of_answer_tokens_the_runs_differ(session_of: MakeSession) -> None:
    session, parts = session_of(), bank_rows("label")
    start = read_adapter(session.model)
    pooled = TrainConfig(learning_rate=1e-3, schedule="constant", warmup_steps=0, clip_norm=0.0)
    strategy = StrategyConfig(name="fedadamw", weighting="rows", server_learning_rate=1e-3, beta2=0.999, tau=1e-8)
    config = tiny_config(train=replace(pooled, optimizer="sgd", steps_per_round=1), strategy=strategy)
    expected, found = centralized(session, start, parts, pooled), federated(session, start, parts, config)
    assert np.abs(expected - found).max() > 1e-4


def test_the_recipe_of_the_identity_composes() -> None:
    config = compose(["experiment=identity", "dataset.root=rows"])
    assert (config.strategy.name, config.strategy.weighting) == ("fedadamw", "answer_tokens")
    assert (config.train.optimizer, config.train.steps_per_round, config.train.clip_norm) == ("sgd", 1, 0.0)
    assert config.strategy.clip_norm > 0


@pytest.mark.parametrize(
    ("values", "named"), [({"weight_decay": 0.1}, "strategy.weight_decay"), ({"clip_norm": 1.0}, "strategy.clip_norm")]
)
def test_settings_of_fedadamw_under_another_rule_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"{named} belongs to strategy=fedadamw"):
        StrategyConfig(name="fedavg", **values)
