"""docs/extending.md walked through: its files are registered and run in a federation."""

from __future__ import annotations

import re
from dataclasses import fields
from datetime import date
from pathlib import Path

import pytest
import torch
import yaml
from extending_page import BLOCKS, PAGE, page_module
from round_runs import Runs
from tiny_runs import rounds_of, write_rows

import client_app.bank
from client_app import privacy_plan
from eval.scoring import scorers
from eval.scoring.scorers import Reading
from fedfinlora.config import peft, privacy, strategy
from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.files import read_json
from fedfinlora.model import peft_methods
from fedfinlora.model.adapter_folder import peft_settings, read_tensors
from fedfinlora.model.peft_methods.lora import Lora
from fedfinlora.run import privacy_card as card
from server_app import strategies


def test_every_block_names_its_file() -> None:
    assert len(BLOCKS) == len(re.findall(r"```(?:python|yaml)$", PAGE, re.MULTILINE))


@pytest.mark.parametrize(
    ("rule", "name"), [("FedLion", "fedlion"), ("TrimmedMean", "trimmed"), ("ProductMean", "product_mean")]
)
def test_a_rule_of_the_page_runs(rule: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed under its name it is chosen by the configuration."""
    own = page_module(f"server_app/strategies/{name}.py")
    monkeypatch.setattr(strategy, "STRATEGIES", (*strategy.STRATEGIES, name))
    monkeypatch.setattr(strategies, "RULES", dict(strategies.RULES))
    listing = BLOCKS["server_app/strategies/__init__.py"].replace("fedlion", name).replace("FedLion", rule)
    exec(listing, vars(strategies) | {rule: getattr(own, rule)})
    words = [f"strategy.name={name}"]
    if name == "fedlion":
        settings = yaml.safe_load(BLOCKS["conf/strategy/fedlion.yaml"])
        assert settings.keys() <= {field.name for field in fields(StrategyConfig)}
        words = [f"strategy.{key}={value}" for key, value in settings.items()]
    run = Runs(write_rows(tmp_path / "rows"), tmp_path).start("run", *words, rounds=1, banks=2)
    assert rounds_of(run)[0]["update_norm"] > 0
    assert read_tensors(run / "adapters" / "final")


def test_a_peft_method_of_the_page_trains_saves_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = page_module("fedfinlora/model/peft_methods/asymmetric.py")
    monkeypatch.setattr(peft, "PEFT_METHODS", (*peft.PEFT_METHODS, "asymmetric"))
    listed: dict[str, Lora] = {}
    exec(BLOCKS["fedfinlora/model/peft_methods/__init__.py"], {"METHODS": listed} | vars(own))
    monkeypatch.setitem(peft_methods.METHODS, "asymmetric", listed["asymmetric"])
    runs = Runs(write_rows(tmp_path / "rows"), tmp_path)
    run = runs.start("run", "peft.method=asymmetric", rounds=1)
    tensors = read_tensors(run / "adapters" / "final")
    factors = [tensor for name, tensor in tensors.items() if name.endswith("lora_A.weight")]
    assert all(torch.allclose(a @ a.T, torch.eye(len(a)), atol=1e-5) for a in factors)
    assert any(tensor.any() for name, tensor in tensors.items() if name.endswith("lora_B.weight"))
    settings = peft_settings(run / "adapters" / "final", runs.config("plain"))
    assert settings.method == "lora", "plain PEFT reads it"


def test_a_privacy_mechanism_of_the_page_runs_and_accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = page_module("fedfinlora/privacy/automatic.py")
    for name in ("PRIVACY_MODES", "PRIVACY_IN_THE_BANK"):
        monkeypatch.setattr(privacy, name, (*getattr(privacy, name), "automatic"))
    for module, table in ((privacy_plan, "PLANNERS"), (privacy_plan, "NAMES"), (card, "WORDS")):
        monkeypatch.setattr(module, table, dict(getattr(module, table)))
    for file, module in (("client_app/privacy_plan.py", privacy_plan), ("fedfinlora/run/privacy_card.py", card)):
        exec(BLOCKS[file], vars(module) | vars(own))
    monkeypatch.setattr(client_app.bank, "NAMES", privacy_plan.NAMES)
    monkeypatch.setenv("FEDFINLORA_LEDGER", str(tmp_path / "ledger"))
    words = ("privacy=example", "privacy.mode=automatic", "privacy.epsilon=8", "strategy.weighting=equal")
    run = Runs(write_rows(tmp_path / "rows"), tmp_path).start("run", *words, rounds=1)
    [north, south] = rounds_of(run)[0]["banks"]
    assert north["status"] == south["status"] == "ok", (north, south)
    assert 0 < north["privacy"]["epsilon_spent"] <= north["privacy"]["epsilon_planned"] <= 8
    reported = read_json(run / "privacy.json")
    assert (reported["mode"], reported["mechanism"][:25]) == ("automatic", "DP-SGD whose gradients ar")
    grid = own.AutomaticGrid(1.0, 1.0, 100)
    assert all(grid.factor(norm) * norm <= grid.target_steps for norm in (0.0, 1e-9, 1.0, 1e30))
    assert grid.factor(float("nan")) == 0


def test_a_scorer_of_the_page_judges() -> None:
    space = {"date": date, **vars(scorers)}
    exec(BLOCKS["eval/scoring/scorers.py"], space)
    texts = ("2024-01-31", "2024-02-01", "soon")
    [right, near, none] = space["DateScorer"]().score([Reading("", "", texts[0], text) for text in texts], None)
    assert [score.correct for score in (right, near, none)] == [True, False, False]
    assert (near.measures, none.measures) == ((True, 0.5), (False, 0.0))
