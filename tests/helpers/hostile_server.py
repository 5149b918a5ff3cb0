"""A server that lies: what it asks a bank for, what it gets, and what the bank writes down.

`LIES` is the table. A lie is a change of an honest request as it crosses the network, past all checks of the server's
side. `Bank` is one that `bank init` could have made; it answers through its real ClientApp. `tests/lying` makes a real
ServerApp lie.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fake_grid import FakeGrid
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from tiny_runs import write_lines

from client_app.facts import BankFacts, bank_facts
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.deployment.bank_settings import BankSettings, settings_text
from fedfinlora.deployment.policy import Policy
from fedfinlora.model.loading import get_session, initial_adapter
from fedfinlora.privacy.history import read_history
from fedfinlora.privacy.ledger import read_lines
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.wire.messages import TrainRequest, pack_request
from fedfinlora.wire.vectors import ARRAY_KEY, from_array, to_array

ROWS, FEW, DECLARED = 61, 3, 60
"""Rows of the tasks fpb and fiqa, and what is declared of the former. One row of fpb is shorter than all others."""
BUDGET = 8.0
HONEST = ("privacy=example", "privacy.epsilon=1")
ANSWER = "ok"


@dataclass(frozen=True)
class Lie:
    """A request that asks for more than the bank gives."""

    asks: str
    """In words, after "The server …"."""
    code: str
    """What comes back: "ok" for a delta that is in the ledger, else a code of SAFE_REASONS. In either case nothing
    else.
    """
    history: str
    """Words of the bank's own history; "|" between such as depend on the sample."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Dotted key -> value, in the JSON of the configuration."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What else of the request is different."""
    adapter: float = 0.0
    """Every number of the adapter that is sent; 0 = the honest one."""
    booked: bool = False
    """The round fails after it was booked: nothing leaves, and it stays booked."""


LIES = (
    Lie("asks for noise that it can compute", "config", "reproducible_noise", {"privacy.reproducible_noise": True}),
    Lie("asks for a round without privacy", "policy-privacy", "budget_epsilon=8, and privacy=none",
        {"privacy.mode": "none", "privacy.epsilon": 0.0}),
    Lie("promises to add the noise itself", "policy-privacy", "budget_epsilon=8, and privacy=bank",
        {"privacy.mode": "bank", "privacy.unit": "bank", "privacy.epsilon": 0.0, "privacy.noise_multiplier": 1.0}),
    Lie("asks for noise of 0.0001 of the clip norm", "privacy", "above privacy.budget_epsilon=8",
        {"privacy.epsilon": 0.0, "privacy.noise_multiplier": 1e-4}),
    Lie("asks for noise so small that its square is zero", "privacy", "internal: ZeroDivisionError",
        {"privacy.epsilon": 0.0, "privacy.noise_multiplier": 1e-200}),
    Lie("asks for epsilon 10,000", "privacy", "above privacy.budget_epsilon=8", {"privacy.epsilon": 1e4}),
    Lie("brings a budget of its own", "privacy", "above privacy.budget_epsilon=8",
        {"privacy.epsilon": 0.0, "privacy.noise_multiplier": 0.1, "privacy.budget_epsilon": 1e9}),
    Lie("asks for delta 0.99", "policy-max_delta", "the policy's rule max_delta", {"privacy.delta": 0.99}),
    Lie("asks for one row", "privacy", "fewer than min_|no usable train rows",
        {"train.max_rows": 1, "train.batch_rows": 1}),
    Lie("asks for the head's layer, whose update names the tokens of the rows", "policy-target_modules",
        "the policy's rule target_modules", {"peft.target_modules": ["lm_head"]}),
    Lie("asks for the embeddings, hidden among other layers", "policy-target_modules",
        "the policy's rule target_modules", {"peft.target_modules": ["q_proj", "embed_tokens"]}),
    Lie("asks for layers by a path that ends as an allowed one", "policy-target_modules",
        "the policy's rule target_modules", {"peft.target_modules": ["self_attn.q_proj"]}),
    Lie("asks for a step of plain sgd without noise", "policy-optimizer", "the policy's rule optimizer",
        {"privacy.mode": "none", "privacy.epsilon": 0.0, "train.optimizer": "sgd"}),
    Lie("asks for sgd under noise", "ok", "sent", {"train.optimizer": "sgd"}),
    Lie("asks for steps without end", "config", "steps_per_round must be a finite number",
        {"train.steps_per_round": 10**400}),
    Lie("asks for a learning rate beyond all numbers", "config", "learning_rate must be a finite number",
        {"train.learning_rate": float("inf")}),
    Lie("asks for delta 1e-300", "privacy", "No noise gives epsilon 1", {"privacy.delta": 1e-300}),
    Lie("asks for the rows of a small task", "privacy", "fewer than min_",
        {"dataset.tasks": ["fiqa"], "train.batch_rows": 2}),
    Lie("asks for rows so short that there is one", "privacy", "fewer than min_", {"model.context_tokens": 18}),
    Lie("asks for rows so short that there is none", "privacy", "no usable train rows", {"model.context_tokens": 3}),
    Lie("asks for rows of a task that is not there", "privacy", "data: ", {"dataset.tasks": ["nwgi"]}),
    Lie("asks to stop at a bad row, to learn whether there is one", "ok", "sent", {"dataset.on_bad_row": "stop"}),
    Lie("asks for a task twice", "ok", "sent", {"dataset.tasks": ["fpb", "fpb"]}),
    Lie("asks for steps of one row more than declared", "privacy", "is more than the 63 declared rows",
        {"train.batch_rows": 64}),
    Lie("asks for steps of a million rows", "privacy", "is more than the 63 declared rows",
        {"train.batch_rows": 10**6}),
    Lie("asks for epochs, so that the steps would reveal the rows", "config", "would reveal the row count",
        {"train.epochs": 1.0}),
    Lie("asks for weights by rows", "config", "a bank's row count would leave", {"strategy.weighting": "rows"}),
    Lie("asks for the loss of held-out rows", "config", "the loss of held-out rows would leave",
        {"train.holdout_max_rows": 4}),
    Lie("turns shared prefixes on", "config", "no gradient of their own", {"train.share_prefix": True}),
    Lie("turns gradient checkpointing on", "config", "would be seen twice", {"train.gradient_checkpointing": True}),
    Lie("turns int8's outliers on", "config", "neighbours' outliers",
        {"model.quantization": "int8", "model.int8_threshold": 6.0, "peft.method": "lora"}),
    Lie("asks for repeated rows", "config", "a row would be there several times", {"dataset.equalize_tasks": True}),
    Lie("asks for another unit", "config", "privacy.unit", {"privacy.unit": "branch"}),
    Lie("asks for customers where rows have none", "privacy", "have no `issuer`", {"privacy.unit": "customer"}),
    Lie("asks for a clip norm of 1e30", "privacy", "did not move the adapter", {"privacy.clip_norm": 1e30},
        booked=True),
    Lie("asks for a clip norm of 1e-300", "privacy", "did not move the adapter", {"privacy.clip_norm": 1e-300},
        booked=True),
    Lie("asks for an infinite clip norm", "config", "clip_norm", {"privacy.clip_norm": float("inf")}),
    Lie("asks for a thousand steps", "policy-max_steps_per_round", "max_steps_per_round",
        {"train.steps_per_round": 1000}),
    Lie("sends an adapter of NaN", "adapter", "not finite", adapter=float("nan")),
    Lie("sends an adapter of 1e30, on which every loss is infinite", "privacy", "did not move the adapter",
        adapter=1e30, booked=True),
    Lie("asks for round 0", "config", "round must be a whole number from 1", record={"round": 0}),
    Lie("asks for round 99 of 4", "config", "round 99 in the request", record={"round": 99}),
    Lie("names a run by a path", "config", "unusable run name", record={"run": "../../etc"}),
    Lie("shows a line of the ledger that the bank never wrote", "privacy", "rolled back or cut",
        record={"ledger-heads": json.dumps({"north": {"number": 1, "hash": "f" * 64}})}),
    Lie("shows a line of the ledger that is none", "config", "unusable request",
        record={"ledger-heads": '{"north": {"number": -1, "hash": ""}}'}),
    Lie("has other code", "source", "source hash differs", record={"source-sha256": "0" * 64}),
    Lie("sends an adapter of another layout", "layout", "layout", record={"layout-id": "0" * 64}),
    Lie("sends a configuration that is none", "config", "unusable request", record={"config": "[" * 5000}),
)  # fmt: skip
"""What is tried, against a bank with a budget of 8 that allows every privacy mode."""


def tell(content: RecordDict, lie: Lie, bank: str = "north") -> RecordDict:
    """An honest request with the lie in it, for one bank."""
    values = dict(content.config_records["request"])
    config = json.loads(str(values["config"]))
    for key, value in lie.config.items():
        group, _, name = key.rpartition(".")
        config[group][name] = value
    record = {
        key: value.replace("north", bank) if isinstance(value, str) else value for key, value in lie.record.items()
    }
    changed = ConfigRecord({**values, "config": json.dumps(config), **record})
    adapter = content.array_records["adapter"]
    if lie.adapter:
        honest = adapter[ARRAY_KEY]
        adapter = ArrayRecord({ARRAY_KEY: to_array(np.full_like(from_array(honest, honest.shape[0]), lie.adapter))})
    return RecordDict({"request": changed, "adapter": adapter})


def write_bank(place: Path, policy: Policy | None = None, rows: int = ROWS, **settings: Any) -> Path:
    """The rows and the bank.yaml of the bank `north` in a folder. Returns the bank.yaml."""
    lines = [
        json.dumps({"context": f"row number {n:04d} is up. Answer:", "target": "positive"}) for n in range(rows - 1)
    ]
    write_lines(
        place / "rows" / "train" / "fpb_train.jsonl", [*lines, json.dumps({"context": "x Answer:", "target": "up"})]
    )
    few = [json.dumps({"context": f"a question {number} of few. Answer:", "target": "up"}) for number in range(FEW)]
    write_lines(place / "rows" / "train" / "fiqa_train.jsonl", [*few, "no row"])
    every = Policy(
        models=("memory:tiny-random",), privacy=("none", "example", "dp_lora", "bank"), max_rank=0, max_epsilon=0.0
    )
    own = {"declared_rows": (f"fpb:{DECLARED}", f"fiqa:{FEW}"), "budget_epsilon": BUDGET, **settings}
    made = BankSettings(
        name="north", data=str(place / "rows"), coordinator="127.0.0.1:1", policy=policy or every, **own
    )
    file = place / "bank.yaml"
    file.write_text(settings_text(made), "utf-8")
    return file


class Bank:
    """A bank with a bank.yaml, asked through its ClientApp; its ledger and history are in `place`."""

    def __init__(self, settings: Path, place: Path) -> None:
        self.node_config = {
            "settings": str(settings), "state-dir": str(place / "state"), "ledger-dir": str(place / "ledger"),
        }  # fmt: skip
        self.place = place

    @property
    def facts(self) -> BankFacts:
        return bank_facts(self.node_config)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Of its ledger."""
        return read_lines(self.facts.ledger_folder)

    @property
    def history(self) -> list[dict[str, Any]]:
        return read_history(self.facts.history_file)

    def request(self, *words: str, run: str = "run", round_number: int = 1) -> TrainRequest:
        """An honest one."""
        config = config_of(self.place, *words)
        session = get_session(config)
        adapter = initial_adapter(session, config)
        return TrainRequest(config, run, round_number, session.layout.id, source_fingerprint(), adapter)

    def answers(self, content: RecordDict) -> RecordDict:
        """What leaves the bank."""
        grid = FakeGrid({7: self.node_config})
        [message] = grid.push_messages([Message(content, 7, "train", group_id="1")])
        [reply] = grid.pull_messages([message])
        assert not reply.has_error(), reply.error
        return reply.content

    def asked_honestly(self, *words: str, run: str = "run") -> RecordDict:
        return self.answers(pack_request(self.request(*HONEST, *words, run=run)))

    def lied_to(self, lie: Lie, run: str = "run") -> RecordDict:
        return self.answers(tell(pack_request(self.request(*HONEST, run=run)), lie))


def config_of(place: Path, *words: str) -> Config:
    """The configuration of an honest run of four rounds of a step each."""
    return compose(
        [
            "dataset=finlora",
            f"dataset.root={place}",
            f"output_dir={place}",
            "model=tiny-random",
            "model.threads=1",
            "evaluation=none",
            "num_server_rounds=4",
            "banks=2",
            "train.steps_per_round=1",
            "train.batch_rows=16",
            "train.warmup_steps=0",
            *words,
        ]
    )


def code_of(content: RecordDict) -> str:
    """ "ok", or the code of the refusal."""
    head = content.config_records["reply"]
    return ANSWER if head["status"] == "ok" else str(head["code"])


def said(content: RecordDict) -> dict[str, Any]:
    """The head of an answer, without what says which request it answers."""
    head = dict(content.config_records["reply"])
    return {key: value for key, value in head.items() if key not in ("run", "round", "attempt", "request")}


def page() -> str:
    """The table, for the documentation."""
    rows = [f"| {lie.asks} | `{lie.code}` | {lie.history.split('|')[0]} |\n" for lie in LIES]
    return "| the server … | what it gets | the bank's history says |\n|---|---|---|\n" + "".join(rows)


# --- in a real ServerApp --------------------------------------------------------------------------


def lying_pack_requests(honest: Any) -> Any:
    """`fedfinlora.wire.messages.pack_requests` that lies to the bank LIES_TO: in round n with the n-th of the lies that
    LIES_SENT numbers.
    """
    reported, to = [LIES[int(number)] for number in os.environ["LIES_SENT"].split(",")], os.environ["LIES_TO"]

    def pack(request: TrainRequest, banks: Any) -> Any:
        packed = honest(request, banks)
        if request.round <= len(reported) and to in packed:
            packed[to] = tell(packed[to], reported[request.round - 1], to)
        return packed

    return pack


if __name__ == "__main__":
    print(page(), end="")
