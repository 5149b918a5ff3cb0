"""The training loop against a plain PyTorch loop, and what it promises about steps, seeds, resuming and failing."""

from __future__ import annotations

import doctest
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import EOS, NF4_PACKED, MakeSession, random_adapter, set_random_adapter, text_examples
from hypothesis import given
from hypothesis import strategies as st

from fedfinlora.config.train import TrainConfig
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import Vector, read_adapter, trainable, write_adapter
from fedfinlora.model.packing import Example
from fedfinlora.train import loop as training
from fedfinlora.train.loop import (
    OptimizerState,
    StepReport,
    Stretch,
    TrainResult,
    mean_loss,
    schedule_factor,
    stretch_of_round,
    total_steps,
    train,
)
from fedfinlora.train.row_order import rows_of_step

if TYPE_CHECKING:
    from torch import nn

    from fedfinlora.model.loading import Session

PLAIN = TrainConfig(learning_rate=1e-2, schedule="constant", warmup_steps=0, clip_norm=0.0, batch_rows=8)


def run(
    session: Session,
    start: Vector,
    config: TrainConfig,
    steps: int = 1,
    examples: list[Example] | None = None,
    optimizer: OptimizerState | None = None,
    first_step: int = 0,
    total: int = 100,
    seed: int = 0,
    bank: str = "bank-0",
) -> tuple[TrainResult, Vector]:
    """Train from `start`; the result and the adapter afterwards, (size,) float32."""
    write_adapter(session.model, start)
    rows = text_examples(8) if examples is None else examples
    stretch = Stretch(first_step, steps, total, float(config.batch_rows))
    result = train(session.model, rows, stretch, config, seed=seed, bank=bank, optimizer=optimizer)
    return result, read_adapter(session.model)


def first_gradient(result: TrainResult, config: TrainConfig) -> Vector:
    """The gradient of a single step, clipped or not: Adam's first moment after it is (1 - beta1) times that."""
    assert result.steps == 1
    return result.optimizer.first_moment / np.float32(1 - config.beta1)


def distance(one: Vector, other: Vector, scale: Vector) -> float:
    """|one - other| relative to |scale|."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(scale))


# --- against an independent reference -------------------------------------------------------------


def padded_loss(model: nn.Module, rows: list[Example]) -> torch.Tensor:
    """Mean loss of an answer token from one right-padded batch with labels of -100 elsewhere, as the usual trainers
    make it.
    """
    length = max(len(row.prompt_ids) + len(row.answer_ids) for row in rows)
    token_ids = torch.zeros(len(rows), length, dtype=torch.long)
    attention = torch.zeros_like(token_ids)
    labels = torch.full_like(token_ids, -100)
    for place, row in enumerate(rows):
        tokens = row.prompt_ids + row.answer_ids
        token_ids[place, : len(tokens)] = torch.tensor(tokens)
        attention[place, : len(tokens)] = 1
        labels[place, len(row.prompt_ids) : len(tokens)] = torch.tensor(row.answer_ids)
    return model(input_ids=token_ids, attention_mask=attention, labels=labels).loss  # type: ignore[no-any-return]


def plain_training(
    session: Session, start: Vector, rows: list[Example], rates: list[float], config: TrainConfig
) -> Vector:
    """AdamW written out, FedProx's term in the loss itself, clipping by hand. Returns the adapter, (size,) float32."""
    write_adapter(session.model, start)
    parameters = list(trainable(session.model).values())
    anchor = [parameter.detach().clone() for parameter in parameters]
    first = [torch.zeros_like(parameter) for parameter in parameters]
    second = [torch.zeros_like(parameter) for parameter in parameters]
    session.model.train()
    for step, rate in enumerate(rates, 1):
        loss = padded_loss(session.model, rows)
        pull = sum(((parameter - place) ** 2).sum() for parameter, place in zip(parameters, anchor, strict=True))
        gradients = torch.autograd.grad(loss + config.proximal_mu / 2 * pull, parameters)
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
        scale = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
        with torch.no_grad():
            for parameter, gradient, m, v in zip(parameters, gradients, first, second, strict=True):
                gradient = gradient * scale
                m.mul_(config.beta1).add_(gradient, alpha=1 - config.beta1)
                v.mul_(config.beta2).add_(gradient**2, alpha=1 - config.beta2)
                parameter.mul_(1 - rate * config.weight_decay)
                ahead = m / (1 - config.beta1**step)
                parameter.sub_(rate * ahead / ((v / (1 - config.beta2**step)).sqrt() + 1e-8))
    session.model.eval()
    return read_adapter(session.model)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"weight_decay": 0.1},
        {"clip_norm": 0.3},
        {"proximal_mu": 2.0},
        {"share_prefix": False, "batch_tokens": 30},
        {"beta1": 0.5, "beta2": 0.9, "proximal_mu": 0.5, "clip_norm": 1.0, "weight_decay": 0.01},
    ],
    ids=str,
)
@pytest.mark.parametrize(("quantization", "method"), [("none", "lora"), (NF4_PACKED, "dora")])
def test_three_steps_equal_a_plain_padded_loop(
    session_of: MakeSession, quantization: str, method: str, changes: dict[str, Any]
) -> None:
    session = session_of(quantization, method)
    start, rows = read_adapter(session.model), text_examples(8)
    config = replace(PLAIN, **changes)
    _, ours = run(session, start, config, steps=3, examples=rows)
    theirs = plain_training(session, start, rows, [1e-2] * 3, config)
    assert distance(ours, theirs, theirs - start) < 2e-3


def test_the_gradient_of_one_step_equals_the_padded_batches(tiny: Session) -> None:
    start, rows = read_adapter(tiny.model), text_examples(8)
    result, _ = run(tiny, start, PLAIN, examples=rows)
    write_adapter(tiny.model, start)
    loss = padded_loss(tiny.model, rows)
    expected = torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(trainable(tiny.model).values()))])
    assert result.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert distance(first_gradient(result, PLAIN), expected.numpy(), expected.numpy()) < 1e-5


def test_warm_up_and_cosine_are_applied_step_by_step(tiny: Session) -> None:
    start, rows = read_adapter(tiny.model), text_examples(8)
    config = replace(PLAIN, schedule="cosine", warmup_steps=2)
    _, ours = run(tiny, start, config, steps=5, examples=rows, total=20)
    rates = [5e-3, 1e-2, *(1e-2 * 0.5 * (1 + math.cos(math.pi * step / 18)) for step in range(3))]
    theirs = plain_training(tiny, start, rows, rates, config)
    assert distance(ours, theirs, theirs - start) < 2e-3


# --- accumulation, clipping, the proximal term ----------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [1, 25, 60, 120])
@pytest.mark.parametrize("share_prefix", [True, False])
def test_accumulation_by_tokens_equals_one_big_batch(tiny: Session, batch_tokens: int, share_prefix: bool) -> None:
    start = read_adapter(tiny.model)
    whole, _ = run(tiny, start, PLAIN)
    parts, _ = run(tiny, start, replace(PLAIN, batch_tokens=batch_tokens, share_prefix=share_prefix))
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert distance(first_gradient(parts, PLAIN), first_gradient(whole, PLAIN), first_gradient(whole, PLAIN)) < 1e-5
    assert (parts.rows, parts.tokens, parts.answer_tokens) == (whole.rows, whole.tokens, whole.answer_tokens)


def test_figures_count_rows_and_tokens_in_full(tiny: Session) -> None:
    rows = text_examples(8)
    result, _ = run(tiny, read_adapter(tiny.model), PLAIN, steps=3, examples=rows)
    assert (result.steps, result.rows) == (3, 24)
    assert result.tokens == 3 * sum(len(row.prompt_ids) + len(row.answer_ids) for row in rows)
    assert result.answer_tokens == 3 * sum(len(row.answer_ids) for row in rows)
    assert len(result.step_losses) == 3
    assert result.loss == pytest.approx(sum(result.step_losses) / 3)
    assert result.optimizer.steps == 3


def test_clipped_gradient_norm_is_at_most_clip_norm(tiny: Session) -> None:
    start = read_adapter(tiny.model)
    free = first_gradient(run(tiny, start, PLAIN)[0], PLAIN)
    norm = float(np.linalg.norm(free))
    for share in (0.1, 0.5):
        clipped = first_gradient(run(tiny, start, replace(PLAIN, clip_norm=share * norm))[0], PLAIN)
        assert float(np.linalg.norm(clipped)) == pytest.approx(share * norm, rel=1e-4)
        assert distance(clipped / share, free, free) < 1e-4
    untouched = first_gradient(run(tiny, start, replace(PLAIN, clip_norm=2 * norm))[0], PLAIN)
    np.testing.assert_array_equal(untouched, free)


def test_the_proximal_term_is_nothing_at_the_anchor_and_pulls_toward_it(tiny: Session) -> None:
    start = read_adapter(tiny.model)
    free, _ = run(tiny, start, PLAIN)
    held, _ = run(tiny, start, replace(PLAIN, proximal_mu=100.0))
    np.testing.assert_array_equal(free.optimizer.first_moment, held.optimizer.first_moment)
    lengths = []
    for mu in (0.0, 1.0, 1000.0):
        _, after = run(tiny, start, replace(PLAIN, proximal_mu=mu, schedule="cosine"), steps=30, total=30)
        lengths.append(float(np.linalg.norm(after - start)))
    assert lengths[0] > lengths[1] > lengths[2]
    assert lengths[2] < 0.2 * lengths[0]


def test_training_lowers_the_loss(tiny: Session) -> None:
    rows = text_examples(4)
    start = read_adapter(tiny.model)
    result, after = run(tiny, start, PLAIN, steps=30, examples=rows)
    assert result.step_losses[-1] < result.step_losses[0] - 0.5
    write_adapter(tiny.model, after)
    assert mean_loss(tiny.model, rows, PLAIN) < result.step_losses[-1] + 0.1


def test_mean_loss_is_the_loss_before_the_first_step_and_changes_nothing(session_of: MakeSession) -> None:
    session = session_of(dropout=0.5)
    start = read_adapter(session.model)
    rows = text_examples(8)
    measured = mean_loss(session.model, rows, PLAIN)
    assert mean_loss(session.model, rows, replace(PLAIN, batch_tokens=20)) == pytest.approx(measured, rel=1e-5)
    np.testing.assert_array_equal(read_adapter(session.model), start)
    session = session_of(dropout=0.0)
    assert run(session, start, PLAIN)[0].loss == pytest.approx(measured, rel=1e-5)


# --- the same bytes -------------------------------------------------------------------------------


@pytest.mark.parametrize(("quantization", "method"), [("none", "lora"), ("nf4", "qlora"), ("int8", "dora")])
def test_resumed_training_equals_uninterrupted_to_the_byte(
    session_of: MakeSession, quantization: str, method: str
) -> None:
    session = session_of(quantization, method, dropout=0.1)
    start, rows = read_adapter(session.model), text_examples(11)
    config = TrainConfig(batch_rows=4, learning_rate=1e-2, warmup_steps=2, weight_decay=0.01)
    whole, expected = run(session, start, config, steps=7, examples=rows, total=20)
    first, middle = run(session, start, config, steps=3, examples=rows, total=20)
    torch.rand(7)
    last, found = run(
        session, middle, config, steps=4, examples=rows, total=20, first_step=3, optimizer=first.optimizer
    )  # fmt: skip
    assert found.tobytes() == expected.tobytes()
    assert last.optimizer.first_moment.tobytes() == whole.optimizer.first_moment.tobytes()
    assert last.optimizer.second_moment.tobytes() == whole.optimizer.second_moment.tobytes()
    assert last.optimizer.steps == whole.optimizer.steps == 7
    assert first.step_losses + last.step_losses == whole.step_losses


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(session_of: MakeSession) -> None:
    session = session_of(dropout=0.1)
    start, rows = read_adapter(session.model), text_examples(12)
    config = replace(PLAIN, batch_rows=4)

    def after(**changes: Any) -> bytes:
        return run(session, start, config, steps=3, examples=rows, **changes)[1].tobytes()

    assert after() == after()
    assert len({after(), after(seed=1), after(bank="bank-1"), after(first_step=3)}) == 4


def test_training_leaves_the_callers_randomness_alone(session_of: MakeSession) -> None:
    session = session_of(dropout=0.1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(session, read_adapter(session.model), PLAIN)
    assert torch.equal(torch.rand(3), expected)


def test_a_kept_optimizer_continues_and_a_fresh_one_starts_over(tiny: Session) -> None:
    start = read_adapter(tiny.model)
    first, middle = run(tiny, start, PLAIN, steps=3)
    kept, with_memory = run(tiny, middle, PLAIN, first_step=3, optimizer=first.optimizer)
    fresh, without = run(tiny, middle, PLAIN, first_step=3)
    assert (kept.optimizer.steps, fresh.optimizer.steps) == (4, 1)
    assert not np.array_equal(with_memory, without)
    largest_move = float(np.abs(without - middle).max())
    assert largest_move == pytest.approx(1e-2, rel=1e-3), "Adam's first step moves by the learning rate"


def test_the_given_optimizer_state_is_not_changed(tiny: Session) -> None:
    first, middle = run(tiny, read_adapter(tiny.model), PLAIN)
    copy = first.optimizer.first_moment.copy()
    run(tiny, middle, PLAIN, first_step=1, optimizer=first.optimizer)
    np.testing.assert_array_equal(first.optimizer.first_moment, copy)


@pytest.mark.parametrize("change", [-5, 5, -2000])
def test_an_optimizer_state_of_another_adapter_is_a_user_error(tiny: Session, change: int) -> None:
    moments = np.zeros(max(0, tiny.layout.size + change), np.float32)
    with pytest.raises(UserError, match="another adapter"):
        run(tiny, read_adapter(tiny.model), PLAIN, optimizer=OptimizerState(moments, moments, 1))


def test_no_steps_change_nothing(tiny: Session) -> None:
    start = read_adapter(tiny.model)
    result, after = run(tiny, start, PLAIN, steps=0)
    np.testing.assert_array_equal(after, start)
    assert (result.steps, result.rows, result.optimizer.steps) == (0, 0, 0)
    assert math.isnan(result.loss)


# --- gradient checkpointing -----------------------------------------------------------------------


def embedding_hooks(session: Session) -> int:
    return len(session.model.get_input_embeddings()._forward_hooks)  # type: ignore[operator]


@pytest.mark.parametrize(("quantization", "method"), [("none", "lora"), (NF4_PACKED, "dora")])
def test_gradient_checkpointing_gives_the_same_loss_and_gradients(
    session_of: MakeSession, quantization: str, method: str
) -> None:
    session = session_of(quantization, method, dropout=0.1)
    start = read_adapter(session.model)
    plain, _ = run(session, start, PLAIN)
    saving, _ = run(session, start, replace(PLAIN, gradient_checkpointing=True))
    assert saving.loss == pytest.approx(plain.loss, rel=1e-6)
    assert distance(first_gradient(saving, PLAIN), first_gradient(plain, PLAIN), first_gradient(plain, PLAIN)) < 1e-5


def test_gradient_checkpointing_ends_with_the_training_that_asked_for_it(session_of: MakeSession) -> None:
    session = session_of(dropout=0.1)
    start, rows = read_adapter(session.model), text_examples(8)
    measured = mean_loss(session.model, rows, PLAIN)
    plain, _ = run(session, start, PLAIN)
    hooks = embedding_hooks(session)
    for _ in range(3):
        run(session, start, replace(PLAIN, gradient_checkpointing=True))
    again, _ = run(session, start, PLAIN)
    assert again.optimizer.first_moment.tobytes() == plain.optimizer.first_moment.tobytes()
    write_adapter(session.model, start)
    assert mean_loss(session.model, rows, PLAIN) == measured
    assert embedding_hooks(session) == hooks, "more hooks with each round"
    assert not any(getattr(module, "gradient_checkpointing", False) for module in session.model.modules()), "still on"


def test_generation_works_after_gradient_checkpointing(session_of: MakeSession) -> None:
    from eval.decoding.generation import generate

    session = session_of()
    start = read_adapter(session.model)
    prompts = [row.prompt_ids for row in text_examples(4)]

    def generated() -> list[tuple[int, ...]]:
        return [answer.tokens for answer in generate(session.model, prompts, 5, [EOS]).answers]

    expected = generated()
    run(session, start, replace(PLAIN, gradient_checkpointing=True))
    write_adapter(session.model, start)
    assert generated() == expected


# --- failing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_a_user_error_that_names_the_bank(tiny: Session, value: float) -> None:
    start = read_adapter(tiny.model)
    start[:] = value
    with pytest.raises(UserError, match=r"bank-0 .* step 0.*train\.learning_rate"):
        run(tiny, start, PLAIN)


def test_a_failed_training_leaves_no_trace_in_the_next(tiny: Session) -> None:
    start = read_adapter(tiny.model)
    _, expected = run(tiny, start, PLAIN, steps=2)
    with pytest.raises(UserError):
        run(tiny, np.full_like(start, math.nan), PLAIN)
    _, found = run(tiny, start, PLAIN, steps=2)
    assert np.isfinite(found).all(), "gradients of the failed step were added to the next"
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "rows",
    [[], [Example((5, 6), (), 0)], [Example((), (EOS,), 0)], [Example((5,), (EOS,), 0), Example((5,), (), 1)]],
    ids=["no rows", "no answer", "no prompt", "one bad of two"],
)
def test_rows_without_tokens_are_a_user_error(tiny: Session, rows: list[Example]) -> None:
    with pytest.raises(UserError, match="no tokens to learn from"):
        run(tiny, read_adapter(tiny.model), PLAIN, examples=rows)


def test_step_reports_arrive_in_order(tiny: Session) -> None:
    reports: list[StepReport] = []
    stretch = Stretch(4, 3, 20, 8.0)
    result = train(tiny.model, text_examples(5), stretch, PLAIN, seed=0, bank="bank-0", on_step=reports.append)
    assert [(report.step, report.steps) for report in reports] == [(1, 3), (2, 3), (3, 3)]
    assert tuple(report.loss for report in reports) == result.step_losses
    assert all(report.tokens_per_s > 0 for report in reports)


# --- steps and schedule ---------------------------------------------------------------------------


def test_the_doctests_of_the_module_hold() -> None:
    found = doctest.testmod(training)
    assert found.attempted > 0
    assert found.failed == 0


def test_schedule_by_hand() -> None:
    assert [schedule_factor(step, 100, 4, "cosine") for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert schedule_factor(52, 100, 4, "cosine") == pytest.approx(0.5)
    assert schedule_factor(100, 100, 4, "cosine") == pytest.approx(0.0)
    assert [schedule_factor(step, 100, 4, "constant") for step in (0, 3, 4, 99)] == [0.25, 1.0, 1.0, 1.0]
    assert schedule_factor(0, 5, 4, "cosine") == 1.0, "a warm-up takes at most a tenth of the run"
    assert schedule_factor(0, 100, 0, "cosine") == 1.0


@given(total=st.integers(1, 500), warmup=st.integers(0, 50), schedule=st.sampled_from(["cosine", "constant"]))
def test_schedule_rises_then_falls_and_is_never_zero_in_the_run(total: int, warmup: int, schedule: str) -> None:
    factors = [schedule_factor(step, total, warmup, schedule) for step in range(total)]
    peak = factors.index(max(factors))
    assert max(factors) == 1.0
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


@given(rows=st.integers(1, 60), batch_rows=st.integers(1, 20), epochs=st.integers(1, 4), seed=st.integers(0, 3))
def test_each_row_comes_once_in_each_epoch(rows: int, batch_rows: int, epochs: int, seed: int) -> None:
    used = min(rows, batch_rows)
    steps = -(-epochs * rows // used)
    stream = [index for step in range(steps) for index in rows_of_step(step, rows, batch_rows, seed, "bank-0")]
    assert len(stream) == steps * used
    for epoch in range(epochs):
        assert sorted(stream[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@given(rows=st.integers(1, 60), tenths=st.integers(10, 300), steps=st.integers(1, 30))
def test_steps_of_fractional_size_read_the_same_stream_without_gaps(rows: int, tenths: int, steps: int) -> None:
    rows_per_step = tenths / 10
    taken = [rows_of_step(step, rows, rows_per_step, 0, "bank-0") for step in range(steps)]
    if rows <= rows_per_step:
        assert taken == [list(range(rows))] * steps
        return
    assert {len(step) for step in taken} <= {math.floor(rows_per_step), math.ceil(rows_per_step)}
    stream = [index for step in taken for index in step]
    assert abs(len(stream) - steps * rows_per_step) < 1
    assert (
        stream == [index for step in range(len(stream)) for index in rows_of_step(step, rows, 1, 0, "bank-0")]
        or rows == 1
    )


def test_the_order_of_rows_differs_by_epoch_seed_and_bank() -> None:
    def first(step: int = 0, seed: int = 0, bank: str = "bank-0") -> tuple[int, ...]:
        return tuple(rows_of_step(step, 64, 32, seed, bank))

    assert first() == first()
    assert len({first(), first(step=2), first(seed=1), first(bank="bank-1")}) == 4


@given(
    rows=st.integers(1, 5000),
    rounds=st.integers(1, 60),
    steps_per_round=st.integers(1, 30),
    epochs=st.sampled_from([0.0, 0.3, 1.0, 4.0]),
    max_steps=st.integers(0, 200),
)
def test_rounds_share_out_the_runs_steps_evenly(
    rows: int, rounds: int, steps_per_round: int, epochs: float, max_steps: int
) -> None:
    config = TrainConfig(steps_per_round=steps_per_round, epochs=epochs, max_steps=max_steps)
    if 0 < max_steps < rounds:
        with pytest.raises(UserError, match=r"train\.max_steps"):
            total_steps(rows, rounds, config)
        return
    total = total_steps(rows, rounds, config)
    assert total >= rounds
    assert not max_steps or total <= max_steps
    if not epochs and not max_steps:
        assert total == rounds * steps_per_round
    stretches = [stretch_of_round(number, rounds, total, rows, config) for number in range(1, rounds + 1)]
    assert {stretch.rows_per_step for stretch in stretches} == {16.0}
    assert sum(stretch.steps for stretch in stretches) == total
    assert [stretch.first_step for stretch in stretches] == [
        sum(earlier.steps for earlier in stretches[:number]) for number in range(rounds)
    ]
    assert all(stretch.steps >= 1 and stretch.total_steps == total for stretch in stretches)
    assert max(stretch.steps for stretch in stretches) - min(stretch.steps for stretch in stretches) <= 1


@pytest.mark.parametrize(("rows", "batch_rows"), [(160, 16), (100, 16), (16, 16), (8, 16), (3, 16)])
@pytest.mark.parametrize("epochs", [1.0, 4.0])
def test_epochs_are_passes_over_the_rows(rows: int, batch_rows: int, epochs: float) -> None:
    config = TrainConfig(epochs=epochs, batch_rows=batch_rows)
    steps = total_steps(rows, 1, config)
    trained = sum(len(rows_of_step(step, rows, batch_rows, 0, "bank-0")) for step in range(steps))
    assert abs(trained - epochs * rows) <= min(rows, batch_rows) / 2


@given(rows=st.integers(1, 400), rounds=st.integers(1, 40), steps_per_round=st.integers(1, 5), epochs=st.integers(1, 4))
def test_free_batches_spread_the_epochs_over_the_steps(
    rows: int, rounds: int, steps_per_round: int, epochs: int
) -> None:
    config = TrainConfig(batch_rows=0, epochs=float(epochs), steps_per_round=steps_per_round)
    steps = total_steps(rows, rounds, config)
    assert steps == rounds * steps_per_round
    rows_per_step = stretch_of_round(1, rounds, steps, rows, config).rows_per_step
    trained = sum(len(rows_of_step(step, rows, rows_per_step, 0, "bank-0")) for step in range(steps))
    if steps >= epochs and rows_per_step >= 1:  # otherwise a step is at most all rows, at least one
        assert trained == epochs * rows


# --- plain SGD at the banks -----------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_one_sgd_step_is_the_negative_gradient_times_its_rate(tiny: Session, rate: float) -> None:
    start = read_adapter(tiny.model)
    gradient = first_gradient(run(tiny, start, PLAIN)[0], PLAIN)
    config = replace(
        PLAIN, optimizer="sgd", sgd_learning_rate=rate, learning_rate=9.0, schedule="cosine", warmup_steps=9
    )
    result, after = run(tiny, start, config)
    np.testing.assert_allclose(after - start, -rate * gradient, rtol=1e-4, atol=1e-6)
    assert result.optimizer.steps == 0
    assert not result.optimizer.first_moment.any()


def test_sgd_clips_too_and_has_no_memory(tiny: Session) -> None:
    start = read_adapter(tiny.model)
    config = replace(PLAIN, optimizer="sgd", sgd_learning_rate=1.0, clip_norm=0.1)
    memory = OptimizerState(np.ones_like(start), np.ones_like(start), 5)
    _, fresh = run(tiny, start, config)
    _, given_one = run(tiny, start, config, optimizer=memory)
    assert float(np.linalg.norm(fresh - start)) == pytest.approx(0.1, rel=1e-3)
    np.testing.assert_array_equal(fresh, given_one)


def test_the_random_adapter_of_these_tests_is_nowhere_zero(tiny: Session) -> None:
    assert np.abs(random_adapter(tiny.layout.size)).min() > 0
    assert np.abs(set_random_adapter(tiny)).min() > 0
