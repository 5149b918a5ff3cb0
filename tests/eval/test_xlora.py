"""X-LoRA: our two passes against PEFT's own model, the gate's training, and what cannot be gated."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from evaluations import files_of, folder_of_rows, metrics_of, scored, words_for
from routed import TOKENS, adapter_folder, config_of, logits_in
from safetensors.torch import load_file, save_file

from eval.models import LocalModel
from eval.xlora_gate import BIAS, WEIGHT, Gate, adapter_id, gated, read_gate
from eval.xlora_model import GatedExpert, XLoraModel
from fedfinlora.cli import main
from fedfinlora.config.peft import PeftConfig
from fedfinlora.errors import UserError
from fedfinlora.files import read_json
from fedfinlora.model.adapter import load_adapter, read_adapter
from fedfinlora.model.loading import get_session, load_base


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("gated")
    kinds: dict[str, dict[str, Any]] = {
        "one": {}, "two": {}, "louder": {"alpha": 32}, "wide": {"rank": 8}, "dora": {"method": "dora"},
        "keys": {"target_modules": ("k_proj",)},
    }  # fmt: skip
    return {name: adapter_folder(root / name, number, **kind) for number, (name, kind) in enumerate(kinds.items())}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_rows(tmp_path_factory.mktemp("rows"), fpb=4, formula=2)


def peft_of(folder: Path) -> PeftConfig:
    values = read_json(folder / "adapter_config.json")
    return config_of(rank=values["r"], alpha=values["lora_alpha"], target_modules=tuple(values["target_modules"])).peft


def gate_of(adapters: dict[str, Path], *names: str) -> Gate:
    """Random, with weights that differ much between tokens and layers."""
    shape = get_session(config_of()).model.config
    hidden = int(shape.hidden_size)
    modules = {module for name in names for module in peft_of(adapters[name]).target_modules}
    layers = int(shape.num_hidden_layers) * len(modules)
    drawn = np.random.default_rng(7)
    weight = drawn.normal(0, 0.5, (layers * len(names), hidden)).astype(np.float32)
    bias = drawn.normal(0, 0.5, layers * len(names)).astype(np.float32)
    base = tiny_config().model.path
    return Gate(weight, bias, base, names, tuple(adapter_id(adapters[name], peft_of(adapters[name])) for name in names))


def model_of(adapters: dict[str, Path], *names: str) -> XLoraModel:
    config = config_of()
    experts = [GatedExpert(peft_of(adapters[name]), adapters[name]) for name in names]
    return XLoraModel.of(get_session(config), config, experts, gate_of(adapters, *names))


@pytest.fixture
def pefts_own(adapters: dict[str, Path], tmp_path: Path) -> Any:
    """PEFT's model of one, two and louder."""
    return pefts_model(adapters, tmp_path, "one", "two", "louder")


def pefts_model(adapters: dict[str, Path], tmp_path: Path, *names: str) -> Any:
    """PEFT's model of the adapters, loaded from the folder that our gate is saved in."""
    from peft import PeftModel

    gate_of(adapters, *names).save(tmp_path / "gate", [adapters[name] for name in names])
    base, _ = load_base(tiny_config().model)
    base.config.use_cache = False
    places = {str(number): str(adapters[name]) for number, name in enumerate(names)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(base, str(tmp_path / "gate"), adapters=places).eval()


def test_our_two_passes_compute_what_pefts_xlora_computes(adapters: dict[str, Path], pefts_own: Any) -> None:
    """Of the same folder: three adapters, one with another alpha, a gate of random weights."""
    ours = logits_in(model_of(adapters, "one", "two", "louder"))
    with torch.no_grad():
        theirs = pefts_own(input_ids=TOKENS).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    session = get_session(config_of())
    alone = logits_in(LocalModel(session, config_of(), load_adapter(adapters["one"], session.layout)))
    assert float((alone - theirs).abs().max()) > 1e-3


def test_the_gates_weights_are_pefts(adapters: dict[str, Path], pefts_own: Any) -> None:
    """(1, tokens, layers, adapters), each token's and layer's sum being 1."""
    with torch.no_grad():
        pefts_own(input_ids=TOKENS)
        theirs = pefts_own.get_latest_scalings()
    model = model_of(adapters, "one", "two", "louder")
    found = []
    with model.in_place() as module, torch.no_grad():
        module.gate.register_forward_hook(lambda _, __, output: found.append(output))
        module(input_ids=TOKENS)
    torch.testing.assert_close(found[0], theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0].sum(-1), torch.ones_like(found[0][..., 0]))
    assert float(found[0].std(dim=1).max()) > 0.05


def test_an_untrained_gate_over_copies_is_that_adapter(adapters: dict[str, Path]) -> None:
    """The weights of a token sum to 1."""
    config = config_of()
    session = get_session(config)
    copies = [GatedExpert(peft_of(adapters["one"]), adapters["one"]).loaded(config)] * 2
    with gated(session.model, copies) as model, torch.no_grad():
        ours = model(input_ids=TOKENS).logits
    alone = logits_in(LocalModel(session, config, load_adapter(adapters["one"], session.layout)))
    torch.testing.assert_close(ours, alone, rtol=1e-5, atol=1e-5)


def test_adapters_of_different_ranks_are_weighed(adapters: dict[str, Path]) -> None:
    model = model_of(adapters, "one", "wide")
    assert bool(torch.isfinite(logits_in(model)).all())


def test_adapters_on_different_modules_are_weighed_as_by_peft(adapters: dict[str, Path], tmp_path: Path) -> None:
    """One on q_proj, the other on k_proj; a second time too."""
    model = pefts_model(adapters, tmp_path, "one", "keys")
    with torch.no_grad():
        theirs = model(input_ids=TOKENS).logits
    for _ in range(2):
        ours = logits_in(model_of(adapters, "one", "keys"))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("other", ["two", "keys"])
def test_the_session_is_as_it_was_after_the_gate(adapters: dict[str, Path], other: str) -> None:
    """Also where a pass fails: the same values, the same of them trained, and the layers' own forward."""
    model = model_of(adapters, "one", other)
    session = model.session
    before = {name: (value.requires_grad, value.clone()) for name, value in session.model.named_parameters()}
    forwards = {name: vars(module).get("forward") for name, module in session.model.named_modules()}
    vector = read_adapter(session.model)
    with pytest.raises(IndexError), model.in_place() as module:
        module(input_ids=TOKENS + session.model.config.vocab_size)
    after = dict(session.model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name].requires_grad == trained for name, (trained, _) in before.items())
    assert all(torch.equal(after[name], value) for name, (_, value) in before.items())
    assert np.array_equal(read_adapter(session.model), vector)
    assert {name: vars(module).get("forward") for name, module in session.model.named_modules()} == forwards


def test_another_gate_is_another_model(adapters: dict[str, Path]) -> None:
    """Answers of one are never taken for the other's."""
    one, other = model_of(adapters, "one", "two"), model_of(adapters, "one", "louder")
    changed = model_of(adapters, "one", "two")
    assert changed.gate is not None
    changed.gate.bias[0] += 1
    found = [json.dumps(model.identity, sort_keys=True) for model in (one, other, changed)]
    assert len(set(found)) == 3


# --- the commands ---------------------------------------------------------------------------------


def options_of(adapters: dict[str, Path], *names: str) -> list[str]:
    return [word for name in names for word in ("--adapter", f"{name}={adapters[name]}")]


@pytest.fixture(scope="module")
def gate(adapters: dict[str, Path], rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained over one and louder."""
    root = tmp_path_factory.mktemp("trained")
    words = [*words_for(rows, root, benchmarks="fpb"), "train.max_steps=3", "train.batch_rows=2"]
    assert main(["gate", str(root / "gate"), *options_of(adapters, "one", "louder"), *words]) == 0
    return root / "gate"


def test_training_moves_the_gate_and_nothing_else(adapters: dict[str, Path], gate: Path, rows: Path) -> None:
    """Again on the same rows it has the same bytes."""
    found = read_gate(gate)
    assert (found.names, found.steps) == (("one", "louder"), 3)
    assert float(np.abs(found.weight).max()) > 0
    assert found.adapters == tuple(adapter_id(adapters[name], peft_of(adapters[name])) for name in ("one", "louder"))
    words = [*words_for(rows, gate.parent, benchmarks="fpb"), "train.max_steps=3", "train.batch_rows=2"]
    again = gate.parent / "again"
    assert main(["gate", str(again), *options_of(adapters, "one", "louder"), *words]) == 0
    name = "adapter_model.safetensors"
    assert (again / name).read_bytes() == (gate / name).read_bytes()


def test_a_gate_takes_one_step_where_one_is_asked_for(
    adapters: dict[str, Path], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration of several rounds has at least one step for each; a gate has one round."""
    words = words_for(rows, tmp_path, "train.max_steps=1", "train.batch_rows=2", benchmarks="fpb")
    assert main(["gate", str(tmp_path / "gate"), *options_of(adapters, "one", "two"), *words]) == 0
    assert read_gate(tmp_path / "gate").steps == 1
    assert "rows, 1 step\n" in capsys.readouterr().out


def test_adapters_of_different_modules_are_gated_and_scored(
    adapters: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    """By the commands; adapters in any order."""
    words = words_for(rows, tmp_path, "train.max_steps=3", "train.batch_rows=2", benchmarks="fpb")
    gate = tmp_path / "gate"
    assert main(["gate", str(gate), *options_of(adapters, "one", "keys"), *words]) == 0
    run = scored(words, *options_of(adapters, "keys", "one"), "--route", "xlora", "--gate", str(gate))
    for label in ("one", "keys", "xlora"):
        assert set(metrics_of(run, label)["scores"]) == {"fpb"}


def test_a_gated_model_is_scored_as_the_others_are(
    adapters: dict[str, Path], gate: Path, rows: Path, tmp_path: Path
) -> None:
    """Decoding with kept keys and values gives the tokens of two whole passes a token; adapters in any order."""
    words = words_for(rows, tmp_path, "evaluation.check_rows=2", benchmarks="fpb,formula")
    run = scored(words, *options_of(adapters, "louder", "one"), "--route", "xlora", "--gate", str(gate))
    for key in ("fpb", "formula"):
        assert metrics_of(run, "xlora")["scores"][key]["decoding"]["rows_differ"] == 0
    assert "gate/adapter_model.safetensors" in (run / "manifest.json").read_text("utf-8")
    before = files_of(run, "xlora")
    scored([f"resume={run}", *words], *options_of(adapters, "louder", "one"), "--route", "xlora", "--gate", str(gate))
    assert files_of(run, "xlora") == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["one", "louder", "--route", "xlora"], "needs --gate DIR"),
        (["one", "louder", "--gate", "GATE"], "--gate DIR goes with --route xlora"),
        (["one", "--route", "xlora", "--gate", "GATE"], "--route joins several adapters"),
        (["one", "two", "--route", "xlora", "--gate", "GATE"], "does not know two and it weighs louder too"),
        (["one", "louder", "two", "--route", "xlora", "--gate", "GATE"], "is a gate for other adapters"),
        (["one", "dora", "--route", "xlora", "--gate", "GATE"], "dora is of peft=dora"),
        (["one", "louder", "--route", "xlora", "--gate", "nowhere"], "nowhere is no gate"),
    ],
)
def test_what_no_gate_can_weigh_is_refused_in_one_line(
    adapters: dict[str, Path], gate: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    words: list[str], message: str,
) -> None:  # fmt: skip
    typed = [str(gate) if word == "GATE" else f"--adapter={word}={adapters[word]}" if word in adapters else word
             for word in words]  # fmt: skip
    assert main(["evaluate", *typed, *words_for(rows, tmp_path / "out", benchmarks="fpb")]) in (1, 2)
    [line] = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "out" / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "now"),
    [("lora_alpha", 16, "lora rank=4 alpha=16 on q_proj"), ("use_rslora", True, "rslora rank=4 alpha=32 on q_proj")],
)
def test_an_adapter_that_is_scaled_otherwise_is_named(
    adapters: dict[str, Path], gate: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str,
    value: object, now: str,
) -> None:  # fmt: skip
    """The same tensors, with other settings in their folder."""
    changed = Path(shutil.copytree(adapters["louder"], tmp_path / "louder"))
    file = changed / "adapter_config.json"
    file.write_text(json.dumps(read_json(file) | {key: value}), "utf-8")
    typed = [*options_of({**adapters, "louder": changed}, "louder", "one"), "--route", "xlora", "--gate", str(gate)]
    assert main(["evaluate", *typed, *words_for(rows, tmp_path / "out", benchmarks="fpb")]) == 1
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.endswith(
        f"{gate} is a gate for other adapters: louder is now {now}, and was lora rank=4 alpha=32 on q_proj. "
        "Train one for these."
    )


def test_a_typed_alpha_counts_like_the_folders(
    adapters: dict[str, Path], gate: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = [*options_of(adapters, "louder", "one"), "--route", "xlora", "--gate", str(gate), "peft.alpha=32"]
    assert main(["evaluate", *typed, *words_for(rows, tmp_path / "out", benchmarks="fpb")]) == 1
    assert "adapters: one is now lora rank=4 alpha=32 on q_proj, and was lora rank=4 alpha=8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "more", "message"),
    [
        (("one",), (), "gate weighs several adapters"),
        (("one", "dora"), (), "dora is of peft=dora"),
        (("one", "two"), ("--adapter", "one={wide}"), "two adapters are called one"),
        (("one",), ("--adapter", "again={one}"), "--adapter names one folder twice"),
        (("one", "two"), ("model.path=acme/other-7b",), "was made for"),
        (("one", "two"), ("privacy=example",), "trains without privacy"),
    ],
)
def test_what_gate_cannot_train_is_refused_in_one_line(
    adapters: dict[str, Path], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    names: tuple[str, ...], more: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    words = [word.format(**adapters) for word in more]
    typed = [*options_of(adapters, *names), *words_for(rows, tmp_path, benchmarks="fpb"), *words]
    assert main(["gate", str(tmp_path / "gate"), *typed]) in (1, 2)
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "gate").exists()


def test_other_tensors_under_a_known_name_are_named(
    adapters: dict[str, Path], gate: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = [*options_of({**adapters, "one": adapters["two"]}, "one", "louder"), "--route", "xlora"]
    assert main(["evaluate", *typed, "--gate", str(gate), *words_for(rows, tmp_path, benchmarks="fpb")]) == 1
    assert "is a gate for other adapters: one had other tensors. Train one" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["file/gate", "/proc/nope/gate"])
def test_a_place_that_takes_no_gate_is_refused_before_loading(
    adapters: dict[str, Path], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    typed = [*options_of(adapters, "one", "two"), *words_for(rows, tmp_path, benchmarks="fpb")]
    assert main(["gate", str(tmp_path / place), *typed]) == 1
    told = capsys.readouterr()
    assert "Cannot write" in told.err
    assert "gate over" not in told.out


def test_a_damaged_gate_is_refused(gate: Path, tmp_path: Path) -> None:
    for name in ("gate.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((gate / name).read_bytes()[:-20])
    with pytest.raises(UserError):
        read_gate(tmp_path)
    (tmp_path / "gate.json").write_bytes((gate / "gate.json").read_bytes())
    with pytest.raises(UserError, match="damaged gate"):
        read_gate(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("names", []), ("names", "ab"), ("names", ["one", 2]), ("names", None), ("names", ["one"]), ("adapters", []),
        ("adapters", {}), ("base", 3), ("rows", "3"), ("rows", 1e400), ("steps", None), ("seed", []),
        ("first_loss", float("nan")), ("last_loss", 10**400),
    ],
)  # fmt: skip
def test_a_wrong_value_in_gate_json_is_damage(gate: Path, tmp_path: Path, key: str, value: object) -> None:
    shutil.copytree(gate, tmp_path / "gate")
    said = read_json(gate / "gate.json")
    without = {name: kept for name, kept in said.items() if name != key}
    for damaged in (said | {key: value}, without, [said]):
        (tmp_path / "gate" / "gate.json").write_text(json.dumps(damaged), "utf-8")
        with pytest.raises(UserError, match="damaged gate"):
            read_gate(tmp_path / "gate")


def test_gate_tensors_of_another_form_are_damage(gate: Path, tmp_path: Path) -> None:
    shutil.copytree(gate, tmp_path / "gate")
    file = tmp_path / "gate" / "adapter_model.safetensors"
    kept = load_file(file)
    weight, bias = kept[WEIGHT], kept[BIAS]
    damaged = [
        {}, {BIAS: bias}, {WEIGHT: weight[:0], BIAS: bias[:0]}, {WEIGHT: weight[:, :0], BIAS: bias},
        {WEIGHT: weight[:1], BIAS: bias[:1]}, {WEIGHT: weight, BIAS: bias[:1]}, {WEIGHT: bias, BIAS: bias},
        {WEIGHT: weight[0, 0], BIAS: bias}, {WEIGHT: weight.long(), BIAS: bias}, {WEIGHT: weight, BIAS: bias / 0},
        {WEIGHT: weight.bfloat16(), BIAS: bias}, {WEIGHT: weight, BIAS: bias.to(torch.float8_e4m3fn)},
    ]  # fmt: skip
    for tensors in damaged:
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)
        with pytest.raises(UserError, match="damaged gate"):
            read_gate(tmp_path / "gate")
