"""Fused layers give the logits, losses and gradients of the ordinary ones, and leave the model as it was."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from conftest import MakeSession, random_adapter, text_examples, tiny_config

from fedfinlora.config.peft import LINEAR_LAYERS
from fedfinlora.model.adapter import read_adapter, trainable, write_adapter
from fedfinlora.model.fused_layers import fused_layers, gated, normalised, rotated
from fedfinlora.model.loading import Session, get_session
from fedfinlora.model.packing import answer_logits, make_pack
from fedfinlora.train.gradient_step import answer_loss
from fedfinlora.train.memory import checkpoint_first, decoder_layers, own_checkpointing


def loss_and_gradients(session: Session, fused: bool, layers: int = 0) -> tuple[float, list[torch.Tensor]]:
    """Of six rows, with the same dropout each time; the first `layers` layers are checkpointed."""
    model = session.model
    there = decoder_layers(model)
    pack = make_pack(text_examples(6))
    with own_checkpointing(there), fused_layers(model) if fused else nullcontext():
        checkpoint_first(there, layers)
        model.train()
        torch.manual_seed(3)
        loss = answer_loss(model, pack)
        gradients = torch.autograd.grad(loss, list(trainable(model).values()))
        model.eval()
    return float(loss.detach()), list(gradients)


def all_linear(session: Session, dropout: float = 0.0) -> Session:
    """An adapter on every linear layer."""
    config = tiny_config(dropout=dropout)
    found = get_session(
        dataclasses.replace(config, peft=dataclasses.replace(config.peft, target_modules=LINEAR_LAYERS))
    )
    write_adapter(found.model, read_adapter(found.model) + random_adapter(found.layout.size))
    return found


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("checkpointed", [0, 1])
def test_gradients_equal_those_of_plain_layers(session_of: MakeSession, quantization: str, checkpointed: int) -> None:
    session = session_of(quantization)
    with fused_layers(session.model) as layers:
        assert layers == len(decoder_layers(session.model)), "nothing was compared"
    loss, gradients = loss_and_gradients(session, fused=False)
    fused_loss, fused = loss_and_gradients(session, fused=True, layers=checkpointed)
    assert fused_loss == pytest.approx(loss, rel=1e-5)
    for one, other in zip(gradients, fused, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5 * float(one.abs().max()))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_adapters_on_every_layer_with_dropout(session_of: MakeSession, dropout: float) -> None:
    session = all_linear(session_of(), dropout)
    loss, gradients = loss_and_gradients(session, fused=False)
    fused_loss, fused = loss_and_gradients(session, fused=True)
    assert fused_loss == pytest.approx(loss, rel=1e-5)
    for one, other in zip(gradients, fused, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5 * float(one.abs().max()))


def test_logits_without_gradients_equal_plain_ones(session_of: MakeSession) -> None:
    session = all_linear(session_of())
    pack = make_pack(text_examples(6))
    with torch.inference_mode():
        plain = answer_logits(session.model, pack)
        with fused_layers(session.model):
            fused = answer_logits(session.model, pack)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["dora", "hira", "vera", "lora_xs"])
def test_methods_of_another_form_keep_their_own_layers(method: str) -> None:
    with fused_layers(get_session(tiny_config(method=method)).model) as layers:
        assert layers == 0


def test_a_layer_with_hooks_stays_plain(session_of: MakeSession) -> None:
    session = session_of()
    layers = decoder_layers(session.model)
    handle = layers[0].self_attn.q_proj.register_forward_hook(lambda *_: None)  # type: ignore[union-attr, operator]
    try:
        with fused_layers(session.model) as fused:
            assert fused == len(layers) - 1
    finally:
        handle.remove()


def test_after_an_error_the_layers_are_plain_again(session_of: MakeSession) -> None:
    model = session_of().model
    layers = decoder_layers(model)

    def fails() -> None:
        with fused_layers(model), fused_layers(model):
            assert all("forward" in vars(layer) for layer in layers)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not any("forward" in vars(layer) for layer in layers)


def test_a_pass_without_a_plan_is_that_of_transformers(session_of: MakeSession) -> None:
    model = session_of().model
    token_ids = torch.arange(3, 17).view(2, 7)
    plain = model(input_ids=token_ids).logits
    with fused_layers(model):
        assert torch.equal(model(input_ids=token_ids).logits, plain)


def test_each_derivative_equals_that_of_finite_differences() -> None:
    """In float64 (torch.autograd.gradcheck)."""
    rng = torch.Generator().manual_seed(0)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_()

    class Norm:
        weight, variance_epsilon = values(6).detach(), 1e-5

    cos, sin = values(5, 1, 4).detach(), values(5, 1, 4).detach()
    assert torch.autograd.gradcheck(lambda inputs: normalised(Norm, inputs), values(5, 6))
    assert torch.autograd.gradcheck(lambda heads: rotated(heads, cos, sin), values(5, 3, 4))
    assert torch.autograd.gradcheck(gated, (values(5, 6), values(5, 6)))
