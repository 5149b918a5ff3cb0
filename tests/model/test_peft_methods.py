"""Every PEFT method that is not LoRA itself: where it starts, what it saves, and the same function in plain PEFT."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_adapter, text_examples, tiny_config
from entropy_calibration import SEARCH_STEPS, calibrate

from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model import loading
from fedfinlora.model.adapter import load_adapter, save_adapter, trainable, write_adapter
from fedfinlora.model.adapter_folder import peft_settings
from fedfinlora.model.embedded import embedded_folder
from fedfinlora.model.layout_only import layout_session
from fedfinlora.model.loading import Session, first_adapter, get_session, initial_adapter
from fedfinlora.model.peft_methods import METHODS
from fedfinlora.model.peft_methods.eva import input_grams, principal_inputs, public_rows
from fedfinlora.model.peft_methods.lora import A, B
from fedfinlora.model.plain_lora import plain_lora
from fedfinlora.privacy.forecast import adapter_parameters
from fedfinlora.privacy.mechanism import Mechanism, private_step
from fedfinlora.privacy.per_example import adapted_layers
from fedfinlora.seeds import derive_seed
from fedfinlora.train.memory import footprint
from fedfinlora.train.optimizers import make_optimizer, set_rate

OWN_FORM = ("pissa", "olora", "qalora", "ir_qlora", "vera", "miss", "hira", "shira")
"""Methods with modules of their own; eva and loftq are LoRA from another start."""
LINEAR = ("miss", "shira")
"""Those whose change of a weight is linear in what is trained."""
CLIPPED = ("pissa", "olora", "qalora", "miss")
IDS = torch.arange(3, 40).unsqueeze(0)


def zoo_config(method: str, quantization: str = "none", seed: int = 0, **peft: Any) -> Config:
    config = tiny_config(quantization if quantization != "none" or method != "loftq" else "nf4")
    return dataclasses.replace(config, seed=seed, peft=dataclasses.replace(config.peft, method=method, **peft))


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def moved(session: Session, config: Config, seed: int = 0) -> np.ndarray:
    """The run's start and a random step, in the session's model."""
    vector = first_adapter(session, config) + random_adapter(session.layout.size, seed)
    write_adapter(session.model, vector)
    return vector


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of public rows for eva."""
    folder = tmp_path_factory.mktemp("public")
    draw = np.random.default_rng(0)
    rows = [{"context": "".join(map(chr, draw.integers(32, 127, 40)))} for _ in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("method", OWN_FORM)
def test_a_method_starts_from_the_base_model(method: str, quantization: str) -> None:
    config = zoo_config(method, quantization)
    session = get_session(config)
    initial_adapter(session, config)
    start, size = logits_of(session.model), session.layout.size
    loading._sessions.clear()
    assert torch.equal(start, logits_of(session.model.unload()))  # type: ignore[operator]
    assert adapter_parameters(config.peft, {"a.q_proj": (64, 64), "a.v_proj": (64, 32)}) * 2 == size


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("method", OWN_FORM)
def test_plain_peft_computes_the_same_from_the_folder(tmp_path: Path, method: str, quantization: str) -> None:
    from peft import PeftModel

    config = zoo_config(method, quantization)
    session = get_session(config)
    vector = moved(session, config)
    ours = logits_of(session.model)
    save_adapter(tmp_path, vector, session.layout, config.peft, config.model, session.frozen)
    again = load_adapter(tmp_path, session.layout, config.model, session.frozen)
    write_adapter(session.model, again)
    assert torch.allclose(logits_of(session.model), ours, atol=1e-5)
    assert method == "ir_qlora" or np.allclose(again, vector, rtol=1e-5, atol=1e-7)
    base = session.model.unload()  # type: ignore[operator]
    loading._sessions.clear()
    without = logits_of(base)
    theirs = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    assert torch.allclose(logits_of(theirs), ours, atol=2e-5)
    assert float((ours - without).abs().max()) > 0.01
    theirs.unload()


@pytest.mark.parametrize("method", OWN_FORM)
def test_a_folder_is_plain_lora_or_refused_by_name(tmp_path: Path, method: str) -> None:
    config = zoo_config(method)
    session = get_session(config)
    vector = moved(session, config)
    save_adapter(tmp_path, vector, session.layout, config.peft, config.model, session.frozen)
    settings = peft_settings(tmp_path, Config())
    if METHODS[method].peft_type != "LORA":
        assert (settings.method, settings.rank) == (method, 4)
        with pytest.raises(UserError, match=f"a {METHODS[method].peft_type} adapter, and no plain LoRA"):
            plain_lora(tmp_path)
        return
    layer = plain_lora(tmp_path).layers["model.layers.0.self_attn.v_proj"]
    assert settings.method == "lora"
    assert (layer[0].shape[1], layer[1].shape[0]) == (64, 32)


def test_no_method_loads_the_base_again() -> None:
    get_session(zoo_config("lora"))
    before = loading.base_loads
    for method in OWN_FORM:
        get_session(zoo_config(method))
    assert loading.base_loads == before


@pytest.mark.parametrize("method", OWN_FORM)
def test_a_saved_adapter_starts_a_run_and_is_evaluated(tmp_path: Path, method: str) -> None:
    config = dataclasses.replace(zoo_config(method), start_adapter=str(tmp_path))
    session = get_session(config)
    vector = initial_adapter(session, config) + random_adapter(session.layout.size)
    write_adapter(session.model, vector)
    ours = logits_of(session.model)
    save_adapter(tmp_path, vector, session.layout, config.peft, config.model, session.frozen)
    write_adapter(session.model, first_adapter(session, config))
    assert torch.allclose(logits_of(session.model), ours, atol=1e-5)
    plain = dataclasses.replace(config, peft=peft_settings(tmp_path, config), start_adapter="")
    session = get_session(plain)
    write_adapter(session.model, load_adapter(tmp_path, session.layout, plain.model, session.frozen))
    assert torch.allclose(logits_of(session.model), ours, atol=2e-5)


@pytest.mark.parametrize("method", [name for name in OWN_FORM if not METHODS[name].needs_base])
def test_a_server_without_the_base_knows_the_layout_and_start(method: str) -> None:
    config = zoo_config(method, seed=3)
    session = get_session(config)
    whole, start = session.layout.id, initial_adapter(session, config)
    empty = layout_session(config)
    assert empty.layout.id == whole
    assert np.array_equal(initial_adapter(empty, config), start)


@pytest.mark.parametrize("method", ["vera", "shira"])
def test_banks_of_another_seed_have_another_layout(method: str) -> None:
    ids = {get_session(zoo_config(method, seed=seed)).layout.id for seed in (1, 1, 2)}
    assert len(ids) == 2


@pytest.mark.parametrize("method", OWN_FORM)
def test_the_mean_is_exact_where_the_update_is_linear(method: str) -> None:
    config = zoo_config(method)
    session = get_session(config)
    start = first_adapter(session, config)
    vectors = [start + random_adapter(session.layout.size, seed) for seed in (1, 2, 3)]

    def changes(vector: np.ndarray) -> np.ndarray:
        """What each layer adds to the identity's inputs, (layers, 64, d_out) flat."""
        write_adapter(session.model, vector)
        parts = []
        for module in session.model.modules():
            if "default" in getattr(module, "lora_B", {}):
                x = torch.eye(64)
                with torch.no_grad():
                    parts.append((module(x) - module.get_base_layer()(x)).flatten())  # type: ignore[operator]
        return torch.cat(parts).double().numpy()

    mean = np.mean([changes(vector) for vector in vectors], axis=0)
    difference = np.linalg.norm(changes(np.mean(vectors, axis=0, dtype=np.float32)) - mean) / np.linalg.norm(mean)
    assert (difference < 1e-5) == (method in LINEAR), difference


# --- next to PEFT's own implementations ------------------------------------------------------------


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_the_start_is_pefts(method: str) -> None:
    from peft import LoraConfig, get_peft_model

    config = zoo_config(method)
    session = get_session(config)
    weights = {name: value.clone() for name, value in session.model.state_dict().items() if "base_layer" in name}
    base, _ = loading.load_base(config.model)
    options = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=method)
    peft = get_peft_model(base, options)
    checked = 0
    for path, layer in peft.named_modules():
        if "default" not in getattr(layer, "lora_A", {}):
            continue
        a, b = (session.frozen[f"{path}.lora_{factor}.start.weight"] for factor in "AB")
        theirs = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert np.allclose(b @ a, theirs.detach().numpy(), atol=1e-6)
        assert np.allclose((a * a).sum(1), layer.lora_A["default"].weight.square().sum(1).detach().numpy(), rtol=1e-4)
        residual = weights[f"{path}.base_layer.weight"].numpy() - 2 * b @ a
        assert np.allclose(residual, layer.get_base_layer().weight.detach().numpy(), atol=1e-6)
        checked += 1
    assert checked == 4


def test_vera_is_pefts_vera() -> None:
    from peft import VeraConfig, get_peft_model

    config = zoo_config("vera", seed=5)
    session = get_session(config)
    moved(session, config)
    ours, tensors = logits_of(session.model), {k: v.detach().clone() for k, v in trainable(session.model).items()}
    base = session.model.unload()  # type: ignore[operator]
    loading._sessions.clear()
    key = derive_seed(5, "adapter")
    options = VeraConfig(r=4, target_modules=["q_proj", "v_proj"], projection_prng_key=key)
    theirs: Any = get_peft_model(base, options)
    with torch.no_grad():
        for path, layer in theirs.named_modules():
            if hasattr(layer, "vera_lambda_b"):
                layer.vera_lambda_b["default"].copy_(tensors[f"{path}.lora_B.b"])
                layer.vera_lambda_d["default"].copy_(tensors[f"{path}.lora_B.d"])
    assert torch.allclose(logits_of(theirs.eval()), ours, atol=1e-6)
    theirs.unload()


@pytest.mark.parametrize("rank", [4, 6])
def test_miss_is_pefts_miss(rank: int) -> None:
    from peft import MissConfig, get_peft_model

    config = zoo_config("miss", rank=rank)
    session = get_session(config)
    moved(session, config)
    ours, tensors = logits_of(session.model), {k: v.detach().clone() for k, v in trainable(session.model).items()}
    base = session.model.unload()  # type: ignore[operator]
    loading._sessions.clear()
    theirs: Any = get_peft_model(base, MissConfig(r=rank, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for path, layer in theirs.named_modules():
            if hasattr(layer, "miss_block"):
                layer.miss_block["default"].copy_(tensors[f"{path}.lora_B.D.weight"].T)
    assert torch.allclose(logits_of(theirs.eval()), ours, atol=1e-5)
    theirs.unload()


@pytest.mark.parametrize("method", ["lora", "dora", "pissa"])
def test_loraplus_has_the_rates_of_pefts_optimiser(method: str) -> None:
    from peft.optimizers import create_loraplus_optimizer

    config = zoo_config(method, loraplus_ratio=16.0)
    session = get_session(config)
    train = dataclasses.replace(config.train, learning_rate=2e-4, weight_decay=0.0)
    ours = make_optimizer(list(trainable(session.model).values()), train)
    set_rate(ours, 2e-4)
    theirs = create_loraplus_optimizer(session.model, torch.optim.AdamW, lr=2e-4, loraplus_lr_ratio=16)

    def rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
        return {id(each): group["lr"] for group in optimizer.param_groups for each in group["params"]}

    assert rates(ours) == rates(theirs)
    assert {round(rate, 8) for rate in rates(ours).values()} == {2e-4, 32e-4}


# --- other starts ----------------------------------------------------------------------------------


def test_eva_starts_from_the_singular_vectors_of_its_inputs(public: Path) -> None:
    config = zoo_config("eva", rows=str(public))
    session = get_session(config)
    views = session.layout.views(first_adapter(session, config))
    assert not any(view.any() for name, view in views.items() if name.endswith(B))
    path = "base_model.model.model.layers.0.self_attn.q_proj"
    layer: Any = session.model.get_submodule(path)
    seen: list[np.ndarray] = []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0][0].detach().double().numpy()))
    input_grams(session.model, session.tokenizer, public_rows(public))
    handle.remove()
    vectors = np.linalg.svd(np.concatenate(seen))[2][:4]
    a = views[path + A]
    assert np.allclose(np.abs((a * vectors).sum(axis=1)), 1.0, atol=1e-4)
    assert np.array_equal(a, views[path.replace("q_proj", "v_proj") + A]), "q and v have the same inputs"


def test_eva_refuses_rows_that_are_no_rows(tmp_path: Path) -> None:
    config = zoo_config("eva", rows=str(tmp_path))
    session = get_session(config)
    with pytest.raises(UserError, match="has no rows"):
        first_adapter(session, config)
    (tmp_path / "a.jsonl").write_text("{not json\n")
    with pytest.raises(UserError, match=r"a\.jsonl, line 1, is no JSON"):
        first_adapter(session, config)
    with pytest.raises(UserError, match="fewer than 4 directions"):
        principal_inputs(np.diag([1.0, 1.0, 0, 0, 0]), 4)


def test_loftq_starts_from_the_best_approximation_of_what_was_lost() -> None:
    from safetensors.numpy import load_file

    config = zoo_config("loftq", "nf4")
    session = get_session(config)
    views = session.layout.views(first_adapter(session, config))
    weights = load_file(embedded_folder(config.model.path) / "model.safetensors")
    for name in (name for name in views if name.endswith(A)):
        path = name.removesuffix(A)
        layer: Any = session.model.get_submodule(path)
        lost = weights[path.removeprefix("base_model.model.") + ".weight"] - layer.get_base_layer().weight.numpy()
        left = lost - 2.0 * views[path + B] @ views[name]
        values = np.linalg.svd(lost, compute_uv=False)
        assert np.linalg.norm(left) == pytest.approx(math.sqrt((values[4:] ** 2).sum()), rel=1e-3)
    with pytest.raises(ConfigError, match=r"model\.quantization=none loses nothing"):
        compose(["peft=loftq", "model.quantization=none"])


def test_the_entropy_of_calibrated_codes_is_never_lower() -> None:
    from bitsandbytes.functional import get_4bit_type

    code = get_4bit_type("nf4", device="cpu").double().numpy()
    weight = np.random.default_rng(0).gamma(2.0, 0.1, (8, 128))  # far from symmetric
    plain, calibrated = (calibrate(weight, code, steps) for steps in (0, SEARCH_STEPS))
    assert (calibrated.entropy >= plain.entropy).all()
    assert calibrated.entropy.mean() > plain.entropy.mean() + 0.05
    assert np.abs(calibrated.weight - weight).max() < 0.2 * np.abs(weight).max()


# --- privacy and refusals --------------------------------------------------------------------------


@pytest.mark.parametrize("method", CLIPPED)
def test_privacy_of_rows_clips_each_rows_gradient(method: str) -> None:
    config = zoo_config(method)
    session = get_session(config)
    moved(session, config)
    session.model.eval()
    rows, clip = text_examples(3), 0.1
    mechanism = Mechanism(
        clip_norm=clip, sampling_rate=1.0, noise_multiplier=0.0, units=((0,), (1,), (2,)), expected_units=3.0, seed=0,
        bank="b", reproducible=True,
    )  # fmt: skip
    private_step(session.model, rows, mechanism, 0, 4096, footprint(session.model), 2.0**40)
    ours = {name: 3 * each.grad.double() for name, each in trainable(session.model).items()}  # type: ignore[union-attr]
    grid = mechanism.grid(session.layout.size)
    sums = {name: torch.zeros_like(total) for name, total in ours.items()}
    for row in rows:
        session.model.zero_grad(set_to_none=True)
        ids = torch.tensor([[*row.prompt_ids, *row.answer_ids]])
        logits = session.model(input_ids=ids).logits[0, len(row.prompt_ids) - 1 : -1].double()
        torch.nn.functional.cross_entropy(logits, ids[0, len(row.prompt_ids) :]).backward()
        gradients = {name: each.grad.double() for name, each in trainable(session.model).items()}  # type: ignore[union-attr]
        norm = math.sqrt(sum(float(each.square().sum()) for each in gradients.values()))
        assert norm > clip
        for name, gradient in gradients.items():
            sums[name] += gradient * grid.target_steps * grid.step / norm
    session.model.zero_grad(set_to_none=True)
    difference = sum(float((ours[name] - sums[name]).square().sum()) for name in sums)
    assert difference < 1e-6 * sum(float(total.square().sum()) for total in sums.values())


@pytest.mark.parametrize("method", ["vera", "ir_qlora", "hira", "shira"])
def test_privacy_of_rows_refuses_methods_without_their_gradients(method: str) -> None:
    with pytest.raises(ConfigError, match=rf"privacy=example does not go with peft={method}: .*Set peft=lora"):
        compose([f"peft={method}", "privacy=example"])
    with pytest.raises(ConfigError, match=rf"privacy=dp_lora does not go with peft={method}"):
        compose([f"peft={method}", "privacy=dp_lora"])
    session = get_session(zoo_config(method))
    with pytest.raises(UserError, match="can clip the weights of linear layers only"):
        adapted_layers(session.model)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["peft=vera", "strategy=flexlora"], "works on A and B, which peft=vera does not train"),
        (["peft=shira", "strategy=rolora"], "works on A and B, which peft=shira does not train"),
        (["peft=pissa", "peft.freeze_a=true"], "peft=pissa has its own A and B"),
        (["peft=miss", "peft.loraplus_ratio=16"], "does not train both"),
        (["peft.loraplus_ratio=0.5"], "must be 1"),
        (["peft.loraplus_ratio=16", "strategy=scaffold"], "from one learning rate"),
        (["peft.rows=x"], "peft=eva and peft.rows"),
        (["peft.target_modules=[all-linear,q_proj]"], "Give it alone"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        compose(words)


@pytest.mark.parametrize(
    ("method", "peft", "reason"),
    [
        ("pissa", {"rank": 33}, "fewer than 33 directions"),
        ("olora", {"rank": 33}, "fewer than 33 directions"),
        ("qalora", {"group_size": 24}, "which peft.group_size=24 does not divide"),
        ("ir_qlora", {"rank": 6}, "peft.rank=6 does not divide both"),
        ("shira", {"rank": 60}, "has fewer than"),
        ("miss", {"rank": 65}, "Set a smaller peft.rank"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(method: str, peft: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        get_session(zoo_config(method, **peft))
    get_session(zoo_config("lora"))


def test_all_linear_names_the_seven_layers() -> None:
    config = compose(["model=tiny-random", "peft=lora", "model.quantization=none", "peft.target_modules=all-linear"])
    assert len(config.peft.target_modules) == 7
    assert len(get_session(config).layout.names) == 2 * 7 * 2


@pytest.mark.parametrize("method", ["pissa", "vera", "shira", "qalora", "miss"])
def test_an_adapter_of_another_run_is_refused(tmp_path: Path, method: str) -> None:
    config = zoo_config(method)
    session = get_session(config)
    save_adapter(tmp_path, moved(session, config), session.layout, config.peft, config.model, session.frozen)
    other = {"pissa": ("nf4", 0, {}), "qalora": ("none", 0, {"group_size": 64}), "miss": ("none", 0, {"rank": 2})}
    quantization, seed, peft = other.get(method, ("none", 1, {}))
    config = zoo_config(method, quantization, seed, **peft)
    session = get_session(config)
    with pytest.raises(UserError, match=r"Set (seed|model|peft)"):
        load_adapter(tmp_path, session.layout, config.model, session.frozen)
