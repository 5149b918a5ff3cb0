"""What is counted, set and drawn for GPUs, as far as a CPU shows it."""

from __future__ import annotations

import dataclasses
import json
import math
import os

import pytest
import torch
from conftest import tiny_config
from hypothesis import example, given
from hypothesis import strategies as st

from fedfinlora.compose import compose
from fedfinlora.errors import ConfigError
from fedfinlora.model.adapter import Layout, frozen_sha256
from fedfinlora.model.base_checks import is_near_tie
from fedfinlora.model.devices import actor_resources, before_cuda_starts, placement, prepare_cuda, usable_gpus
from fedfinlora.model.layout_only import layout_session, server_session
from fedfinlora.model.loading import Session, add_adapter, first_adapter, get_session, load_base
from fedfinlora.model.peft_methods import METHODS
from fedfinlora.model.quantized import compute_in_base_dtype
from fedfinlora.seeds import derive_seed


def test_gpus_are_those_that_cuda_gives_and_each_named_mig_slice() -> None:
    assert usable_gpus(None, 0) == usable_gpus("0,1", 0) == 0, "no driver, no GPU, for all that /dev holds"
    assert usable_gpus("1,2", 2) == 2
    assert usable_gpus("GPU-a", 1) == 1
    assert usable_gpus("MIG-a, MIG-b,MIG-a", 1) == 2


@given(st.integers(0, 16), st.integers(1, 300), st.integers(1, 256))
@example(1, 6, 8)
@example(4, 3, 8)
def test_ray_starts_as_many_banks_as_workers(gpus: int, workers: int, cores: int) -> None:
    """Ray's own arithmetic: whole actors that fit the processors, and in each GPU."""
    found = actor_resources(workers, cores, gpus)
    by_cpu = found.all_cpus // found.cpus
    assert by_cpu == workers
    if gpus:
        by_gpu = gpus * math.floor(1 / found.gpus + 1e-9) if found.gpus < 1 else gpus // int(found.gpus)
        assert by_gpu >= workers, "every worker gets a GPU"
        assert found.gpus < 1 or found.gpus.is_integer(), "Ray takes whole GPUs from one on"


def test_cudnn_attention_is_off_and_the_allocator_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    before_cuda_starts()
    assert os.environ == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    monkeypatch.setattr(os, "environ", {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"})
    before_cuda_starts()
    assert len(os.environ) == 1, "what the environment says remains"
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        prepare_cuda()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


# --- model.device_map -----------------------------------------------------------------------------


def test_device_map_reaches_transformers_and_a_model_is_loaded_by_it() -> None:
    cuda = torch.device("cuda", 0)
    assert placement("", cuda) == {"device_map": {"": cuda}}
    assert placement("sequential", cuda) == {"device_map": "sequential"}
    assert placement('{"model":0,"lm_head":1}', cuda) == {"device_map": {"model": 0, "lm_head": 1}}
    config = dataclasses.replace(tiny_config().model, device_map='{"":"cpu"}')
    base, _ = load_base(config)
    plain, _ = load_base(tiny_config().model)
    assert all(torch.equal(one, other) for one, other in zip(base.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize(
    "value", ["auto", "{}", "[0]", '{"model":-1}', '{"model":true}', '{"model":"disk"}', "{model:0}"]
)
def test_a_device_map_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.device_map=.*Use balanced, sequential"):
        dataclasses.replace(tiny_config().model, device_map=value)


# --- the same adapter on every device -------------------------------------------------------------


def frozen_a(seed: int = 3) -> Session:
    config = dataclasses.replace(tiny_config(), seed=seed)
    return get_session(dataclasses.replace(config, peft=dataclasses.replace(config.peft, freeze_a=True)))


def test_a_is_drawn_on_the_cpu_with_the_bytes_of_peft_s_own_draw() -> None:
    """A generator of its own: neither the weights' device nor their type, nor what was drawn before, changes it."""
    session = frozen_a()
    modules = [module for module in session.model.modules() if hasattr(module, "reset_lora_parameters")]
    drawn = [module.lora_A["default"].weight.clone() for module in modules]
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(3, "adapter"))
        for module in modules:
            module.reset_lora_parameters("default", True)
    assert all(torch.equal(one, module.lora_A["default"].weight) for one, module in zip(drawn, modules, strict=True))
    before = torch.get_rng_state()
    for module in modules:
        module.to(torch.bfloat16)
    METHODS["lora"].start(session.model, 3)
    assert torch.equal(before, torch.get_rng_state())
    assert all(
        torch.equal(one.bfloat16(), module.lora_A["default"].weight) for one, module in zip(drawn, modules, strict=True)
    )
    for module in modules:
        module.to(torch.float32)
    METHODS["lora"].start(session.model, 3)


def test_another_frozen_a_is_another_layout() -> None:
    one, other, again = frozen_a(3).layout, frozen_a(4).layout, frozen_a(3).layout
    assert one.names == other.names
    assert one.id != other.id
    assert one.id == again.id
    assert one.frozen_sha256 == frozen_sha256(frozen_a(3).frozen)
    assert get_session(tiny_config()).layout.frozen_sha256 == ""
    assert Layout(("a",), ((1,),)).id == Layout(("a",), ((1,),), "").id


def test_a_lora_in_bfloat16_keeps_float32_weights_and_gradients() -> None:
    """What GPUs do: products of bfloat16, masters of float32; the loss differs by rounding."""
    config = tiny_config()
    model_config = dataclasses.replace(config.model, dtype="bfloat16")
    losses, norms = [], []
    tokens = torch.arange(5, 25)[None]
    for cast in (False, True):
        base, _ = load_base(model_config)
        model = add_adapter(base, model_config, config.peft, 0)
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(1))
        if cast:
            compute_in_base_dtype(model)
        loss = torch.nn.functional.cross_entropy(model(input_ids=tokens).logits[0, :-1].float(), tokens[0, 1:])
        loss.backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert (
            {parameter.dtype for parameter in trained}
            == {parameter.grad.dtype for parameter in trained}
            == {torch.float32}
        )
        losses.append(loss.item())
        norms.append(math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in trained)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert norms[1] == pytest.approx(norms[0], rel=5e-2)


# --- a server that scores nothing -----------------------------------------------------------------


@pytest.mark.parametrize("peft", ["lora", "rslora"])
@pytest.mark.parametrize("freeze_a", [False, True])
def test_a_server_that_scores_nothing_has_the_layout_without_a_base(peft: str, freeze_a: bool) -> None:
    config = tiny_config("nf4", peft)
    config = dataclasses.replace(config, seed=5, peft=dataclasses.replace(config.peft, freeze_a=freeze_a))
    full = get_session(config)
    start = first_adapter(full, config)
    light = server_session(config, scores=False)
    assert light.layout == full.layout
    assert json.dumps(light.layout.names)
    assert first_adapter(light, config).tobytes() == start.tobytes()
    assert {name: tensor.tobytes() for name, tensor in light.frozen.items()} == {
        name: tensor.tobytes() for name, tensor in full.frozen.items()
    }
    base = [parameter for name, parameter in light.model.named_parameters() if ".lora_" not in name]
    assert {parameter.device.type for parameter in base} == {"meta"}, "no number of the base is in memory"


@pytest.mark.parametrize("peft", ["dora", "lora_xs"])
def test_an_adapter_that_is_made_of_the_base_needs_it_at_the_server(peft: str) -> None:
    config = tiny_config(method=peft)
    assert server_session(config, scores=False).model is get_session(config).model


def test_scoring_servers_load_the_base() -> None:
    from eval.rounds import scores_anything

    words = ["model=tiny-random", "evaluation=none"]
    assert not scores_anything(compose(words))
    assert scores_anything(compose([*words, "evaluation.base=true"]))
    assert scores_anything(compose(words[:1]))
    assert layout_session(compose(words)).tokenizer is None


def test_a_near_tie_is_a_difference_within_rounding() -> None:
    logits = torch.tensor([4.0, 3.99, 1.0, -2.0])
    assert is_near_tie(logits, 0, 1)
    assert not is_near_tie(logits, 0, 2)
