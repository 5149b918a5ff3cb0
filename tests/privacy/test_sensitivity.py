"""What one unit can move, through the real `train()` in training mode: the guarantee that everything else rests on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import set_random_adapter, tiny_config

from fedfinlora.config.schema import Config
from fedfinlora.model.adapter import read_adapter, write_adapter
from fedfinlora.model.loading import Session, get_session
from fedfinlora.model.packing import Example
from fedfinlora.privacy import mechanism as under_test
from fedfinlora.privacy.mechanism import Mechanism
from fedfinlora.train.loop import Stretch, train

CLIP = 0.01
"""Low: every unit is clipped, and a unit more could move the sum the furthest."""
ROUNDING = 1e-6
"""Of the parameters' float32, over the number of units."""


def rows(count: int) -> list[Example]:
    """Rows of many lengths with a long common beginning, as prompts of a task have."""
    draw = np.random.default_rng(0)
    start = tuple(draw.integers(3, 200, 20).tolist())
    return [
        Example(
            start + tuple(draw.integers(3, 200, draw.integers(2, 40)).tolist()),
            tuple(draw.integers(3, 200, draw.integers(1, 4)).tolist()),
            number,
        )
        for number in range(count)
    ]


def config_of(quantization: str, method: str, dropout: float, **peft: Any) -> Config:
    config = tiny_config(quantization, method)
    given = {"dropout": dropout, **({"rank": 2} if method == "lora_xs" else {}), **peft}
    train_config = replace(
        config.train, optimizer="sgd", sgd_learning_rate=1.0, weight_decay=0.0, share_prefix=False, batch_tokens=400
    )
    return replace(config, peft=replace(config.peft, **given), train=train_config)


def moved(
    session: Session, config: Config, units: list[list[int]], examples: list[Example], alone: bool, left_out: int
) -> float:
    """How far one step's sum moves, over C, when a unit is removed; the draws, the noise and everybody else's masks
    are the same.
    """
    start = read_adapter(session.model)

    def step(chosen: list[list[int]]) -> np.ndarray:
        write_adapter(session.model, start)
        # Numbered so that a unit keeps its number, and with it its coin and its masks, whether the last one is there or
        # not.
        how = Mechanism(
            CLIP, 1.0, 1.0, tuple(map(tuple, chosen)), 1.0, seed=0, bank="b", reproducible=True, alone=alone
        )
        train(session.model, examples, Stretch(0, 1, 1, 1.0), config.train, seed=0, bank="b", gradient=how)
        found: np.ndarray = (read_adapter(session.model) - start).astype(np.float64)
        return found

    ordered = [unit for number, unit in enumerate(units) if number != left_out] + [units[left_out]]
    with_it, without = step(ordered), step(ordered[:-1])
    write_adapter(session.model, start)
    return float(np.linalg.norm(with_it - without)) / CLIP


COMBINATIONS = [
    ("none", "lora", {}),
    ("nf4", "lora", {}),
    ("int8", "lora", {}),
    ("nf4", "qlora", {}),
    ("none", "rslora", {}),
    ("int8", "rslora", {}),
    ("none", "lora", {"freeze_a": True}),
    ("nf4", "qlora", {"freeze_a": True}),
    ("none", "lora_xs", {}),
    ("nf4", "lora_xs", {}),
]


@pytest.mark.parametrize("alone", [False, True], ids=["packed", "alone"])
@pytest.mark.parametrize("dropout", [0.0, 0.05, 0.3])
@pytest.mark.parametrize(("quantization", "method", "peft"), COMBINATIONS, ids=lambda value: str(value))
def test_a_row_moves_the_sum_by_the_clip_norm_at_most(
    quantization: str, method: str, peft: dict[str, Any], dropout: float, alone: bool
) -> None:
    config = config_of(quantization, method, dropout, **peft)
    session = get_session(config)
    set_random_adapter(session)
    examples = rows(24)
    units = [[place] for place in range(24)]
    for left_out in (0, 11, 23):
        found = moved(session, config, units, examples, alone, left_out)
        assert 0.9 < found <= 1 + ROUNDING, "every unit is clipped here, so one moves the sum by nearly C"


@pytest.mark.parametrize("dropout", [0.0, 0.05])
@pytest.mark.parametrize(("quantization", "method"), [("none", "lora"), ("nf4", "qlora"), ("int8", "rslora")])
def test_a_customer_moves_the_sum_by_the_clip_norm_at_most(quantization: str, method: str, dropout: float) -> None:
    config = config_of(quantization, method, dropout)
    session = get_session(config)
    set_random_adapter(session)
    units = [[0, 5, 9, 13], [1], [2, 3, 4], [6, 7, 8, 10, 11, 12], list(range(14, 24))]
    for left_out in range(len(units)):
        assert 0.9 < moved(session, config, units, rows(24), False, left_out) <= 1 + ROUNDING


@pytest.mark.parametrize("batch", [16, 64])
def test_masks_by_place_in_the_pack_would_break_it(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault that this test is for: dropout as it was, one public seed for the whole step. One row more then moves
    everybody's masks.
    """
    from contextlib import nullcontext

    monkeypatch.setattr(under_test, "dropout_of_units", lambda *arguments: nullcontext())
    config = config_of("nf4", "qlora", 0.05)
    session = get_session(config)
    set_random_adapter(session)
    found = moved(session, config, [[place] for place in range(batch)], rows(batch), False, 0)
    assert found > 1.1
    monkeypatch.undo()
    assert moved(session, config, [[place] for place in range(batch)], rows(batch), False, 0) <= 1 + ROUNDING


def test_augmented_copies_have_masks_of_their_own_and_move_no_more() -> None:
    config = config_of("none", "lora", 0.3)
    session = get_session(config)
    set_random_adapter(session)
    start, examples = read_adapter(session.model), rows(6)

    def step(units: int, copies: int) -> np.ndarray:
        write_adapter(session.model, start)
        how = Mechanism(
            CLIP, 1.0, 0.0, tuple((place,) for place in range(units)), 1.0, seed=0, bank="b", reproducible=True,
            augmentations=copies
        )  # fmt: skip
        train(session.model, examples, Stretch(0, 1, 1, 1.0), config.train, seed=0, bank="b", gradient=how)
        found: np.ndarray = (read_adapter(session.model) - start).astype(np.float64)
        return found

    assert np.linalg.norm(step(6, 4) - step(5, 4)) / CLIP <= 1 + ROUNDING
    assert np.linalg.norm(step(6, 4) - step(6, 1)) / CLIP > 0.05, "other masks, another mean"
    write_adapter(session.model, start)
