"""A later stage on top of an earlier adapter, as one adapter: against plain PEFT with both, and against training on a
base with the earlier one merged in.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import overrides, write_rows

from client_app.own_rows import divide
from data.encode import encode_rows
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.adapter import read_adapter, save_adapter, trainable, write_adapter
from fedfinlora.model.embedded import embedded_folder
from fedfinlora.model.loading import Session, first_adapter, get_session, initial_adapter, load_base
from fedfinlora.train.loop import Stretch, train
from fedfinlora.train.own_columns import foreign_rank, frozen_columns, with_frozen_ranks

EARLIER = ("peft.rank=2", "peft.alpha=6", "peft.target_modules=[q_proj,v_proj]", "peft.dropout=0")
LATER = ("peft.rank=6", "peft.alpha=12", "peft.frozen_rank=2", "peft.dropout=0")
"""Four ranks of scale 2 on top of two of scale 3."""
WIDER = ("peft.target_modules=[q_proj,k_proj,v_proj,up_proj]",)
NARROWER = ("peft.target_modules=[k_proj,q_proj,v_proj]", "peft.trained_modules=[k_proj]")
SGD = ("train.optimizer=sgd", "train.sgd_learning_rate=3")
"""Adam would divide what is but rounding by its own size."""
STEPS = Stretch(0, 3, 3, 4.0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


def config_of(rows: Path, *more: str) -> Config:
    return compose(overrides(rows, rows, "model.quantization=none", "peft=lora", *more))


@pytest.fixture(scope="module")
def earlier(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter of which nothing is zero."""
    folder = tmp_path_factory.mktemp("earlier")
    return saved_random(folder, config_of(rows, *EARLIER))


def saved_random(folder: Path, config: Config) -> Path:
    session = get_session(config)
    vector = np.random.default_rng(5).normal(0.0, 0.1, session.layout.size).astype(np.float32)
    save_adapter(folder, vector, session.layout, config.peft, config.model)
    return folder


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(3, 20).unsqueeze(0)).logits
    return found


def fresh_base() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(embedded_folder("memory:tiny-random"))


def examples_of(session: Session, config: Config) -> Any:
    return encode_rows(session.tokenizer, divide(config, 1)[0], 128, "skip", False, False).examples


def trained(session: Session, config: Config, start: Any) -> Any:
    """The adapter after three steps from `start`, (size,)."""
    write_adapter(session.model, start)
    with frozen_columns(session.model, 0, config.peft):
        train(session.model, examples_of(session, config), STEPS, config.train, seed=0, bank="bank-0")
    return read_adapter(session.model)


@pytest.mark.parametrize("layers", [WIDER, NARROWER])
def test_the_saved_adapter_equals_both_adapters_in_plain_peft(
    rows: Path, earlier: Path, tmp_path: Path, layers: tuple[str, ...]
) -> None:
    """One folder against PEFT with two active adapters: the earlier one, and the new ranks as an adapter of their
    own.
    """
    from peft import PeftModel

    config = config_of(rows, *LATER, *layers, f"start_adapter={earlier}")
    session = get_session(config)
    start = first_adapter(session, config)
    adapter = trained(session, config, start)
    save_adapter(tmp_path / "both", adapter, session.layout, config.peft, config.model)
    own = replace(config.peft, rank=4, alpha=8, frozen_rank=0, trained_modules=())
    own_layout = get_session(replace(config, start_adapter="", peft=own)).layout
    new = np.zeros(own_layout.size, np.float32)
    for layer, into in zip(session.layout.layers, own_layout.layers, strict=True):
        (a, b), (own_a, own_b) = layer.of(adapter), into.of(new)
        own_a[:], own_b[:] = a[:4], b[:, :4]
    save_adapter(tmp_path / "new", new, own_layout, own, config.model)

    one = logits_of(PeftModel.from_pretrained(fresh_base(), str(tmp_path / "both")))
    two: Any = PeftModel.from_pretrained(fresh_base(), str(earlier), adapter_name="earlier")
    before = logits_of(two)
    two.load_adapter(str(tmp_path / "new"), adapter_name="new")
    two.base_model.set_adapter(["earlier", "new"])
    torch.testing.assert_close(one, logits_of(two), atol=1e-6, rtol=1e-6)
    assert (one - before).abs().max() > 1e-3


def test_a_stage_begins_with_the_earlier_adapters_logits(rows: Path, earlier: Path) -> None:
    from peft import PeftModel

    config = config_of(rows, *LATER, *WIDER, f"start_adapter={earlier}")
    session = get_session(config)
    write_adapter(session.model, first_adapter(session, config))
    expected = logits_of(PeftModel.from_pretrained(fresh_base(), str(earlier)))
    torch.testing.assert_close(logits_of(session.model), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("layers", [WIDER, NARROWER])
def test_frozen_ranks_and_layers_do_not_move(rows: Path, earlier: Path, layers: tuple[str, ...]) -> None:
    config = config_of(rows, *LATER, *layers, f"start_adapter={earlier}")
    session = get_session(config)
    start = first_adapter(session, config)
    delta = trained(session, config, start) - start
    for layer in session.layout.layers:
        a, b = layer.of(delta)
        assert not a[4:].any()
        assert not b[:, 4:].any()
        assert b[:, :4].any() == config.peft.trains(layer.layer)
    assert not foreign_rank(delta, start, session.layout, config, "bank-0")


def test_it_trains_as_on_a_base_with_the_earlier_adapter_merged(rows: Path, earlier: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    config = config_of(rows, *LATER, *WIDER, f"start_adapter={earlier}", "train.clip_norm=0.05", *SGD)
    session = get_session(config)
    start = first_adapter(session, config)
    layers = {layer.layer: layer.of(start)[0][:4].copy() for layer in session.layout.layers}
    merged = PeftModel.from_pretrained(load_base(config.model)[0], str(earlier)).merge_and_unload()
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=list(config.peft.target_modules), lora_dropout=0.0)
    reference = get_peft_model(merged, settings)
    for name, parameter in trainable(reference).items():
        if ".lora_A." in name:
            parameter.data = torch.from_numpy(layers[name.split(".lora_A.")[0]])
    train(reference, examples_of(session, config), STEPS, config.train, seed=0, bank="bank-0")
    adapter, expected = trained(session, config, start), trainable(reference)
    for layer in session.layout.layers:
        a, b = layer.of(adapter)
        for found, end in ((a[:4], "A"), (b[:, :4], "B")):
            wanted = expected[f"{layer.layer}.lora_{end}.weight"].detach().numpy()
            np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert np.abs(adapter - start).max() > 1e-2


def test_an_update_that_moves_frozen_ranks_is_foreign(rows: Path, earlier: Path) -> None:
    config = config_of(rows, *LATER, *NARROWER, f"start_adapter={earlier}")
    session = get_session(config)
    start = first_adapter(session, config)
    fault = {"k_proj": (5, "moves the last 2 ranks"), "q_proj": (0, "moves layers that peft.trained_modules")}
    for module, (rank, reason) in fault.items():
        delta = np.zeros_like(start)
        layer = next(layer for layer in session.layout.layers if layer.layer.endswith(module))
        layer.of(delta)[1][:, rank] = 1.0
        assert reason in foreign_rank(delta, start, session.layout, config, "bank-0")
        assert np.array_equal(with_frozen_ranks(start + delta, start, session.layout, config), start)


def test_the_base_model_is_the_base_model(rows: Path, earlier: Path) -> None:
    config = config_of(rows, *LATER, *WIDER, f"start_adapter={earlier}")
    session = get_session(config)
    write_adapter(session.model, initial_adapter(session, config))
    torch.testing.assert_close(logits_of(session.model), logits_of(fresh_base()), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("more", "kind", "reason"),
    [
        (("peft.frozen_rank=3",), UserError, "has rank 2, not 3. Set peft.frozen_rank=2"),
        (("peft.target_modules=[k_proj,v_proj]",), UserError, "has layers q_proj too. Add them"),
        (("peft.frozen_rank=6",), ConfigError, "frozen_rank must be 0 .* and below peft.rank=6"),
        (("peft=dora",), ConfigError, "frozen_rank=2 goes with peft=lora and qlora"),
        (("peft.freeze_a=true",), ConfigError, "frozen_rank=2 goes with peft=lora and qlora"),
        (("peft.trained_modules=[o_proj]",), ConfigError, "names some of peft.target_modules"),
        (("peft.frozen_rank=0", "peft.trained_modules=[q_proj]"), ConfigError, "goes with peft.frozen_rank"),
        (("strategy=flexlora",), ConfigError, "does not go with strategy=flexlora"),
        (("train.weight_decay=0.1",), ConfigError, "does not go with train.weight_decay=0.1"),
        (("start_adapter=",), ConfigError, "does not go with an empty start_adapter"),
    ],
)
def test_what_cannot_be_stacked_is_refused(
    rows: Path, earlier: Path, more: tuple[str, ...], kind: type[Exception], reason: str
) -> None:
    def start() -> None:
        config = config_of(rows, *LATER, *WIDER, f"start_adapter={earlier}", *more)
        first_adapter(get_session(config), config)

    with pytest.raises(kind, match=reason):
        start()


def test_an_adapter_of_another_model_is_refused(rows: Path, tmp_path: Path) -> None:
    config = config_of(rows, *EARLIER)
    folder = saved_random(tmp_path, config)
    from safetensors.numpy import load_file, save_file

    file = folder / "adapter_model.safetensors"
    save_file({name: np.repeat(tensor, 2, axis=1) for name, tensor in load_file(file).items()}, file)
    later = config_of(rows, *LATER, *WIDER, f"start_adapter={folder}")
    with pytest.raises(UserError, match=r"does not fit this model: A of .* has shape"):
        first_adapter(get_session(later), later)
