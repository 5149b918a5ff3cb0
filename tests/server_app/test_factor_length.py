"""A bank that writes an honest product in factors of its own is named, and honest banks are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_grid import only, with_delta
from flwr.app import Message
from round_runs import Runs
from tiny_runs import rounds_of, write_rows

from fedfinlora.commands.verify import verify
from fedfinlora.model.adapter import Layout, Vector
from fedfinlora.model.loading import get_session
from fedfinlora.run.far_factors import MOST_RATIO, furthest, warning
from fedfinlora.run.records import FactorLength, RoundLine
from server_app.factor_length import factor_length

LAYOUT = Layout(("a.lora_A.weight", "a.lora_B.weight"), ((2, 30), (20, 2)))
ONE_TRAINED = Layout(("a.lora_B.weight",), ((20, 2),))


def drawn(seed: int, scale: float = 1.0) -> Vector:
    return np.random.default_rng(seed).normal(0, scale, LAYOUT.size).astype(np.float32)


def in_gauge(start: Vector, update: Vector, gauge: np.ndarray, layout: Layout = LAYOUT) -> Vector:
    """The update with the same product in factors B G and G^-1 A."""
    changed = (start + update).copy()
    for layer in layout.layers:
        a, b = layer.of(changed)
        a[:], b[:] = np.linalg.inv(gauge) @ a, b @ gauge
    return changed - start


@pytest.mark.parametrize(
    "gauge", [3 * np.eye(2), np.eye(2) / 3, np.array([[0.0, 1.0], [-1.0, 0.0]]), np.diag([5.0, 0.2])],
    ids=["longer", "shorter", "turned", "stretched"],
)  # fmt: skip
def test_an_honest_product_in_other_factors_is_named(gauge: np.ndarray) -> None:
    start = drawn(0)
    updates = {f"bank-{number}": drawn(number, 0.03) for number in range(1, 5)}
    honest = factor_length(start, sorted(updates), LAYOUT, lambda bank, block: updates[bank][block])
    assert honest is not None
    assert honest.ratio < 1.5
    updates["bank-3"] = in_gauge(start, updates["bank-3"], gauge)
    found = factor_length(start, sorted(updates), LAYOUT, lambda bank, block: updates[bank][block])
    assert found is not None
    assert found.bank == "bank-3"
    assert found.ratio > MOST_RATIO
    assert "bank-3 moves A and B" in warning(found, "fedavg")
    assert not warning(found, "norm_clip"), "it steps along products"


def test_one_bank_still_banks_and_one_factor_say_nothing() -> None:
    start, update = drawn(0), drawn(1)
    assert factor_length(start, ["one"], LAYOUT, lambda _, block: update[block]) is None
    assert factor_length(start, ["one", "two"], LAYOUT, lambda _, block: np.zeros_like(update[block])) is None
    assert factor_length(start[:40], ["one", "two"], ONE_TRAINED, lambda _, block: update[:40][block]) is None
    assert not warning(FactorLength("one", 1.2), "fedavg")


def test_a_bank_of_a_lower_rank_is_measured_on_the_ranks_that_it_trains() -> None:
    """Its update takes the others away, which moves A far and, where B is zero, no product."""
    start, updates = drawn(0), {f"bank-{number}": drawn(number, 0.03) for number in range(1, 5)}
    for layer in LAYOUT.layers:
        (a, b), (da, db) = layer.of(start), layer.of(updates["bank-1"])
        b[:] = 0.0
        da[1:], db[:, 1:] = -a[1:], 0.0

    def measured(ranks: dict[str, int]) -> FactorLength:
        found = factor_length(start, sorted(updates), LAYOUT, lambda bank, block: updates[bank][block], ranks)
        assert found is not None
        return found

    assert measured({}).ratio > MOST_RATIO
    assert measured({"bank-1": 1}).ratio < 1.5
    updates["bank-1"] = in_gauge(start, updates["bank-1"], np.diag([1 / 8, 1.0]))
    assert measured({"bank-1": 1}).bank == "bank-1"
    assert "bank-1" in warning(measured({"bank-1": 1}), "residual")


@pytest.mark.parametrize("rule", ["residual", "hetlora"])
def test_honest_banks_of_mixed_ranks_are_not_named(rule: str, tmp_path: Path) -> None:
    runs = Runs(write_rows(tmp_path / "rows"), tmp_path)
    words = (f"strategy={rule}", "strategy.keep_deltas=true", "peft.rank=16", "strategy.ranks=[bank-0:1,bank-1:14]",
             "train.learning_rate=0.01")  # fmt: skip
    run = runs.start("run", *words, banks=3)
    ratios = [line["factors"]["ratio"] for line in rounds_of(run)]
    assert max(ratios) < 1.5, ratios
    assert "moves A and B" not in (run / "progress.jsonl").read_text("utf-8")
    assert verify(run) != 1, "cosines on shared ranks are computed again too"


def test_rules_that_average_factors_warn() -> None:
    """HetLoRA weighs by products and averages A and B apart."""
    assert all(warning(FactorLength("one", 9.0), rule) for rule in ("fedavg", "residual", "hetlora"))


def test_the_furthest_bank_of_all_rounds_is_said_and_a_far_one_warned_of() -> None:
    lines = [
        RoundLine(1),
        RoundLine(2, factors=FactorLength("one", 1.236)),
        RoundLine(3, factors=FactorLength("two", 1.1)),
    ]
    assert furthest(lines[:1], "fedavg") == ""
    assert furthest(lines, "fedavg") == (
        "No bank's factors stand out. Furthest for what it changed of B A, one moved A and B 1.24 times as far as the "
        "median bank (round 2)."
    )
    lines.append(RoundLine(4, factors=FactorLength("two", 9.0)))
    assert furthest(lines, "fedavg").startswith("Round 4: two moves A and B 9 times as far")
    assert furthest(lines, "krum").endswith("9 times as far as the median bank (round 4).")


def test_a_run_warns_of_the_bank_and_verify_computes_it_again(tmp_path: Path) -> None:
    runs = Runs(write_rows(tmp_path / "rows"), tmp_path)
    words = ("strategy.keep_deltas=true", "train.learning_rate=1e-2", "train.steps_per_round=4")
    honest = runs.start("honest", *words, "strategy.max_update_norm=0", rounds=4, banks=3)
    ratios = [line["factors"]["ratio"] for line in rounds_of(honest)]
    assert max(ratios) < 1.5, ratios
    assert verify(honest) != 1
    layout = get_session(runs.config("layout", *words)).layout

    def spoil(message: Message, reply: Message) -> Message:
        from fedfinlora.wire.messages import unpack_request

        start = unpack_request(message.content).adapter
        gauge = np.eye(layout.layers[0].a_shape[0]) * 4
        return Message(with_delta(reply, lambda delta: in_gauge(start, delta, gauge, layout)), reply_to=message)

    run = runs.start("run", *words, "strategy.max_update_norm=0", rounds=2, banks=3, tamper=only("bank-1", spoil))
    assert [line["factors"]["bank"] for line in rounds_of(run)] == ["bank-1"] * 2
    assert "bank-1 moves A and B" in (run / "progress.jsonl").read_text("utf-8")
