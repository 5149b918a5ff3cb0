"""A pass that runs out of a GPU's memory is taken again in smaller ones, with the same gradient; here on a CPU, with a
model that raises what CUDA raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
from conftest import text_examples
from filings import filing_examples

from fedfinlora.config.train import TrainConfig
from fedfinlora.model.adapter import trainable
from fedfinlora.model.loading import Session
from fedfinlora.model.packing import Example
from fedfinlora.train import memory
from fedfinlora.train.gradient_step import LocalRows, PassLimits
from fedfinlora.train.memory import decoder_layers, limit_of, own_checkpointing

CONFIG = TrainConfig(batch_rows=64, memory_gib=100.0)


@contextmanager
def room_for(session: Session, tokens: int, backward: bool = False) -> Iterator[list[int]]:
    """At most so many tokens in a pass that is not checkpointed: more is torch's OutOfMemoryError, in the forward or
    in the backward pass. Yields the lengths of all passes.
    """
    seen: list[int] = []
    layer: Any = decoder_layers(session.model)[0]

    def check(module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> Any:
        length = inputs[0].shape[1]
        if torch.is_grad_enabled() and not getattr(layer, "gradient_checkpointing", False):
            seen.append(length)
            if length > tokens and not backward:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
            if length > tokens:
                output.register_hook(fail)
        return output

    def fail(gradient: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    handle = layer.register_forward_hook(check)
    try:
        yield seen
    finally:
        handle.remove()


def local_rows(session: Session, rows: list[Example], config: TrainConfig = CONFIG) -> LocalRows:
    layers = decoder_layers(session.model)
    limits = PassLimits.of(session.model, config)
    return LocalRows(session.model, rows, float(len(rows)), config, 0, "bank-0", (), limits, layers)


def gradient(session: Session, local: LocalRows) -> tuple[float, np.ndarray]:
    """(loss, gradient) of step 0."""
    session.model.zero_grad(set_to_none=True)
    with own_checkpointing(local.layers):
        loss = local.add_gradient(0).loss
    parts = [
        parameter.grad.reshape(-1) for parameter in trainable(session.model).values() if parameter.grad is not None
    ]
    session.model.zero_grad(set_to_none=True)
    return loss, torch.cat(parts).numpy()


@pytest.mark.parametrize("backward", [False, True])
def test_a_pass_out_of_memory_is_halved_with_the_same_gradient(
    tiny: Session, caplog: pytest.LogCaptureFixture, backward: bool
) -> None:
    rows = filing_examples(filings=2, questions=3, filing_tokens=100)
    loss, expected = gradient(tiny, local_rows(tiny, rows))
    local = local_rows(tiny, rows)
    before = local.limits.memory_bytes
    with room_for(tiny, 250, backward) as lengths:
        found_loss, found = gradient(tiny, local)
    assert max(lengths) > 250 >= lengths[-1]
    assert found_loss == pytest.approx(loss, rel=1e-5)
    assert float(np.linalg.norm(found - expected)) <= 1e-5 * float(np.linalg.norm(expected))
    assert f"out of memory in a pass of {len(rows)} rows" in caplog.text
    assert "taken again as two" in caplog.text
    assert local.limits.memory_bytes < before, "later steps do not fail first"


def test_a_row_out_of_memory_is_checkpointed_and_else_refused(tiny: Session) -> None:
    rows = text_examples(1)
    loss, _ = gradient(tiny, local_rows(tiny, rows))
    local = local_rows(tiny, rows)
    with room_for(tiny, 1):
        assert gradient(tiny, local)[0] == pytest.approx(loss, rel=1e-5)
    assert local.checkpointed_layers == len(local.layers)
    checkpointed = replace(CONFIG, gradient_checkpointing=True)
    handle = tiny.model.register_forward_hook(lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA")))
    try:
        with pytest.raises(MemoryError, match=r"out of memory: a row of [0-9]+ tokens does not fit"):
            gradient(tiny, local_rows(tiny, rows, checkpointed))
    finally:
        handle.remove()


def test_no_room_to_measure_a_pass_is_out_of_memory(tiny: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_footprints", WeakKeyDictionary())
    with room_for(tiny, 1), pytest.raises(MemoryError, match="a pass of 48 tokens does not fit next to the model"):
        local_rows(tiny, text_examples(1))


def test_packs_made_ahead_give_the_same_bytes(tiny: Session) -> None:
    rows = text_examples(12)
    found = []
    with ThreadPoolExecutor(1) as pool:
        for ahead in (False, True):
            local = local_rows(tiny, rows)
            local.rows_per_step = 4.0
            if ahead:
                local.prepare_ahead(pool, 4)
            tiny.model.zero_grad(set_to_none=True)
            losses = [local.add_gradient(step).loss for step in range(4)]
            grads = [parameter.grad.numpy().tobytes() for parameter in trainable(tiny.model).values()]
            found.append((losses, grads))
            assert not local._ready, "nothing is made for a step that does not come"
    tiny.model.zero_grad(set_to_none=True)
    assert found[0] == found[1]


def test_the_fullest_gpu_sets_the_limit_of_a_spread_model() -> None:
    one, two = torch.device("cuda:0"), torch.device("cuda:1")
    assert limit_of({one: 10.0, two: 90.0}, [one, two]) == 20.0
    assert limit_of({one: 90.0, two: 30.0}, [one, two, two]) == 45.0
    assert limit_of({one: 8.0, two: 1.0}, [one, one]) == 8.0, "a device without layers keeps no activations"
