"""FFA-LoRA: A stays as the seed draws it, B alone is trained, sent, averaged and clipped; folders hold both."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from conftest import random_adapter, tiny_config
from fake_grid import FakeGrid, simulated_banks
from tiny_runs import overrides, result_of, write_rows

from fedfinlora.cli import main
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.adapter import load_adapter, read_adapter, save_adapter, trainable, write_adapter
from fedfinlora.model.loading import Session, get_session, initial_adapter
from fedfinlora.wire.messages import Figures, Reply
from server_app.federated import run_federated
from server_app.replies import replies_of
from server_app.strategies import rule_of
from server_app.strategies.strategy import ServerState, take_step


def frozen_config(seed: int = 0, method: str = "lora") -> Config:
    config = tiny_config(method=method)
    return dataclasses.replace(config, seed=seed, peft=dataclasses.replace(config.peft, freeze_a=True))


def products(session: Session, vector: np.ndarray) -> dict[str, np.ndarray]:
    """Layer -> B A in float64, (out, in)."""
    views = session.layout.views(vector)
    tensors = {**session.frozen, **views}
    layers = sorted({name.split(".lora_")[0] for name in tensors})
    return {
        layer: tensors[f"{layer}.lora_B.weight"].astype(np.float64)
        @ tensors[f"{layer}.lora_A.weight"].astype(np.float64)
        for layer in layers
    }


def test_only_b_is_trained_and_sent() -> None:
    session, whole = get_session(frozen_config()), get_session(tiny_config())
    whole_names, whole_size = whole.layout.names, whole.layout.size
    session = get_session(frozen_config())
    assert session.layout.names == tuple(name for name in whole_names if ".lora_B." in name)
    assert set(session.frozen) == {name for name in whole_names if ".lora_A." in name}
    assert session.layout.size + sum(tensor.size for tensor in session.frozen.values()) == whole_size


def test_a_follows_from_the_seed_alone() -> None:
    first = {name: tensor.copy() for name, tensor in get_session(frozen_config(1)).frozen.items()}
    other = get_session(frozen_config(2)).frozen
    assert all(not np.array_equal(first[name], other[name]) for name in first)
    again = get_session(frozen_config(1))
    assert all(np.array_equal(first[name], again.frozen[name]) for name in first)
    in_model = {name: parameter for name, parameter in again.model.named_parameters() if ".lora_A." in name}
    assert [parameter.detach().numpy().tobytes() for parameter in in_model.values()] == [
        first[name.replace(".default.", ".")].tobytes() for name in in_model
    ]


def test_a_is_that_of_plain_lora_with_the_same_seed() -> None:
    frozen = dict(get_session(frozen_config(3)).frozen)
    config = dataclasses.replace(tiny_config(), seed=3)
    session = get_session(config)
    plain = session.layout.views(initial_adapter(session, config))
    assert all(np.array_equal(plain[name], tensor) for name, tensor in frozen.items())


def test_the_mean_is_the_mean_of_the_updates_unlike_with_plain_lora() -> None:
    for config, exact in ((frozen_config(), True), (tiny_config(), False)):
        session = get_session(config)
        start = initial_adapter(session, config)
        deltas = [random_adapter(session.layout.size, seed) for seed in (1, 2, 3)]
        nothing = Figures.withheld(1, 0.0, 1.0, 1.0, 0.1)
        replies = [Reply(f"bank-{number}", delta, nothing, 1.0) for number, delta in enumerate(deltas)]
        rule = rule_of(StrategyConfig(weighting="equal"), 1)
        state = take_step(rule, ServerState(0, start), replies_of(replies, rule.weights(replies)))
        averaged = products(session, state.adapter)
        for layer, product in averaged.items():
            wanted = np.mean([products(session, start + delta)[layer] for delta in deltas], axis=0)
            error = np.linalg.norm(product - wanted) / np.linalg.norm(wanted)
            assert (error < 1e-6) == exact, (layer, error)


@pytest.mark.parametrize("method", ["lora", "rslora"])
def test_the_folder_holds_both_and_plain_peft_loads_it(tmp_path: Path, method: str) -> None:
    import torch
    from peft import PeftModel

    config = frozen_config(5, method)
    session = get_session(config)
    vector = random_adapter(session.layout.size)
    write_adapter(session.model, vector)
    ids = torch.arange(3, 20).unsqueeze(0)
    with torch.no_grad():
        ours = session.model(input_ids=ids).logits
    save_adapter(tmp_path, vector, session.layout, config.peft, config.model, session.frozen)
    base = session.model.unload()
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, str(tmp_path)).eval()(input_ids=ids).logits
    from fedfinlora.model import loading as models

    models._sessions.clear()
    models._bases.clear()
    assert torch.allclose(ours, theirs, atol=1e-6)
    again = get_session(config)
    assert np.array_equal(load_adapter(tmp_path, again.layout, frozen=again.frozen), vector)
    other = get_session(frozen_config(6, method))
    with pytest.raises(UserError, match="Set seed="):
        load_adapter(tmp_path, other.layout, frozen=other.frozen)
    narrow = get_session(dataclasses.replace(config, peft=dataclasses.replace(config.peft, rank=config.peft.rank + 1)))
    with pytest.raises(UserError, match="does not fit this model and peft"):
        load_adapter(tmp_path, narrow.layout, frozen=narrow.frozen)


def test_dora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="DoRA's magnitudes"):
        compose(["peft=dora", "peft.freeze_a=true"])


def test_on_llama_8b_a_third_of_the_numbers_is_sent() -> None:
    """q, k and v of Llama 3.1 8B: A is rank x 4,096 three times, B 4,096 and twice 1,024 x rank."""
    rank = 8
    a, b = 3 * rank * 4096, rank * (4096 + 1024 + 1024)
    assert b / (a + b) == pytest.approx(1 / 3)


@pytest.mark.slow
def test_a_run_trains_scores_and_resumes_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_rows(tmp_path / "rows")
    words = overrides(
        rows,
        tmp_path / "runs",
        "peft.freeze_a=true",
        "evaluation=default",
        "evaluation.benchmarks=[fpb]",
        "evaluation.limit=2",
    )
    config = compose(words)
    run_federated(FakeGrid(simulated_banks(config.banks, tmp_path / "banks")), config)
    whole = result_of(tmp_path / "runs" / "run")["bytes_up"]
    plain = compose(overrides(rows, tmp_path / "runs", name="plain"))
    run_federated(FakeGrid(simulated_banks(plain.banks, tmp_path / "banks")), plain)
    assert whole < result_of(tmp_path / "runs" / "plain")["bytes_up"]
    capsys.readouterr()
    final = tmp_path / "runs" / "run" / "adapters" / "final"
    assert main(["evaluate", "--adapter", str(final), *words[:3], "run_name=scored", *words[4:7], *words[-3:]]) == 0
    scores = [result_of(tmp_path / "runs" / name)["scores"] for name in ("run", "scored")]
    assert scores[0]["final"]["fpb"] == next(value["fpb"] for label, value in scores[1].items() if label != "base")


def test_a_round_moves_b_only() -> None:
    session = get_session(frozen_config())
    assert all(".lora_B." in name for name in trainable(session.model))
    assert read_adapter(session.model).shape == (session.layout.size,)
