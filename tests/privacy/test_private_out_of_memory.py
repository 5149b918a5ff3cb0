"""A private pass that runs out of a GPU's memory is taken again in halves: the same units, clipped alike, the same
noise, once. Here on a CPU, with a model that raises what CUDA raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from conftest import set_random_adapter, text_examples, tiny_config

from fedfinlora.config.train import TrainConfig
from fedfinlora.model.adapter import trainable
from fedfinlora.model.loading import Session, get_session
from fedfinlora.model.packing import Example
from fedfinlora.privacy.mechanism import Mechanism, PrivateStep, private_step
from fedfinlora.train.gradient_step import LocalRows, PassLimits
from fedfinlora.train.memory import decoder_layers, footprint

ROOMY = 2.0**40
FULL = "CUDA out of memory. Tried to allocate 1.00 GiB."


@pytest.fixture
def session() -> Session:
    found = get_session(tiny_config())
    set_random_adapter(found)
    return found


def mechanism(units: int, rate: float = 1.0) -> Mechanism:
    return Mechanism(
        clip_norm=0.5,
        sampling_rate=rate,
        noise_multiplier=0.7,
        units=tuple((place,) for place in range(units)),
        expected_units=rate * units,
        seed=3,
        bank="bank-0",
        reproducible=True,
    )


@contextmanager
def failing(session: Session, fails: Callable[[int, int], bool], backward: bool = False) -> Iterator[list[int]]:
    """Passes (their number from 0, their tokens) for which `fails` is true run out of memory. Yields the lengths."""
    seen: list[int] = []

    def check(module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        seen.append(inputs[0].shape[1])
        if fails(len(seen) - 1, seen[-1]):
            if not backward:
                raise torch.OutOfMemoryError(FULL)
            output.register_hook(fail)

    def fail(gradient: torch.Tensor) -> None:
        raise torch.OutOfMemoryError(FULL)

    handle = decoder_layers(session.model)[0].register_forward_hook(check)
    try:
        yield seen
    finally:
        handle.remove()


def step(
    session: Session, rows: Sequence[Example], how: Mechanism, batch_tokens: int = 4096
) -> tuple[bytes, PrivateStep]:
    """(the noisy gradient, what the step was)."""
    done = private_step(session.model, rows, how, 0, batch_tokens, footprint(session.model), ROOMY)
    gradient = b"".join(
        parameter.grad.numpy().tobytes()
        for parameter in trainable(session.model).values()
        if parameter.grad is not None
    )
    session.model.zero_grad(set_to_none=True)
    return gradient, done


@pytest.mark.parametrize("backward", [False, True])
def test_a_halved_private_pass_gives_the_bytes_of_an_undisturbed_step(
    session: Session, caplog: pytest.LogCaptureFixture, backward: bool
) -> None:
    rows, how = text_examples(2), mechanism(2)
    expected, undisturbed = step(session, rows, how, batch_tokens=0)
    with failing(session, lambda number, tokens: number == 0, backward) as lengths:
        found, done = step(session, rows, how)
    assert lengths[0] == sum(lengths[1:3]), "all units first, then one by one"
    assert found == expected
    assert (done.examples, done.norms) == (undisturbed.examples, undisturbed.norms)
    assert "out of memory in a private pass of 2 units: it is taken again as two" in caplog.text


def test_the_sampled_units_and_the_noise_do_not_depend_on_memory(session: Session) -> None:
    """A Poisson sample in passes that fail again and again, down to single units."""
    rows, how = text_examples(12), mechanism(12, rate=0.6)
    expected, undisturbed = step(session, rows, how, batch_tokens=0)
    longest = max(len(row.read_ids) for row in rows)
    with failing(session, lambda number, tokens: tokens > longest) as lengths:
        found, done = step(session, rows, how)
    assert max(lengths) > longest
    assert found == expected
    assert sorted(row.index for row in done.examples) == sorted(row.index for row in undisturbed.examples)
    assert 2 < len(done.examples) < 12


def test_what_a_failed_pass_had_added_is_not_added_twice(session: Session) -> None:
    """A gradient that is not finite sends the units one by one; the memory ends after the first of them."""
    rows, how = text_examples(3), mechanism(3)
    longest = max(rows, key=lambda row: len(row.read_ids))
    embedding: Any = session.model.get_input_embeddings()  # type: ignore[operator]
    poison = torch.full_like(embedding.weight[0], float("nan"))
    token = 255
    assert not any(token in row.read_ids for row in rows)
    rows[longest.index] = Example((*longest.prompt_ids, token, token), longest.answer_ids, longest.index)
    kept = embedding.weight[token].clone()
    try:
        embedding.weight.data[token] = poison
        expected, undisturbed = step(session, rows, how, batch_tokens=0)
        # After the pass of all three the units go one by one: the second one's pass fails, once.
        second = sorted(len(row.read_ids) for row in rows)[1]
        with failing(session, lambda number, tokens: tokens == second and lengths.count(second) == 1) as lengths:
            found, done = step(session, rows, how)
    finally:
        embedding.weight.data[token] = kept
    assert len(lengths) > 4
    assert found == expected
    assert [[math.isfinite(norm) for norm in each.norms].count(False) for each in (done, undisturbed)] == [1, 1]


def test_a_single_unit_that_does_not_fit_is_refused(session: Session) -> None:
    footprint(session.model)  # measured once a model, by passes that are none of the step's
    with (
        failing(session, lambda number, tokens: True),
        pytest.raises(MemoryError, match="a private pass of a single unit does not fit"),
    ):
        step(session, text_examples(3), mechanism(3))


def test_memory_that_ends_in_the_neighbours_check_sends_units_one_by_one(session: Session) -> None:
    rows, how = text_examples(3), mechanism(3)
    expected, _ = step(session, rows, how, batch_tokens=0)
    with failing(session, lambda number, tokens: number == 1) as lengths:  # the first unit alone, after all three
        found, _ = step(session, rows, how)
    assert lengths[0] == sum(lengths[2:5])
    assert found == expected


def test_later_private_steps_do_not_fail_first(session: Session) -> None:
    rows, how, config = text_examples(6), mechanism(6), TrainConfig(batch_rows=6, memory_gib=100.0)
    limits = PassLimits.of(session.model, config)
    local = LocalRows(session.model, rows, 6.0, config, 0, "bank-0", (), limits, decoder_layers(session.model))
    most = sum(len(row.read_ids) for row in rows) * 2 // 3
    with failing(session, lambda number, tokens: tokens > most) as lengths:
        how.take(local, 0)
        assert max(lengths) > most
        lengths.clear()
        how.take(local, 1)
        assert max(lengths) <= most
    session.model.zero_grad(set_to_none=True)
    assert local.limits.memory_bytes < limits.memory_bytes
    assert np.isfinite(local.limits.memory_bytes)
