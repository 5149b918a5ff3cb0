"""LoRA-XS: A and B are the base's singular vectors at every bank, R alone is trained, sent and noised; folders are
ordinary LoRA.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NF4_PACKED, random_adapter, text_examples, tiny_config
from fake_grid import FakeGrid, simulated_banks
from flwr.app import Message
from round_runs import Runs
from tiny_runs import SCORED, overrides, result_of, rounds_of, same_run, write_rows

from fedfinlora.cli import main
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.adapter import (
    Vector,
    layout_of,
    load_adapter,
    read_adapter,
    save_adapter,
    trainable,
    write_adapter,
)
from fedfinlora.model.adapter_folder import peft_settings, read_tensors
from fedfinlora.model.loading import Session, first_adapter, get_session, initial_adapter, load_base
from fedfinlora.model.packing import Example
from fedfinlora.model.peft_methods.lora_xs import base_weight, factors
from fedfinlora.model.quantized import quantization_config
from fedfinlora.privacy.mechanism import Mechanism, private_step
from fedfinlora.train.memory import footprint
from fedfinlora.wire.messages import Figures, Reply
from server_app.federated import run_federated
from server_app.replies import replies_of
from server_app.strategies import rule_of
from server_app.strategies.strategy import ServerState, take_step

QUANTIZATIONS = ("none", "int8", "nf4", NF4_PACKED)
TOKENS = torch.arange(30, 50).unsqueeze(0)


def xs_config(quantization: str = "none", rank: int = 4, dropout: float = 0.0) -> Config:
    config = tiny_config(quantization, "lora_xs", dropout)
    return replace(config, peft=replace(config.peft, rank=rank))


def session_with(config: Config, seed: int = 0) -> tuple[Session, Vector]:
    """The session with a random R."""
    session = get_session(config)
    vector = random_adapter(session.layout.size, seed)
    write_adapter(session.model, vector)
    return session, vector


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits  # type: ignore[no-any-return]


def save(folder: Path, session: Session, vector: Vector, config: Config) -> Path:
    save_adapter(folder, vector, session.layout, config.peft, config.model, session.frozen)
    return folder


def updates(session: Session, vector: Vector) -> dict[str, np.ndarray]:
    """Layer -> B R A, (out, in) float64."""
    found = {}
    for name, r in session.layout.views(vector).items():
        layer = name.removesuffix(".lora_B.R.weight")
        a, b = (session.frozen[f"{layer}.{end}.weight"].astype(np.float64) for end in ("lora_A", "lora_B.B"))
        found[layer] = b @ r.astype(np.float64) @ a
    return found


def relative(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


# --- A and B --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 40), (24, 64), (64, 24)])
def test_a_and_b_are_the_largest_singular_triplets(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).normal(size=shape)
    a, b = factors(weight, 6)
    left, values, right = np.linalg.svd(weight)
    assert (a.shape, b.shape, a.dtype, b.dtype) == ((6, shape[1]), (shape[0], 6), np.float32, np.float32)
    signs = np.sign((left[:, :6] * b).sum(axis=0))
    np.testing.assert_allclose(a, right[:6] * signs[:, None], atol=1e-6)
    np.testing.assert_allclose(b, left[:, :6] * values[:6] * signs, atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 40), (24, 64), (64, 24)])
def test_signs_do_not_depend_on_how_the_decomposition_came_by_them(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import scipy.linalg

    weight = np.random.default_rng(1).normal(size=shape)
    a, b = factors(weight, 5)
    assert all(column[np.abs(column).argmax()] > 0 for column in b.T)
    true = scipy.linalg.eigh

    def other_signs(*given: Any, **options: Any) -> Any:
        values, vectors = true(*given, **options)
        return values, vectors * np.array([1, -1, -1, 1, -1])

    monkeypatch.setattr(scipy.linalg, "eigh", other_signs)
    again = factors(weight, 5)
    assert (again[0].tobytes(), again[1].tobytes()) == (a.tobytes(), b.tobytes())


def test_small_singular_values_are_exact_enough() -> None:
    """Their squares are found, in the Gram matrix: down to 2e-5 of the largest one with an error below 1e-5."""
    draw = np.random.default_rng(2)
    left, right = (np.linalg.qr(draw.normal(size=(size, 8)))[0] for size in (60, 50))
    values = np.geomspace(1, 2e-5, 8)
    a, b = factors(left * values @ right.T, 8)
    np.testing.assert_allclose(np.linalg.norm(b.astype(np.float64), axis=0), values, rtol=1e-5)
    np.testing.assert_allclose(np.abs(a @ right), np.eye(8), atol=1e-5)


@pytest.mark.parametrize(
    ("weight", "rank"), [(np.eye(8, 4), 5), (np.diag([3.0, 2.0, 1.0, 0.0]), 4), (np.zeros((4, 4)), 1)]
)
def test_a_weight_with_fewer_directions_than_the_rank_is_refused(weight: np.ndarray, rank: int) -> None:
    with pytest.raises(UserError, match=r"fewer than . directions. Set a smaller peft\.rank"):
        factors(weight, rank)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_and_b_are_those_of_the_weights_that_the_layer_computes_with(quantization: str) -> None:
    base, _ = load_base(tiny_config(quantization).model)
    layer = base.get_submodule("model.layers.1.self_attn.q_proj")
    weight = base_weight(layer)
    with torch.no_grad():
        computed = layer(torch.eye(weight.shape[1])).T.double().numpy()
    np.testing.assert_allclose(weight, computed, atol=1e-6)
    session = get_session(xs_config(quantization))
    a, b = factors(weight, 4)
    path = "base_model.model.model.layers.1.self_attn.q_proj"
    np.testing.assert_array_equal(session.frozen[f"{path}.lora_A.weight"], a)
    np.testing.assert_array_equal(session.frozen[f"{path}.lora_B.B.weight"], b)


def test_arithmetic_in_16_bits_does_not_round_a_and_b() -> None:
    """Banks with and without a GPU compute in other types, from the same 4-bit weights."""
    base, _ = load_base(tiny_config(NF4_PACKED).model)
    layer: Any = base.get_submodule("model.layers.0.self_attn.v_proj")
    expected = base_weight(layer)
    layer.weight.quant_state.dtype = torch.bfloat16
    np.testing.assert_array_equal(base_weight(layer), expected)
    assert layer.weight.quant_state.dtype == torch.bfloat16


def test_weights_of_real_8_bit_layers_are_read_before_and_after_a_pass() -> None:
    layer, weight = int8_layer(6.0)
    first = base_weight(layer)
    assert relative(first, weight.double().numpy()) < 0.01
    layer(torch.randn(3, weight.shape[1], dtype=torch.float16))
    np.testing.assert_array_equal(base_weight(layer), first)


# --- one matrix a layer ---------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_r_alone_is_trained_and_sent(quantization: str) -> None:
    session = get_session(xs_config(quantization, rank=5))
    assert session.layout.shapes == ((5, 5),) * 4
    assert session.layout.size == 4 * 25
    assert all(name.endswith("_proj.lora_B.R.weight") for name in session.layout.names)
    assert {name for name, parameter in session.model.named_parameters() if parameter.requires_grad} == {
        name.replace("lora_B.R", "lora_B.default.R") for name in session.layout.names
    }
    assert all(parameter.dtype == torch.float32 for parameter in trainable(session.model).values())


def test_the_layout_is_another_for_another_rank_and_for_plain_lora() -> None:
    configs = (
        xs_config(),
        xs_config(rank=3),
        tiny_config(),
        replace(tiny_config(), peft=replace(tiny_config().peft, freeze_a=True)),
    )
    assert len({get_session(config).layout.id for config in configs}) == 4


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_start_is_the_base_and_every_r_has_a_gradient_there(quantization: str) -> None:
    config = xs_config(quantization)
    session, _ = session_with(config)
    start = initial_adapter(session, replace(config, seed=7))
    assert not start.any()
    base, _ = load_base(config.model)
    torch.testing.assert_close(logits_of(session.model), logits_of(base), rtol=0, atol=0)
    logits = session.model(input_ids=TOKENS).logits
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], TOKENS[0, 1:])
    gradients = torch.autograd.grad(loss, list(trainable(session.model).values()))
    assert all(float(gradient.norm()) > 0 for gradient in gradients)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_model_computes_with_w_plus_scale_b_r_a(quantization: str) -> None:
    config = xs_config(quantization)
    session, vector = session_with(config)
    ours = logits_of(session.model)
    plain, _ = load_base(config.model)
    with torch.no_grad():
        for layer, update in updates(session, vector).items():
            weight = plain.get_submodule(layer.removeprefix("base_model.model.")).weight
            weight += torch.from_numpy(config.peft.alpha / config.peft.rank * update).to(weight.dtype)
    theirs = logits_of(plain)
    assert float((theirs - logits_of(load_base(config.model)[0])).abs().max()) > 1e-2
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_mean_of_the_banks_is_the_mean_of_their_updates() -> None:
    session = get_session(xs_config())
    deltas = [random_adapter(session.layout.size, seed) for seed in (1, 2, 3)]
    nothing = Figures.withheld(1, 0.0, 1.0, 1.0, 0.1)
    replies = [Reply(f"bank-{number}", delta, nothing, 1.0) for number, delta in enumerate(deltas)]
    start = random_adapter(session.layout.size, 4)
    rule = rule_of(StrategyConfig(weighting="equal"), 1)
    state = take_step(rule, ServerState(0, start), replies_of(replies, rule.weights(replies)))
    averaged = updates(session, state.adapter)
    for layer, update in averaged.items():
        wanted = np.mean([updates(session, start + delta)[layer] for delta in deltas], axis=0)
        assert relative(update, wanted) < 1e-6


def test_changing_the_adapter_and_back_gives_the_same_model() -> None:
    config = xs_config(NF4_PACKED)
    session, vector = session_with(config)
    expected, modules = logits_of(session.model), len(list(session.model.modules()))
    frozen = dict(session.frozen)
    for other in (tiny_config(NF4_PACKED), tiny_config(NF4_PACKED, "dora"), xs_config(NF4_PACKED, rank=2)):
        session_with(other)
    session = get_session(config)
    write_adapter(session.model, vector)
    assert torch.equal(logits_of(session.model), expected)
    assert len(list(session.model.modules())) == modules
    assert all(np.array_equal(session.frozen[name], frozen[name]) for name in frozen)


def test_a_rank_above_a_layers_own_is_refused_without_side_effects() -> None:
    """v_proj of the tiny model has 32 outputs."""
    good = get_session(xs_config(rank=32))
    modules = len(list(good.model.modules()))
    with pytest.raises(
        UserError,
        match=(
            r"peft=lora_xs: .*v_proj: its weight of shape \(32, 64\) has fewer than 33 "
            r"directions"
        ),
    ):
        get_session(xs_config(rank=33))
    session, _ = session_with(xs_config(rank=32))
    assert len(list(session.model.modules())) == modules


# --- folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_saved_folder_is_an_ordinary_lora_for_plain_peft(tmp_path: Path, quantization: str) -> None:
    from peft import PeftModel

    config = xs_config(quantization)
    session, vector = session_with(config)
    ours = logits_of(session.model)
    save(tmp_path, session, vector, config)
    assert {name.rsplit(".", 2)[1] for name in read_tensors(tmp_path)} == {"lora_A", "lora_B"}
    base, _ = load_base(config.model)
    untouched = logits_of(base)
    theirs = logits_of(PeftModel.from_pretrained(base, str(tmp_path)).eval())
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    assert float((ours - untouched).abs().max()) > 1e-2


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_saved_folder_gives_r_back(tmp_path: Path, quantization: str) -> None:
    config = xs_config(quantization)
    session, vector = session_with(config)
    save(tmp_path, session, vector, config)
    loaded = load_adapter(tmp_path, session.layout, config.model, session.frozen)
    assert loaded.dtype == np.float32
    assert np.abs(loaded - vector).max() < 1e-5
    save(tmp_path / "zero", session, np.zeros_like(vector), config)
    assert not load_adapter(tmp_path / "zero", session.layout, config.model, session.frozen).any()


def test_the_same_update_in_other_directions_of_the_space_gives_the_same_r(tmp_path: Path) -> None:
    """Two singular values that are nearly equal may come out turned on another machine."""
    from safetensors.numpy import load_file, save_file

    config = xs_config()
    session, vector = session_with(config)
    file = save(tmp_path, session, vector, config) / "adapter_model.safetensors"
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    tensors = {
        name: np.ascontiguousarray(turn @ tensor if ".lora_A." in name else tensor @ turn.T, np.float32)
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file)
    assert np.abs(load_adapter(tmp_path, session.layout, config.model, session.frozen) - vector).max() < 1e-5


@pytest.mark.parametrize("changed", ["lora_A", "lora_B"])
def test_a_folder_outside_the_space_of_the_base_is_refused(tmp_path: Path, changed: str) -> None:
    from safetensors.numpy import load_file, save_file

    config = xs_config()
    session, vector = session_with(config)
    file = save(tmp_path, session, vector, config) / "adapter_model.safetensors"
    draw = np.random.default_rng(0)
    tensors = {
        name: tensor + (0.01 * draw.normal(size=tensor.shape).astype(np.float32) if f".{changed}." in name else 0)
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file)
    with pytest.raises(UserError, match=rf"{changed}\.weight is not of the form B R A .*model\.quantization="):
        load_adapter(tmp_path, session.layout, config.model, session.frozen)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_folder_of_another_quantization_is_refused(tmp_path: Path, quantization: str) -> None:
    config = xs_config(quantization)
    session, vector = session_with(config)
    save(tmp_path, session, vector, config)
    session = get_session(xs_config("none"))
    with pytest.raises(UserError, match="is not of the form B R A"):
        load_adapter(tmp_path, session.layout, config.model, session.frozen)


def test_a_folder_of_another_rank_is_refused(tmp_path: Path) -> None:
    config = xs_config(rank=3)
    session, vector = session_with(config)
    save(tmp_path, session, vector, config)
    session = get_session(xs_config())
    with pytest.raises(UserError, match=r"does not fit this model and peft: .* has shape"):
        load_adapter(tmp_path, session.layout, config.model, session.frozen)


def test_an_exported_folder_is_ordinary_lora_to_whoever_evaluates_it(tmp_path: Path) -> None:
    config = xs_config("nf4")
    session, vector = session_with(config)
    ours = logits_of(session.model)
    save(tmp_path, session, vector, config)
    plain = replace(config, peft=peft_settings(tmp_path, tiny_config("nf4")))
    assert (plain.peft.method, plain.peft.rank, plain.peft.alpha) == ("lora", 4, 8)
    session = get_session(plain)
    write_adapter(session.model, load_adapter(tmp_path, session.layout, plain.model, session.frozen))
    torch.testing.assert_close(logits_of(session.model), ours, rtol=1e-5, atol=1e-5)


def test_a_run_starts_from_an_exported_folder_and_from_no_other(tmp_path: Path) -> None:
    config = xs_config()
    session, vector = session_with(config)
    save(tmp_path / "own", session, vector, config)
    plain_session = get_session(tiny_config())
    save(tmp_path / "plain", plain_session, random_adapter(plain_session.layout.size), tiny_config())
    session = get_session(config)
    start = first_adapter(session, replace(config, start_adapter=str(tmp_path / "own")))
    assert np.abs(start - vector).max() < 1e-5
    with pytest.raises(UserError, match="is not of the form B R A"):
        first_adapter(session, replace(config, start_adapter=str(tmp_path / "plain")))
    with pytest.raises(UserError, match="is of another kind"):
        first_adapter(session, replace(xs_config(rank=3), start_adapter=str(tmp_path / "own")))


def test_freezing_a_with_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="lora_xs trains neither A nor B"):
        compose(["peft=lora_xs", "peft.freeze_a=true"])


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


XS = ("peft=lora_xs", "peft.rank=8", "peft.dropout=0.1")


def test_two_runs_give_the_same_bytes_and_send_r_squared_parameters(rows: Path, tmp_path: Path) -> None:
    runs = []
    for name in ("one", "two"):
        config = compose(overrides(rows, tmp_path / "runs", *XS, name=name))
        runs.append(run_federated(FakeGrid(simulated_banks(2, tmp_path / name)), config))
    assert same_run(*runs)
    session = get_session(config)
    assert session.layout.size == 2 * 3 * 64, "two layers, three modules"
    final = load_adapter(runs[0] / "adapters" / "final", session.layout, config.model, session.frozen)
    assert all(view.any() for view in session.layout.views(final).values())
    lines = rounds_of(runs[0])
    assert [len(line["banks"]) for line in lines] == [2, 2]
    assert lines[1]["banks"][0]["train_loss"] < 10
    floats = 4 * session.layout.size
    assert 4 * floats <= result_of(runs[0])["bytes_up"] < 4 * floats + 20_000


def test_a_stopped_run_resumes_to_the_same_bytes(rows: Path, tmp_path: Path) -> None:
    runs = Runs(rows, tmp_path)

    def stop(bank: str, message: Message, reply: Message) -> Message:
        if message.metadata.group_id == "2":
            raise KeyboardInterrupt
        return reply

    reference = runs.start("reference", *XS)
    with pytest.raises(KeyboardInterrupt):
        runs.start("run", *XS, tamper=stop)
    assert same_run(reference, runs.resume(runs.folder / "run"))


def test_evaluate_scores_an_exported_folder_as_its_run_did(rows: Path, tmp_path: Path) -> None:
    words = overrides(rows, tmp_path / "runs", *XS, *SCORED, "train.learning_rate=0.05")
    run = run_federated(FakeGrid(simulated_banks(2, tmp_path / "banks")), compose(words))
    final = run / "adapters" / "final"
    plain = [word for word in overrides(rows, tmp_path / "runs", *SCORED, name="scored") if not word.startswith("peft")]
    assert main(["evaluate", "--adapter", str(final), *plain, "evaluation.reuse=false"]) == 0
    assert (
        main(
            [
                "evaluate",
                "--adapter",
                str(final),
                *plain[:3],
                "run_name=as_xs",
                *plain[4:],
                *XS,
                "evaluation.reuse=false",
            ]
        )
        == 0
    )
    answers = [
        (tmp_path / "runs" / name / "eval" / "final" / "fpb.jsonl").read_text().splitlines()
        for name in ("run", "scored", "as_xs")
    ]
    assert answers[0]
    assert answers[0] == answers[1] == answers[2]


# --- privacy --------------------------------------------------------------------------------------


def clipped_by_autograd(
    session: Session, examples: Sequence[Example], clip: float
) -> tuple[dict[str, np.ndarray], list[float]]:
    """(sum of the rows' clipped gradients of R, their norms), each row by itself through transformers and autograd."""
    sums: dict[str, np.ndarray] = {}
    norms = []
    for row in examples:
        ids = torch.tensor([[*row.prompt_ids, *row.answer_ids]])
        losses = torch.nn.functional.cross_entropy(
            session.model(input_ids=ids).logits[0, len(row.prompt_ids) - 1 : -1].double(), ids[0, len(row.prompt_ids) :]
        )
        losses.backward()
        gradients = {
            name: parameter.grad.double().numpy().copy() for name, parameter in trainable(session.model).items()
        }  # type: ignore[union-attr]
        session.model.zero_grad(set_to_none=True)
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
        norms.append(norm)
        for name, gradient in gradients.items():
            sums[name] = sums.get(name, 0.0) + gradient * min(1.0, clip / norm)
    return sums, norms


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("start", ["zero", "random"])
def test_a_private_step_clips_the_per_row_gradient_of_r(quantization: str, start: str) -> None:
    config = xs_config(quantization)
    session, _ = session_with(config)
    if start == "zero":
        initial_adapter(session, config)
    session.model.eval()
    examples = text_examples(8)
    _, norms = clipped_by_autograd(session, examples, 1.0)
    clip = float(np.median(norms))
    units = tuple((place,) for place in range(8))
    mechanism = Mechanism(
        clip_norm=clip,
        sampling_rate=1.0,
        noise_multiplier=0.0,
        units=units,
        expected_units=8.0,
        seed=0,
        bank="b",
        reproducible=True,
    )
    grid = mechanism.grid(session.layout.size)
    sums, _ = clipped_by_autograd(session, examples, grid.target_steps * grid.step)
    private_step(session.model, examples, mechanism, 0, 4096, footprint(session.model), 2.0**40)
    ours = {name: parameter.grad.double().numpy().copy() for name, parameter in trainable(session.model).items()}  # type: ignore[union-attr]
    session.model.zero_grad(set_to_none=True)
    difference = math.sqrt(sum(float(((8 * ours[name] - sums[name]) ** 2).sum()) for name in sums))
    assert difference < 1e-3 * math.sqrt(sum(float((total**2).sum()) for total in sums.values()))


def test_a_private_run_noises_r_alone(rows: Path, tmp_path: Path) -> None:
    words = overrides(
        rows,
        tmp_path / "runs",
        "privacy=example",
        "privacy.epsilon=0",
        "privacy.noise_multiplier=1",
        "privacy.delta=1e-5",
        *XS,
    )
    config = compose(words)
    run = run_federated(FakeGrid(simulated_banks(2, tmp_path / "banks")), config)
    session = get_session(config)
    final = load_adapter(run / "adapters" / "final", session.layout, config.model, session.frozen)
    assert final.any()
    assert layout_of(session.model).size == read_adapter(session.model).size == 2 * 3 * 64


# --- int8 and the batch ---------------------------------------------------------------------------


def int8_layer(threshold: float) -> tuple[Any, torch.Tensor]:
    """(a layer of bitsandbytes as LLM.int8 makes it, the weight it was made of, (32, 64) float32)."""
    from bitsandbytes.nn import Linear8bitLt

    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)) / 8
    layer = Linear8bitLt(64, 32, bias=False, has_fp16_weights=False, threshold=threshold)
    layer.load_state_dict({"weight": weight})
    return layer.to("cpu").eval(), weight


@pytest.mark.parametrize(("threshold", "moves"), [(6.0, True), (0.0, False)])
def test_a_row_in_8_bits_is_independent_of_others_only_at_threshold_0(threshold: float, moves: bool) -> None:
    layer, _ = int8_layer(threshold)
    draw = torch.Generator().manual_seed(1)
    row, neighbour = (torch.randn(1, 64, generator=draw).half() for _ in range(2))
    neighbour[0, 3] = 20.0
    with torch.no_grad():
        alone, among = layer(row), layer(torch.cat([row, neighbour]))[:1]
    assert layer.weight.dtype == torch.int8
    assert (float((alone - among).abs().max()) > 0) == moves


def test_the_threshold_reaches_bitsandbytes() -> None:
    for threshold in (6.0, 0.0):
        config = replace(tiny_config("int8").model, int8_threshold=threshold)
        found = quantization_config(config, torch.float32)
        assert found.load_in_8bit
        assert found.llm_int8_threshold == threshold


def test_a_session_is_not_shared_between_thresholds() -> None:
    config = tiny_config("int8")
    first = get_session(config)
    other = get_session(replace(config, model=replace(config.model, int8_threshold=6.0)))
    assert other.model is not first.model


def test_privacy_of_rows_with_int8_needs_threshold_0() -> None:
    words = ["privacy=example", "peft=lora", "model.quantization=int8"]
    assert compose(words).model.int8_threshold == 0
    with pytest.raises(
        ConfigError, match=r"privacy=example does not go with model\.int8_threshold=6: .*Set model\.int8_threshold=0\."
    ):
        compose([*words, "model.int8_threshold=6"])
    assert compose(words[1:]).model.int8_threshold == 0, "also without privacy: packs bring rows together"
    assert compose(["privacy=example", "model.int8_threshold=6"]).model.quantization == "nf4"
    with pytest.raises(ConfigError, match=r"model\.int8_threshold must be 0"):
        compose(["model.int8_threshold=-1"])
