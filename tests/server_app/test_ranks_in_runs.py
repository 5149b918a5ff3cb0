"""Runs in which banks do not train all ranks: what they send, what the server rejects, and the saved adapter in plain
PEFT.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_grid import only, with_delta
from flwr.app import Message
from round_runs import Runs
from tiny_runs import adapter_bytes, rounds_of, write_rows

from client_app.facts import bank_facts
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.deployment.bank_settings import BankSettings, settings_text
from fedfinlora.deployment.policy import Policy, Work, broken_rule
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.adapter import Layout
from fedfinlora.model.embedded import embedded_folder
from fedfinlora.model.loading import get_session
from fedfinlora.provenance.deltas import delta_file, start_file
from fedfinlora.run.checkpoint import load_checkpoint
from fedfinlora.run.folder import read_config
from fedfinlora.train.own_columns import foreign_rank, start_of, trained_size
from server_app.own_ranks import with_announced
from server_app.replies import Replies
from server_app.strategies import rule_of, strategy_of
from server_app.strategies.strategy import ServerState

RESIDUAL = ("strategy=residual", "peft=rslora", "peft.rank=6", "strategy.residual_rank=4", "peft.alpha=6")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def runs(rows: Path, tmp_path: Path) -> Runs:
    return Runs(rows, tmp_path)


def vector(file: Path) -> Any:
    return np.fromfile(file, "<f4")


def test_the_saved_residual_run_is_the_exact_mean_in_plain_peft(runs: Runs) -> None:
    """Two banks of two trained ranks: rank 2 holds a round's residual, four ranks two rounds'. The products of the kept
    updates, summed densely and added to the base weights, give the logits that plain PeftModel gives.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = runs.start("exact", *RESIDUAL, "strategy.keep_deltas=true", "strategy.weighting=equal", "train.batch_rows=2")
    layout = get_session(runs.config("other", *RESIDUAL)).layout
    adapter = vector(start_file(run)).astype(np.float64)
    wanted = {layer.layer: np.zeros(()) for layer in layout.layers}
    held = wanted
    for number in (1, 2):
        updates = [vector(delta_file(run, number, f"bank-{bank}")).astype(np.float64) for bank in (0, 1)]
        for layer in layout.layers:
            for change_a, change_b in (layer.of(update) for update in updates):
                assert not change_a[2:].any()
                assert not change_b[:, 2:].any()
                assert change_b[:, :2].any()
            a, b = layer.of(adapter)
            local = [(b + layer.of(update)[1])[:, :2] @ (a + layer.of(update)[0])[:2] for update in updates]
            mean_a, mean_b = (sum(layer.of(update)[factor] for update in updates) / 2 for factor in (0, 1))
            held = {**held, layer.layer: held[layer.layer] + sum(local) / 2 - (b + mean_b)[:, :2] @ (a + mean_a)[:2]}
            wanted[layer.layer] = held[layer.layer] + (b + mean_b)[:, :2] @ (a + mean_a)[:2]
        adapter += sum(updates) / 2  # what the next round's trained ranks start from
    assert load_checkpoint(run).arrays["residual_lost"][0] < 1e-9
    assert all(np.linalg.norm(product) > 0 for product in held.values())

    ids = torch.arange(3, 20).unsqueeze(0)
    base, dense = (AutoModelForCausalLM.from_pretrained(embedded_folder("memory:tiny-random")) for _ in range(2))
    plain = dense(ids).logits
    for name, product in wanted.items():
        layer = dense.get_submodule(name.removeprefix("base_model.model."))
        layer.weight.data += 6 / math.sqrt(6) * torch.from_numpy(np.float32(product))
    with torch.no_grad():
        saved = PeftModel.from_pretrained(base, str(run / "adapters" / "final"))(ids).logits
        expected = dense(ids).logits
    torch.testing.assert_close(saved, expected, atol=1e-5, rtol=1e-5)
    assert (saved - plain).abs().max() > 100 * (saved - expected).abs().max()


def test_banks_of_other_ranks_are_padded_and_a_wrong_rank_is_rejected(runs: Runs) -> None:
    """bank-0 trains two of four ranks. In round 2 bank-1 answers as if it had bank-0's words, bank-0 with all ranks."""
    mixed = ("strategy=hetlora", "peft.rank=4", "strategy.ranks=[bank-0:2]", "strategy.keep_deltas=true")

    def all_ranks(message: Message, reply: Message) -> Any:
        if message.metadata.group_id != "2":
            return reply
        return Message(with_delta(reply, lambda delta: delta + np.float32(1e-3)), reply_to=message)

    run = runs.start("mixed", *mixed, tamper=only("bank-0", all_ranks))
    config, first = runs.config("other", *mixed), vector(start_file(run))
    layout = get_session(config).layout
    local = first + vector(delta_file(run, 1, "bank-0"))
    for layer in layout.layers:
        a, b = layer.of(local)
        assert not a[2:].any()
        assert not b[:, 2:].any()
        assert b[:, :2].any()
    lines = rounds_of(run)
    assert [bank["status"] for bank in lines[0]["banks"]] == ["ok", "ok"]
    [wrong] = [bank for bank in lines[1]["banks"] if bank["bank"] == "bank-0"]
    assert (wrong["status"], wrong["code"]) == ("rejected", "rank")
    assert wrong["reason"] == "The update has more than the 2 ranks that strategy.ranks announces for the bank."


class OwnRanks(Runs):
    """bank-0 has rank 2 in its bank.yaml, bank-1 none."""

    def nodes(self, banks: int) -> dict[int, dict[str, Any]]:
        nodes = super().nodes(banks)
        return {node: {**own, **({"rank": 2} if own["partition-id"] == 0 else {})} for node, own in nodes.items()}


def test_banks_announce_their_own_ranks_and_updates_are_checked(rows: Path, tmp_path: Path) -> None:
    runs = OwnRanks(rows, tmp_path)
    words = ("strategy=flexlora", "peft.rank=4")
    announced = runs.start("announced", *words, "strategy.keep_deltas=true", rounds=1)
    assert read_config(announced).strategy.ranks == ("bank-0:2",)
    listed = Runs(rows, tmp_path).start("listed", *words, "strategy.ranks=[bank-0:2]", rounds=1)
    assert adapter_bytes(listed) == adapter_bytes(announced)
    config = runs.config("other", *words)
    local = vector(start_file(announced)) + vector(delta_file(announced, 1, "bank-0"))
    assert all(not layer.of(local)[0][2:].any() for layer in get_session(config).layout.layers)

    def all_ranks(message: Message, reply: Message) -> Any:
        return Message(with_delta(reply, lambda delta: delta + np.float32(1e-3)), reply_to=message)

    run = runs.start("wrong", *words, rounds=1, tamper=only("bank-0", all_ranks))
    assert [bank["code"] for bank in rounds_of(run)[0]["banks"]] == ["rank", ""]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("strategy=fedavg",), "bank-0 trains rank 2 (rank in its bank.yaml), and strategy=fedavg gives every bank"),
        (("strategy=hetlora", "strategy.ranks=[bank-0:3]"), "strategy.ranks has 3 for it. Change one of them."),
        (("strategy=hetlora", "peft.rank=1"), "the run's banks train 1 at most. Raise peft.rank."),
    ],
)
def test_a_rank_other_than_announced_is_named_and_stops_no_other_bank(
    words: tuple[str, ...], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = composed("peft.rank=4", *words)
    assert with_announced(config, {"bank-0": 2, "bank-1": config.peft.rank}) is config
    assert message in caplog.text


def test_a_resumed_run_keeps_the_ranks_that_it_began_with(caplog: pytest.LogCaptureFixture) -> None:
    begun = composed("strategy=hetlora", "peft.rank=4", "strategy.ranks=[bank-0:2]")
    resumed = replace(begun, resume="run")
    assert with_announced(resumed, {"bank-0": 2, "bank-1": 4}) is resumed
    assert with_announced(resumed, {"bank-0": 2, "bank-1": 3}) is resumed
    assert re.search(r"bank-1 trains rank 3 .* the run began with 4 for it", caplog.text)


@pytest.mark.parametrize(("rank", "rule"), [(0, ""), (2, ""), (4, "rank")])
def test_a_bank_refuses_a_request_for_another_rank_than_its_own(rank: int, rule: str) -> None:
    config = composed("strategy=hetlora", "peft.rank=8", "strategy.ranks=[north:2]")
    policy = Policy(models=(config.model.path,))
    own = Work(config, 0, 0, 0, datetime(2026, 1, 1), bank="north", rank=rank)
    assert broken_rule(policy, own) == rule


def test_a_deployed_banks_rank_is_that_of_its_bank_yaml(tmp_path: Path) -> None:
    file = tmp_path / "bank.yaml"
    file.write_text(settings_text(BankSettings(name="north", data=str(tmp_path), rank=4)))
    assert bank_facts({"settings": str(file)}).rank == 4
    with pytest.raises(ConfigError, match="rank must be 0"):
        BankSettings(name="north", data=str(tmp_path), rank=-1)


def test_residual_keeps_what_banks_of_other_ranks_averaged() -> None:
    """Ranks 1 and 3 of 3, by dense products: the mean of the banks' own products, without loss."""
    config = composed("strategy=residual", "peft.rank=9", "strategy.residual_rank=6", "strategy.ranks=[bank-0:1]")
    layout, rng = get_session(config).layout, np.random.default_rng(3)
    adapter = rng.normal(size=layout.size).astype(np.float32)
    for layer in layout.layers:
        a, b = layer.of(adapter)
        a[3:], b[:, 3:] = 0, 0
    starts = [start_of(adapter, layout, config, bank) for bank in ("bank-0", "bank-1")]
    locals_ = []
    for rank, start in zip((1, 3), starts, strict=True):
        local = start.copy()
        for layer in layout.layers:
            a, b = layer.of(local)
            a[:rank] += rng.normal(size=a[:rank].shape).astype(np.float32)
            b[:, :rank] += rng.normal(size=b[:, :rank].shape).astype(np.float32)
        locals_.append(local)
    updates = [local - adapter for local in locals_]
    assert [foreign_rank(update, adapter, layout, config, f"bank-{at}") for at, update in enumerate(updates)] == [
        "",
        "",
    ]
    replies = Replies(("bank-0", "bank-1"), (1.0, 1.0), (), lambda block: [update[block] for update in updates], layout)
    state = rule_of(config.strategy, 3).aggregate(ServerState(0, adapter), replies)
    for layer in layout.layers:
        dense = sum(np.matmul(*reversed(layer.of(one.astype(np.float64)))) for one in locals_) / 2
        a, b = layer.of(state.adapter.astype(np.float64))
        np.testing.assert_allclose(b @ a, dense, atol=1e-4)


def test_ranks_that_are_held_are_no_trainable_parameters() -> None:
    layout = Layout(("x.q_proj.lora_A.weight", "x.q_proj.lora_B.weight"), ((6, 10), (20, 6)))
    assert trained_size(layout, composed("peft.rank=6")) == layout.size == 180
    assert trained_size(layout, composed(*RESIDUAL)) == 2 * 10 + 20 * 2


def test_nan_in_one_factor_only_is_rejected_and_the_round_closes(runs: Runs) -> None:
    def with_nan(message: Message, reply: Message) -> Any:
        def poisoned(delta: Any) -> Any:
            delta = delta.copy()
            get_session(config).layout.layers[0].of(delta)[1][0, 0] = np.nan
            return delta

        return Message(with_delta(reply, poisoned), reply_to=message)

    config = runs.config("nan", "strategy=geometric_median", rounds=1)
    run = runs.start("nan", "strategy=geometric_median", rounds=1, tamper=only("bank-1", with_nan))
    [bad] = [bank for bank in rounds_of(run)[0]["banks"] if bank["status"] != "ok"]
    assert (bad["bank"], bad["code"]) == ("bank-1", "not-finite")


def composed(*words: str) -> Config:
    return compose(["model=tiny-random", "banks=4", *words])


def test_what_moved_ranks_that_no_bank_trains_is_named() -> None:
    config = composed(*RESIDUAL)
    layout = get_session(config).layout
    delta, nothing = (np.zeros(layout.size, np.float32) for _ in range(2))
    assert not foreign_rank(delta, nothing, layout, config, "bank-0")
    layout.layers[1].of(delta)[0][5, 0] = 1e-6
    assert "moves the last 4 ranks" in foreign_rank(delta, nothing, layout, config, "bank-0")
    assert start_of(nothing, layout, config, "bank-0") is nothing


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("strategy=residual", "strategy.residual_rank=0"), r"residual_rank and strategy=residual or flora"),
        (("strategy=fedavg", "strategy.residual_rank=2"), r"residual_rank and strategy=residual or flora"),
        (("strategy=residual", "strategy.residual_rank=4"), r"at least one of peft.rank=4 is trained"),
        ((*RESIDUAL, "train.weight_decay=0.1"), r"weight_decay=0.1: it would shrink"),
        (("strategy=residual", "strategy.residual_rank=2", "peft=dora"), r"peft=dora: it works on A and B"),
        (("strategy=residual", "strategy.residual_rank=2", "peft.freeze_a=true"), r"freeze_a=true: it works on A"),
        (("strategy=hetlora", "strategy.ranks=[bank-0:9]"), r"strategy.ranks of bank-0: banks train 4 ranks at most"),
        (("strategy=hetlora", "strategy.ranks=[bank-0:0]"), r"'bank-0:0' is not of the form BANK:RANK"),
        (("strategy=hetlora", "strategy.ranks=[bank-0:2,bank-0:4]"), r"strategy.ranks names a bank twice"),
        (("strategy=fedavg", "strategy.ranks=[bank-0:2]"), r"strategy.ranks goes with strategy=hetlora, flex"),
        (("strategy=fltrust", "strategy.root_bank=''"), r"root_bank and strategy=fltrust go together"),
        (("strategy=krum", "strategy.liars=-1"), r"strategy.liars must be 0 or more"),
        (("strategy=norm_clip", "strategy.clip_factor=0"), r"strategy.clip_factor must be above 0"),
        (("strategy=residual", "strategy.tail_energy=1.0"), r"strategy.tail_energy must be in \[0, 1\)"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(*words)


PRIVATE = (
    "privacy=bank",
    "privacy.epsilon=0",
    "privacy.noise_multiplier=1.0",
    "privacy.accept_noise=true",
    "strategy.weighting=equal",
)


@pytest.mark.parametrize("name", ["krum", "multi_krum", "geometric_median", "trimmed_mean", "norm_clip", "fedrot"])
def test_rules_on_single_replies_are_refused_under_central_privacy(name: str) -> None:
    config = composed(f"strategy={name}", *PRIVATE)
    with pytest.raises(UserError, match=f"strategy={name} needs each bank's reply on its own"):
        strategy_of(config, ["bank-0"], 10)
