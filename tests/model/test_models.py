"""The loaded model: it trains and evaluates alike, is loaded once, tests itself, and says what to do when it cannot be
had.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NF4_PACKED, PAIRS, MakeSession, random_adapter, tiny_config
from torch import nn

from fedfinlora.config.model import ModelConfig
from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.model import loading as models
from fedfinlora.model import quantized
from fedfinlora.model.adapter import layout_of, read_adapter, trainable, write_adapter
from fedfinlora.model.devices import pick_device, pick_dtype
from fedfinlora.model.loading import (
    Session,
    add_adapter,
    get_session,
    initial_adapter,
    load_base,
    self_test,
)

ROOT = Path(__file__).resolve().parents[2]
TOKENS = torch.arange(30, 50).unsqueeze(0)


def gradients(model: nn.Module) -> dict[str, torch.Tensor | None]:
    """Gradients of a language-model loss for every trainable tensor, in train() mode."""
    model.train()
    logits = model(input_ids=TOKENS).logits
    loss = nn.functional.cross_entropy(logits[0, :-1].float(), TOKENS[0, 1:])
    found = torch.autograd.grad(loss, list(trainable(model).values()), allow_unused=True)
    model.eval()
    return dict(zip(trainable(model), found, strict=True))


def logits_of(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits  # type: ignore[no-any-return]


def untested(quantization: str, method: str) -> nn.Module:
    """A model on which no forward pass has been run, with a random adapter."""
    config = tiny_config(quantization, method)
    base, _ = load_base(config.model)
    model = add_adapter(base, config.model, config.peft, 0)
    write_adapter(model, read_adapter(model) + random_adapter(layout_of(model).size))
    return model


@pytest.fixture
def forget() -> Iterator[None]:
    """No session is kept from before the test or for after it."""
    models._bases.clear()
    models._sessions.clear()
    yield
    models._bases.clear()
    models._sessions.clear()


# --- one arithmetic -------------------------------------------------------------------------------


@pytest.mark.parametrize(("quantization", "method"), PAIRS)
def test_gradients_are_the_same_before_and_after_an_evaluation(quantization: str, method: str) -> None:
    model = untested(quantization, method)
    before = gradients(model)
    first = logits_of(model)
    after = gradients(model)
    for name, gradient in before.items():
        assert gradient is not None, f"{name} gets no gradient before an evaluation"
        assert float(gradient.norm()) > 0, name
        assert after[name] is not None, f"{name} gets no gradient after an evaluation"
        assert torch.equal(gradient, after[name]), name
    assert torch.equal(first, logits_of(model))


@pytest.mark.parametrize(("quantization", "method"), PAIRS)
def test_training_and_evaluation_give_the_same_logits(quantization: str, method: str) -> None:
    model = untested(quantization, method)
    evaluated = logits_of(model)
    model.train()
    trained = model(input_ids=TOKENS).logits.detach()
    torch.testing.assert_close(trained, evaluated, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("quantization", ["int8", "nf4", NF4_PACKED])
def test_a_quantized_base_differs_from_the_full_one_but_not_by_much(quantization: str) -> None:
    full, _ = load_base(tiny_config("none").model)
    small, _ = load_base(tiny_config(quantization).model)
    difference = float((logits_of(full) - logits_of(small)).abs().max() / logits_of(full).abs().max())
    assert 1e-4 < difference < {"int8": 0.1}.get(quantization, 0.6)


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4", NF4_PACKED])
def test_the_base_is_frozen_and_only_the_adapter_trains(session_of: MakeSession, quantization: str) -> None:
    model = session_of(quantization).model
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(names) == 8
    assert all("lora_" in name for name in names)
    assert all(parameter.dtype == torch.float32 for parameter in trainable(model).values())


@pytest.mark.parametrize("method", ["qlora", "dora"])
def test_unpacked_4_bit_weights_give_the_same_numbers_to_the_bit(method: str) -> None:
    packed, unpacked = untested(NF4_PACKED, method), untested("nf4", method)
    assert {type(module).__name__ for module in packed.modules()} & {"Linear4bit"}
    assert not {type(module).__name__ for module in unpacked.modules()} & {"Linear4bit"}
    assert torch.equal(logits_of(packed), logits_of(unpacked))
    ours, theirs = gradients(packed), gradients(unpacked)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_weights_are_unpacked_only_if_a_quarter_of_the_memory_holds_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(tiny_config("nf4").model, unpack="auto")
    kinds = []
    for memory in (1 << 40, 1 << 20, 1 << 10):
        monkeypatch.setattr(quantized, "_memory_bytes", lambda memory=memory: memory)
        kinds.append({type(module).__name__ for module in load_base(config)[0].modules()})
    assert ["Linear4bit" in kind for kind in kinds] == [False, True, True]


@pytest.mark.parametrize(
    ("unpack", "banks", "free_share", "unpacks"),
    [
        ("auto", 1, 4.0, True),
        ("auto", 1, 3.9, False),
        ("auto", 2, 7.9, False),
        ("auto", 2, 8.0, True),
        ("yes", 2, 0.0, True),
        ("no", 1, 100.0, False),
    ],
)
def test_gpus_unpack_4_bit_weights_where_a_quarter_holds_them(
    monkeypatch: pytest.MonkeyPatch, unpack: str, banks: int, free_share: float, unpacks: bool
) -> None:
    """On a CPU, with the GPU's rule: as many bytes free as `free_share` times the copies need."""
    model, _ = load_base(tiny_config(NF4_PACKED).model)
    before = logits_of_base(model)
    packed = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    needed = sum(4 * module.in_features * module.out_features for module in packed)  # type: ignore[operator]
    monkeypatch.setattr(quantized, "free_bytes", lambda device: free_share * needed)
    monkeypatch.setenv("FEDFINLORA_WORKERS_PER_GPU", str(banks))
    quantized.unpack_on_gpus(model, unpack)
    left = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    assert len(left) == (0 if unpacks else len(packed) > 0) * len(packed)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(logits_of_base(model), before)


def logits_of_base(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(2, 12)[None]).logits
    return found


# --- one load -------------------------------------------------------------------------------------


def test_the_base_is_loaded_once_also_when_the_adapter_changes(forget: None) -> None:
    before = models.base_loads
    first = get_session(tiny_config())
    again = get_session(tiny_config(seed=3))
    other = get_session(tiny_config(method="dora"))
    back = get_session(tiny_config())
    assert models.base_loads == before + 1
    assert again.model is first.model
    assert again.load_s == 0.0
    assert first.load_s > 0
    assert other.layout.id != first.layout.id
    assert back.layout == first.layout
    get_session(tiny_config("nf4"))
    assert models.base_loads == before + 2


def test_changing_the_adapter_and_back_gives_the_same_model(forget: None) -> None:
    session = get_session(tiny_config(NF4_PACKED, "lora"))
    vector = random_adapter(session.layout.size)
    write_adapter(session.model, vector)
    expected = logits_of(session.model)
    for method in ("dora", "qlora", "rslora"):
        other = get_session(tiny_config(NF4_PACKED, method))
        write_adapter(other.model, random_adapter(other.layout.size))
        logits_of(other.model)
    session = get_session(tiny_config(NF4_PACKED, "lora"))
    write_adapter(session.model, vector)
    assert torch.equal(logits_of(session.model), expected)


def test_a_failed_self_test_has_no_side_effects(forget: None, monkeypatch: pytest.MonkeyPatch) -> None:
    session = get_session(tiny_config())
    vector = random_adapter(session.layout.size)
    write_adapter(session.model, vector)
    expected, modules = logits_of(session.model), len(list(session.model.modules()))

    def fail(session: Session) -> None:
        raise UserError("not usable")

    with monkeypatch.context() as patch:
        patch.setattr(models, "self_test", fail)
        with pytest.raises(UserError, match="not usable"):
            get_session(tiny_config(method="rslora"))
    session = get_session(tiny_config())
    write_adapter(session.model, vector)
    assert len(list(session.model.modules())) == modules
    assert torch.equal(logits_of(session.model), expected)


def test_unknown_target_modules_are_a_user_error_without_side_effects(forget: None) -> None:
    good = get_session(tiny_config())
    modules = len(list(good.model.modules()))
    bad = replace(tiny_config(), peft=PeftConfig(target_modules=("query", "value"), dropout=0.0))
    with pytest.raises(UserError, match=r"target_modules: .* query, value\. It has .*q_proj"):
        get_session(bad)
    session = get_session(tiny_config())
    assert session.layout == good.layout
    assert len(list(session.model.modules())) == modules
    assert all(gradient is not None for gradient in gradients(session.model).values())


# --- the start of every run -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantization", "method"), [("none", "lora"), ("nf4", "qlora"), ("none", "dora"), (NF4_PACKED, "dora")]
)
def test_the_initial_adapter_does_not_depend_on_earlier_training(forget: None, quantization: str, method: str) -> None:
    config = tiny_config(quantization, method)
    session = get_session(config)
    fresh = initial_adapter(session, config)
    write_adapter(session.model, random_adapter(session.layout.size, seed=9))
    torch.manual_seed(123)
    np.testing.assert_array_equal(initial_adapter(session, config), fresh)
    np.testing.assert_array_equal(read_adapter(session.model), fresh)
    gradients(session.model)
    np.testing.assert_array_equal(initial_adapter(session, config), fresh)


@pytest.mark.parametrize("quantization", ["none", "nf4", NF4_PACKED])
def test_initial_magnitudes_of_dora_are_the_norms_of_the_base(session_of: MakeSession, quantization: str) -> None:
    import bitsandbytes as bnb

    session = session_of(quantization, "dora")
    views = session.layout.views(initial_adapter(session, tiny_config(quantization, "dora")))
    layer = session.model.get_submodule("base_model.model.model.layers.1.self_attn.v_proj").base_layer
    weight = layer.weight
    if quantization == NF4_PACKED:
        weight = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    norms = torch.linalg.norm(weight.float(), dim=1).detach().numpy()
    found = views["base_model.model.model.layers.1.self_attn.v_proj.lora_magnitude_vector"]
    np.testing.assert_allclose(found, norms, rtol=1e-5)


def test_initial_adapter_depends_on_the_seed_alone(session_of: MakeSession) -> None:
    session = session_of()
    one, other = initial_adapter(session, tiny_config(seed=1)), initial_adapter(session, tiny_config(seed=2))
    assert not np.array_equal(one, other)
    get_session(tiny_config(method="dora"))
    session = get_session(tiny_config(seed=2))
    np.testing.assert_array_equal(initial_adapter(session, tiny_config(seed=1)), one)


@pytest.mark.parametrize(("quantization", "method"), PAIRS)
def test_initial_adapter_changes_no_logits_and_has_zero_b(
    session_of: MakeSession, quantization: str, method: str
) -> None:
    session = session_of(quantization, method)
    views = session.layout.views(initial_adapter(session, tiny_config(quantization, method)))
    b_tensors = [view for name, view in views.items() if "lora_B" in name]
    a_tensors = [view for name, view in views.items() if "lora_A" in name]
    assert len(b_tensors) == len(a_tensors) == 4
    assert all(not view.any() for view in b_tensors)
    assert all(view.any() for view in a_tensors)
    adapted = logits_of(session.model)
    with session.model.disable_adapter():
        base = logits_of(session.model)
    torch.testing.assert_close(adapted, base, rtol=1e-4, atol=1e-5)


def test_drawing_the_adapter_leaves_the_callers_randomness_alone(session_of: MakeSession) -> None:
    session = session_of()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    initial_adapter(session, tiny_config())
    assert torch.equal(torch.rand(3), expected)


# --- the self-test --------------------------------------------------------------------------------


class Odd(nn.Module):
    """A one-matrix language model that can be made wrong in the ways that a quantized layer has been seen to be
    wrong.
    """

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=16)
        self.fault = fault
        self.lora_A = nn.ParameterDict({"default": nn.Parameter(torch.eye(16) + 0.1)})
        self.evaluated = False

    def forward(self, input_ids: torch.Tensor) -> Any:
        weight = self.lora_A["default"]
        if not self.training:
            self.evaluated = True
        spoilt = self.evaluated and self.training
        if self.fault == "no gradient" or (self.fault == "no gradient after" and spoilt):
            weight = weight.detach() + 0.0 * torch.zeros(1, requires_grad=True)
        if self.fault == "wrong gradient after" and spoilt:
            weight = weight.detach() + 5 * (weight - weight.detach())
        if self.fault == "nan gradient":
            weight = weight + (weight - weight).sqrt()
        logits = weight[input_ids]
        if self.fault == "zero gradient":
            logits = logits * 0
        if self.fault == "other arithmetic" and not self.training:
            logits = logits * 1.05
        if self.fault == "other arithmetic after" and spoilt:
            logits = logits * 1.05
        return SimpleNamespace(logits=logits)


def self_test_odd(fault: str) -> None:
    model = Odd(fault)
    self_test(Session(model, None, layout_of(model), torch.device("cpu"), 0.0, read_adapter(model)))


def test_a_sound_model_passes_the_self_test() -> None:
    self_test_odd("")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no gradient", "no gradient before"),
        ("no gradient after", "no gradient after"),
        ("nan gradient", "gradient norm"),
        ("zero gradient", "gradient norm"),
        ("other arithmetic", "differ"),
        ("wrong gradient after", "gradient"),
        ("other arithmetic after", "differ"),
    ],
)
def test_the_self_test_finds(fault: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        self_test_odd(fault)
    assert "model.quantization=none" in str(error.value)


def test_the_self_test_leaves_the_model_unchanged(session_of: MakeSession) -> None:
    session = session_of(dropout=0.05)
    vector = read_adapter(session.model)
    torch.manual_seed(1)
    self_test(session)
    np.testing.assert_array_equal(read_adapter(session.model), vector)
    shares = {module.p for module in session.model.modules() if isinstance(module, nn.Dropout)}
    assert shares == {0.05}
    assert not session.model.training
    assert all(parameter.grad is None for parameter in session.model.parameters())


def test_the_self_test_finds_bitsandbytes_repacking_its_4_bit_weights(
    forget: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bitsandbytes as bnb

    def as_delivered(model: nn.Module, unpack: str) -> None:
        layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
        if not any(getattr(layer, "support_avx512bf16_for_cpu", False) for layer in layers):
            pytest.skip("this CPU has no AVX512-BF16, so bitsandbytes does not repack")

    monkeypatch.setattr(models, "steady_on_cpu", as_delivered)
    with pytest.raises(UserError, match=r"no gradient (before|after) an evaluation"):
        get_session(tiny_config("nf4"))


def test_the_self_test_finds_8_bit_layers_with_other_arithmetic_in_eval(
    forget: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "steady_on_cpu", lambda model, unpack: None)
    with pytest.raises(UserError, match="in training and in evaluation differ"):
        get_session(tiny_config("int8"))


# --- what cannot be had ---------------------------------------------------------------------------


def test_an_unreachable_model_names_token_licence_and_local_folder() -> None:
    program = (
        "from fedfinlora.config.schema import ModelConfig\nfrom fedfinlora.errors import UserError\n"
        "from fedfinlora.model.loading import load_base\n"
        "try:\n    load_base(ModelConfig(path='meta-llama/No-Such-Llama', quantization='none', "
        "licence_url='https://licence'))\n"
        "except UserError as error:\n    print(error)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "OMP_NUM_THREADS": "1"},
    ).stdout.strip()
    for part in ("meta-llama/No-Such-Llama", "HF_TOKEN", "https://licence", "model.path=", "smollm2-135m"):
        assert part in shown, shown
    assert "\n" not in shown


def test_a_folder_that_is_no_model_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        load_base(replace(tiny_config().model, path=str(tmp_path)))


def test_a_model_folder_without_weights_is_a_user_error(tmp_path: Path) -> None:
    import shutil

    from fedfinlora.model.embedded import embedded_folder

    folder = tmp_path / "model"
    shutil.copytree(embedded_folder("memory:tiny-random"), folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        load_base(replace(tiny_config().model, path=str(folder)))


def test_a_model_folder_with_damaged_weights_is_a_user_error(tmp_path: Path) -> None:
    import shutil

    from fedfinlora.model.embedded import embedded_folder

    folder = tmp_path / "model"
    shutil.copytree(embedded_folder("memory:tiny-random"), folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="does not load as a model"):
        load_base(replace(tiny_config().model, path=str(folder)))


def test_a_local_folder_loads_and_equals_the_embedded_model(tmp_path: Path) -> None:
    import shutil

    from fedfinlora.model.embedded import embedded_folder

    shutil.copytree(embedded_folder("memory:tiny-random"), tmp_path / "model")
    local, _ = load_base(replace(tiny_config().model, path=str(tmp_path / "model")))
    own, _ = load_base(tiny_config().model)
    assert torch.equal(logits_of(local), logits_of(own))


def test_the_tiny_model_is_built_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedfinlora.model.embedded import embedded_folder

    files = []
    for name in ("one", "two"):
        monkeypatch.setenv("FEDFINLORA_CACHE", str(tmp_path / name))
        folder = embedded_folder("memory:tiny-random")
        assert folder.parent == tmp_path / name
        assert [path.name for path in folder.parent.iterdir()] == [folder.name], "scratch is left behind"
        files.append((folder / "model.safetensors").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("path", ["embedded:smollm", "memory:tiny", "embedded:"])
def test_a_misspelt_embedded_model_lists_the_embedded_models(path: str) -> None:
    with pytest.raises(UserError, match="embedded:smollm2-135m"):
        load_base(ModelConfig(path=path))


def test_devices_and_arithmetic_are_picked_by_what_is_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert pick_device("auto") == torch.device("cpu")
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    assert pick_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    for name in ("cuda", "cuda:0"):
        with pytest.raises(UserError, match="no CUDA device"):
            pick_device(name)


@pytest.mark.parametrize("name", ["cuda:one", "mps:x", "cuda:"])
def test_a_malformed_device_is_a_user_error(name: str) -> None:
    with pytest.raises(UserError, match=r"model\.device"):
        pick_device(ModelConfig(device=name).device)


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4", NF4_PACKED])
def test_bfloat16_on_a_cpu_trains_and_keeps_the_adapter_in_float32(forget: None, quantization: str) -> None:
    config = tiny_config(quantization)
    session = get_session(replace(config, model=replace(config.model, dtype="bfloat16")))
    write_adapter(session.model, random_adapter(session.layout.size))
    assert all(parameter.dtype == torch.float32 for parameter in trainable(session.model).values())
    assert all(gradient is not None for gradient in gradients(session.model).values())
    assert session.model.get_input_embeddings().weight.dtype == torch.bfloat16  # type: ignore[operator, union-attr]


@pytest.mark.slow
@pytest.mark.parametrize(("quantization", "method"), [("none", "lora"), ("nf4", "dora")])
def test_the_embedded_model_loads_and_passes_its_self_test(
    smollm2_config: Config, quantization: str, method: str, forget: None
) -> None:
    config = tiny_config(quantization, method)
    session = get_session(replace(config, model=replace(smollm2_config.model, quantization=quantization)))
    text = session.tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        best = int(session.model(**text).logits[0, -1].argmax())
    assert session.tokenizer.decode(best).strip() == "Paris"
