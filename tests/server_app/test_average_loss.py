"""What averaging lost, against dense matrices, and its place in a run: rounds.jsonl, TensorBoard, verify."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from round_runs import Runs
from tiny_runs import rounds_of, write_rows

from fedfinlora.commands.verify import verify
from fedfinlora.model.adapter import Layout
from fedfinlora.report.tensorboard import round_scalars
from fedfinlora.run.records import AverageLoss, read_rounds
from fedfinlora.run.typed import to_json
from fedfinlora.wire.messages import Figures, Reply
from server_app.average_loss import MOST_BANKS, average_loss

LAYOUT = Layout(
    ("a.lora_A.weight", "a.lora_B.weight", "b.lora_A.weight", "b.lora_B.weight"), ((2, 5), (4, 2), (2, 3), (6, 2))
)


def drawn(seed: int, scale: float = 1.0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, scale, LAYOUT.size).astype(np.float32)


def replies(*updates: NDArray[Any]) -> list[Reply]:
    figures = Figures(4, 1, 10, 5, 1.0, 0, 0.0, 0.0, 0.0, 4, 0)
    return [
        Reply(f"bank-{number:04}", np.asarray(update, np.float32), figures, float(np.linalg.norm(np.float64(update))))
        for number, update in enumerate(updates)
    ]


def dense(adapter: NDArray[Any]) -> list[NDArray[np.float64]]:
    return [np.asarray(b @ a) for a, b in (layer.of(np.asarray(adapter, np.float64)) for layer in LAYOUT.layers)]


def stacked(matrices: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate([matrix.reshape(-1) for matrix in matrices])


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [5.0, 2.0, 1.0]])
def test_what_was_lost_equals_dense_matrices(weights: list[float]) -> None:
    start, updates = drawn(0), [drawn(number, 0.3) for number in (1, 2, 3)]
    shares = np.array(weights) / sum(weights)
    found = average_loss(start, 0.25, replies(*updates), weights, LAYOUT)
    assert found is not None
    banks = [dense(start + update.astype(np.float64)) for update in updates]
    exact = [sum(share * bank[place] for share, bank in zip(shares, banks, strict=True)) for place in (0, 1)]
    moved = [stacked(bank) - stacked(dense(start)) for bank in banks]
    length = np.linalg.norm(stacked(exact) - stacked(dense(start)))
    averaged = stacked(dense(start + sum(s * u.astype(np.float64) for s, u in zip(shares, updates, strict=True))))
    assert found.bias == pytest.approx(np.linalg.norm(stacked(exact) - averaged) / length, rel=1e-4)
    tails = [np.linalg.svd(matrix)[1][2:] for matrix in exact]
    assert found.truncation == pytest.approx(np.sqrt(sum(float(tail @ tail) for tail in tails)) / length, rel=1e-4)
    cosines = [
        float(moved[i] @ moved[j] / np.linalg.norm(moved[i]) / np.linalg.norm(moved[j]))
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    assert (found.cosine_min, found.cosine_max) == pytest.approx((min(cosines), max(cosines)), rel=1e-4)
    assert found.cosine_mean == pytest.approx(np.mean(cosines), rel=1e-4)
    assert found.path == pytest.approx(0.25 / sum(np.linalg.norm(np.float64(update)) for update in updates), rel=1e-5)
    assert (found.banks, found.of) == (3, 3)


def test_mixed_ranks_have_the_cosine_of_shared_ranks() -> None:
    """One of rank 1 takes the second rank of B A away; two whole banks are compared as without announced ranks."""
    start, updates = drawn(0), [drawn(number, 0.03) for number in (1, 2, 3)]
    for layer in LAYOUT.layers:
        (a, b), (da, db) = layer.of(start), layer.of(updates[0])
        da[1:], db[:, 1:] = -a[1:], -b[:, 1:]

    def moved(update: NDArray[Any], rank: int) -> NDArray[np.float64]:
        parts = []
        for layer in LAYOUT.layers:
            (a, b), (da, db) = (layer.of(each.astype(np.float64)) for each in (start, update))
            parts.append(((b + db)[:, :rank] @ (a + da)[:rank] - b[:, :rank] @ a[:rank]).reshape(-1))
        return np.concatenate(parts)

    expected = []
    for one, other, rank in ((0, 1, 1), (0, 2, 1), (1, 2, 2)):
        left, right = moved(updates[one], rank), moved(updates[other], rank)
        expected.append(float(left @ right / np.linalg.norm(left) / np.linalg.norm(right)))
    weights = [1.0, 1.0, 1.0]
    whole = average_loss(start, 1.0, replies(*updates), weights, LAYOUT)
    found = average_loss(start, 1.0, replies(*updates), weights, LAYOUT, ranks={"bank-0000": 1})
    assert whole is not None
    assert found is not None
    assert (found.cosine_min, found.cosine_max) == pytest.approx((min(expected), max(expected)), rel=1e-5)
    assert found.cosine_mean == pytest.approx(np.mean(expected), rel=1e-5)
    assert abs(found.cosine_min - (whole.cosine_min or 0)) > 0.01
    same = {name: getattr(whole, name) for name in ("cosine_mean", "cosine_min", "cosine_max")}
    assert replace(found, **same) == whole, "nothing else is measured otherwise"


def test_equal_banks_lose_nothing_and_one_bank_has_no_cosine() -> None:
    start, update = drawn(0), drawn(1, 0.1)
    same = average_loss(start, 1.0, replies(update, update), [3.0, 1.0], LAYOUT)
    assert same is not None
    assert same.bias == pytest.approx(0, abs=1e-12)
    assert same.cosine_min == pytest.approx(1)
    assert same.truncation == pytest.approx(0, abs=1e-9)
    one = average_loss(start, float(np.linalg.norm(np.float64(update))), replies(update), [1.0], LAYOUT)
    assert one is not None
    assert (one.bias, one.cosine_mean) == (0.0, None)
    assert one.path == pytest.approx(1.0, rel=1e-5)
    still = average_loss(start, 0.0, replies(0 * update, 0 * update), [1.0, 1.0], LAYOUT)
    assert still is not None
    assert (still.bias, still.path, still.cosine_max) == (None, None, None)


def test_measuring_it_costs_little_next_to_a_round() -> None:
    """Four banks, rank 4 on q, k, v and o of SmolLM2-135M, 30 layers of width 576. Printed: its seconds, and how long a
    round must take for them to be 1 % of it. The limit is some ten times what one core takes.
    """
    sizes = {"q_proj": (576, 576), "k_proj": (576, 192), "v_proj": (576, 192), "o_proj": (576, 576)}
    shapes = {
        f"{number}.{name}.lora_{factor}.weight": (4, d_in) if factor == "A" else (d_out, 4)
        for number in range(30)
        for name, (d_in, d_out) in sizes.items()
        for factor in "AB"
    }
    names = tuple(sorted(shapes))
    layout = Layout(names, tuple(shapes[name] for name in names))
    rng = np.random.default_rng(0)
    start, *updates = (rng.normal(0, 0.01, layout.size).astype(np.float32) for _ in range(5))
    began = time.process_time()
    found = average_loss(start, 1.0, replies(*updates), [1.0] * 4, layout)
    took = time.process_time() - began
    assert found is not None
    print(f"{took:.2f} s of one core; 1 % of a round of {100 * took:.0f} s")
    assert took < 1.0


def test_of_many_banks_a_fixed_number_is_measured() -> None:
    many = replies(*[drawn(number, 0.1) for number in range(40)])
    read: list[str] = []

    def reading(banks: Any, block: slice) -> Any:
        read.extend(banks)
        by_name = {reply.bank: reply.delta for reply in many}
        return (by_name[bank][block] for bank in banks)

    found = average_loss(drawn(0), 1.0, [replace(one, delta=np.zeros(0, np.float32)) for one in many], [1.0] * 40,
                         LAYOUT, reading)  # fmt: skip
    assert found is not None
    assert (found.banks, found.of) == (MOST_BANKS, 40)
    assert len(set(read)) == MOST_BANKS
    assert {"bank-0000", "bank-0039"} <= set(read)


@pytest.mark.parametrize("layout", [None, Layout(("q.lora_B.weight",), ((LAYOUT.size, 1),))])
def test_nothing_is_measured_without_two_trained_factors(layout: Layout | None) -> None:
    assert average_loss(drawn(0), 1.0, replies(drawn(1)), [1.0], layout) is None
    assert average_loss(drawn(0), 1.0, replies(drawn(1)), [], LAYOUT) is None


def test_a_run_keeps_it_and_verify_computes_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = Runs(write_rows(tmp_path / "rows"), tmp_path)
    run = runs.start("run", "strategy.keep_deltas=true", rounds=2)
    lines = read_rounds(run)
    losses = [line.average for line in lines]
    assert all(isinstance(loss, AverageLoss) and loss.bias is not None and loss.bias > 0 for loss in losses)
    assert losses[0] is not None
    assert to_json(losses[0]).keys() >= {"bias", "truncation", "cosine_mean", "path"}
    assert dict(round_scalars(lines[0]))["average/bias"] == losses[0].bias
    assert verify(run) != 1, capsys.readouterr().out
    text = (run / "rounds.jsonl").read_text("utf-8")
    (run / "rounds.jsonl").write_text(text.replace(f'"bias": {losses[0].bias}', '"bias": 0.5'), "utf-8")
    capsys.readouterr()
    assert verify(run) == 1
    assert "line 1: bias of average is 0.5" in capsys.readouterr().out


def test_privacy_of_banks_and_the_setting_switch_it_off(tmp_path: Path) -> None:
    runs = Runs(write_rows(tmp_path / "rows"), tmp_path)
    off = runs.start("off", "strategy.measure_average=false", rounds=1)
    private = ("privacy=bank", "privacy.accept_noise=true", "privacy.epsilon=8", "strategy.weighting=equal")
    bank = runs.start("bank", *private, "train.holdout_max_rows=0", rounds=1)
    assert all("average" not in line for run in (off, bank) for line in rounds_of(run))
