"""The bank that an audit asks: real rows in a throw-away folder, the bank's own code and a throw-away ledger."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from client_app.bank import RoundReply, train_round
from client_app.facts import BankFacts
from client_app.own_rows import divide
from client_app.prepared_rows import bank_rows
from client_app.privacy_plan import CUSTOMERS, BankMechanism, declared_size, make_plan
from data.rows import Row
from fedfinlora.commands.audit_banks import coins
from fedfinlora.commands.bank_setup import rounded_sizes
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import Vector
from fedfinlora.model.loading import Session, first_adapter, get_session
from fedfinlora.privacy.accounting import Steps
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.seeds import generator
from fedfinlora.train.loop import stretch_of_round, total_steps
from fedfinlora.wire.messages import TrainRequest

LETTERS = "".join(map(chr, range(33, 127)))
"""What canaries are written in: all printable ASCII, so that they resemble each other little."""
SPREAD = 0.02
"""Standard deviation of what is added to the start: where B is zero, A has no gradient to test."""


class Planned(NamedTuple):
    """What a bank is going to do."""

    mechanism: BankMechanism
    of_round: Steps
    """What it books for the first round."""
    of_run: Steps
    """The same for all rounds."""


@dataclass(frozen=True)
class Workbench:
    config: Config
    session: Session
    own: tuple[Row, ...]
    """The bank's rows."""
    start: Vector
    """(size,) float32: the run's first adapter."""
    folder: Path
    draw: np.random.Generator

    @staticmethod
    def of(config: Config, folder: Path) -> Workbench:
        """The first bank's rows, and the adapter that the run starts from."""
        own = divide(replace(config, resume=""), config.banks)[0]
        if config.train.max_rows:
            own = own[: config.train.max_rows]
        if not own:
            raise UserError("The audit needs rows: the first bank has none.")
        session = get_session(config)
        return Workbench(config, session, tuple(own), first_adapter(session, config), folder, coins(config))

    @property
    def somewhere(self) -> Vector:
        """An adapter near the start at which every tensor has a gradient."""
        spread = generator(self.config.seed, "audit start").standard_normal(self.start.size) * SPREAD
        return np.asarray(self.start + spread, np.float32)

    @property
    def task(self) -> str:
        """Whose task the audit's own rows bear."""
        return self.own[0].task

    def bank(self, rows: Sequence[Row], name: str, **own: Any) -> BankFacts:
        """A bank with these rows. `own`: what it decides itself; banks share one ledger unless it names another."""
        place = self.folder / name
        if not place.exists():
            write_bank(place, rows)
        facts = BankFacts("audited", 0, 0, str(place), self.folder / "state", self.folder / "ledger")
        return replace(facts, **{"declared_rows": rounded_sizes(rows), **own})

    def ask(self, config: Config, facts: BankFacts, adapter: Vector, number: int = 1, run: str = "audit") -> RoundReply:
        return train_round(self._request(config, adapter, number, run), facts)

    def plan(self, config: Config, facts: BankFacts) -> Planned:
        """What the bank plans for the first round. It is booked, in a ledger of its own."""
        facts = replace(facts, ledger_folder=self.folder / f"plan-ledger-{len(list(self.folder.iterdir()))}")
        rows = bank_rows(config, facts, self.session.tokenizer)
        size = declared_size(config, rows.declared, is_sample=False)
        steps = total_steps(size, config.num_server_rounds, config.train)
        stretch = stretch_of_round(1, config.num_server_rounds, steps, size, config.train)
        plan = make_plan(self._request(config, self.start, 1, "plan"), facts, rows, stretch, self.session)
        return Planned(plan.mechanism, plan.steps, replace(plan.steps, count=steps))

    def _request(self, config: Config, adapter: Vector, number: int, run: str) -> TrainRequest:
        return TrainRequest(config, run, number, self.session.layout.id, source_fingerprint(), adapter)


def asked_of_the_bank(config: Config) -> Config:
    """The run's configuration with no sample drawn from the bank's rows; the run's budget does not count."""
    return replace(
        config,
        dataset=replace(config.dataset, max_rows_per_task=0, tasks=()),
        train=replace(config.train, max_rows=0),
        evaluation=replace(config.evaluation, validation_rows=0, keep="last", patience=0),
        privacy=replace(config.privacy, budget_epsilon=0.0),
    )


def one_step(config: Config, declared: int, clip_norm: float) -> Config:
    """One step of SGD with all of `declared` rows, whose delta is minus the noisy sum over C."""
    asked = asked_of_the_bank(config)
    denominator = declared if config.privacy.mode == "example" else 1
    train = replace(
        asked.train,
        optimizer="sgd",
        sgd_learning_rate=denominator / clip_norm,
        weight_decay=0.0,
        proximal_mu=0.0,
        steps_per_round=1,
        epochs=0.0,
        max_steps=0,
        batch_rows=declared,
    )
    return replace(asked, num_server_rounds=1, train=train, privacy=replace(asked.privacy, clip_norm=clip_norm))


def with_noise(config: Config) -> Config:
    """With a noise multiplier of 1 where it would have to be found from epsilon, which takes seconds."""
    noise = config.privacy.noise_multiplier or 1.0
    return replace(config, privacy=replace(config.privacy, epsilon=0.0, noise_multiplier=noise))


def declared(count: int) -> tuple[str, ...]:
    """The declared_rows of a bank with so many rows, and as many customers."""
    return (f"audit:{count}", f"{CUSTOMERS}:{count}")


def canary_rows(count: int, draw: np.random.Generator, task: str, customer: str = "") -> list[Row]:
    """Rows that no one could have had: random letters. Each is a customer of its own unless `customer` is given."""

    def letters(number: int) -> str:
        return "".join(LETTERS[place] for place in draw.integers(0, len(LETTERS), number))

    return [
        Row(f"canary/{index}", task, f"{letters(10)} Answer: ", letters(4), issuer=customer or f"canary {index}")
        for index in range(count)
    ]


def write_bank(folder: Path, rows: Sequence[Row]) -> None:
    """A bank's own folder with these rows."""
    folder.mkdir(parents=True)
    lines = (
        {
            "context": row.prompt,
            "target": row.target,
            "task": row.task,
            **({"issuer": row.issuer} if row.issuer else {}),
        }
        for row in rows
    )
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")


def float_rounding(adapter: NDArray[np.float32], delta: NDArray[np.float32]) -> float:
    """Length of what float32 can round off two deltas of one step: half a unit in the last place for each number, step
    and subtraction.
    """
    largest = np.abs(adapter.astype(np.float64)) + np.abs(delta)
    return float(4 * 2**-24 * np.linalg.norm(largest))
