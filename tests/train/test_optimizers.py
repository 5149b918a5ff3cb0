"""AdamW in 8 bits (bitsandbytes has it for CPUs too) next to AdamW, and moments that continue from round to round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import text_examples

from fedfinlora.config.train import TrainConfig
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import read_adapter, write_adapter
from fedfinlora.model.loading import Session
from fedfinlora.train.loop import Stretch, train
from fedfinlora.train.optimizers import OptimizerState, load_state, make_optimizer, read_state

IN_8 = TrainConfig(optimizer="adamw_8bit", learning_rate=1e-2)
"""bitsandbytes keeps tensors of fewer than 4,096 numbers in 32 bits."""


def parameters() -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape, generator=draw)) for shape in ((64, 100), (8, 8))]


def take(own: list[torch.nn.Parameter], update: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        draw = torch.Generator().manual_seed(step)
        for parameter in own:
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        update.step()


def test_8_bits_follow_adamw_within_their_rounding() -> None:
    ours, exact = parameters(), parameters()
    moved = parameters()[0].detach()
    take(ours, make_optimizer(ours, IN_8), 0, 20)
    take(exact, make_optimizer(exact, replace(IN_8, optimizer="adamw")), 0, 20)
    moved = exact[0].detach() - moved
    assert float((ours[0] - exact[0]).detach().norm() / moved.norm()) < 0.1
    torch.testing.assert_close(ours[1], exact[1], rtol=1e-5, atol=1e-6)


def test_moments_of_8_bits_go_on_where_they_were() -> None:
    own = parameters()
    update = make_optimizer(own, IN_8)
    take(own, update, 0, 5)
    state = read_state(update, own)
    again = make_optimizer(own, IN_8)
    load_state(again, own, state)
    kept = read_state(again, own)
    assert kept.steps == 5
    for one, other in ((state.first_moment, kept.first_moment), (state.second_moment, kept.second_moment)):
        assert float(np.linalg.norm(one - other)) < 0.02 * float(np.linalg.norm(one))
    load_state(update, own, kept)
    assert read_state(update, own).second_moment.tobytes() == kept.second_moment.tobytes()
    with pytest.raises(UserError, match="another adapter's"):
        load_state(again, own, OptimizerState(state.first_moment[:9], state.second_moment[:9], 5))


def test_paged_moments_need_a_gpu() -> None:
    with pytest.raises(UserError, match=r"paged_adamw_8bit needs a CUDA GPU\. Set train\.optimizer=adamw_8bit"):
        make_optimizer(parameters(), replace(IN_8, optimizer="paged_adamw_8bit"))


def test_the_loop_trains_in_8_bits_by_the_schedule(tiny: Session) -> None:
    start, rows = read_adapter(tiny.model), text_examples(8)
    losses = {}
    for name in ("adamw", "adamw_8bit"):
        write_adapter(tiny.model, start)
        config = replace(IN_8, optimizer=name, batch_rows=8, warmup_steps=1)
        result = train(tiny.model, rows, Stretch(0, 6, 6, 8.0), config, seed=0, bank="bank-0")
        assert result.optimizer.steps == 6
        assert result.optimizer.second_moment.any()
        losses[name] = result.step_losses
    write_adapter(tiny.model, start)
    assert losses["adamw_8bit"][-1] < losses["adamw_8bit"][0]
    assert losses["adamw_8bit"] == pytest.approx(losses["adamw"], rel=0.02)
