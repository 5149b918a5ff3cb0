"""What a bank promises before a private round: the noise is found, the gradients are checked, and the round is booked in the ledger."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedfinlora.errors import UserError
from fedfinlora.privacy.accounting import Steps, default_delta, epsilon, noise_multiplier_for
from fedfinlora.privacy.dp_lora import SENSITIVITY, PublishedMechanism, steps_of
from fedfinlora.privacy.ledger import BudgetError, Spending, spend
from fedfinlora.privacy.mechanism import Mechanism, prove
from fedfinlora.wire import BankError, TrainRequest

if TYPE_CHECKING:
    from client_app.bank import BankFacts, BankRows
    from fedfinlora.models import Session
    from fedfinlora.training import Stretch

log = logging.getLogger("fedfinlora.bank")
MECHANISMS = {"example": "example-level DP-SGD", "dp_lora": "DP-LoRA as published"}
"""What the ledger calls them."""


@dataclass(frozen=True)
class Promise:
    """What a private round does and what it costs; it stands in the ledger when it is made."""

    mechanism: Mechanism | PublishedMechanism
    delta: float
    epsilon_planned: float
    epsilon_spent: float


_proven: set[tuple[str, str]] = set()
"""(Run, bank) whose gradients this process has checked."""


def make_promise(request: TrainRequest, facts: BankFacts, rows: BankRows, stretch: Stretch, session: Session) -> Promise:
    """Find the noise, check the gradients, and write the round into the ledger. BankError: nothing may be trained."""
    privacy, count = request.config.privacy, len(rows.units)
    delta = privacy.delta or default_delta(count)
    if delta > 1 / count:
        raise BankError("privacy", f"privacy.delta={delta:g} is more than 1 / {count} units of {facts.name}: lower it")
    try:
        make = _example_level if privacy.mode == "example" else _published
        mechanism, planned, steps = make(request, facts, rows, stretch, session, delta)
        mechanism_name, reproducible = MECHANISMS[privacy.mode], privacy.reproducible_noise
        spending = Spending(
            request.run, request.round, facts.name, mechanism_name, privacy.unit, steps, delta, reproducible
        )  # fmt: skip
        limits = [limit for limit in (privacy.budget_epsilon, facts.budget_epsilon) if limit]
        spent = spend(facts.ledger_folder / facts.name, rows.data_sets, spending, min(limits, default=0.0))
    except BudgetError as error:
        raise BankError("budget", str(error)) from error
    except BankError:
        raise
    except UserError as error:
        raise BankError("privacy", str(error)) from error
    log.info(
        "%s: round %d: %s, noise multiplier %.3g, epsilon planned %.3g, spent on this data %.3g at delta %.0e",
        facts.name, request.round, mechanism_name, mechanism.noise_multiplier, planned, spent, delta,
    )  # fmt: skip
    return Promise(mechanism, delta, planned, spent)


def _example_level(
    request: TrainRequest, facts: BankFacts, rows: BankRows, stretch: Stretch, session: Session, delta: float
) -> tuple[Mechanism, float, Steps]:
    """(mechanism, epsilon planned for the run, this round's steps) of DP-SGD."""
    config, privacy = request.config, request.config.privacy
    # Steps are planned in rows; a unit is drawn as often as a row would be.
    sampling_rate = stretch.rows_per_step / len(rows.train)
    if sampling_rate > 1:
        wanted = f"train.batch_rows={config.train.batch_rows}" if config.train.batch_rows else "a step"
        raise BankError("privacy", f"{wanted} is more than the {len(rows.train)} rows of {facts.name}: lower it")
    noise = privacy.noise_multiplier
    noise = noise or noise_multiplier_for(privacy.epsilon, delta, sampling_rate, stretch.total_steps)
    planned = epsilon([Steps(sampling_rate, noise, stretch.total_steps)], delta)
    mechanism = Mechanism(
        clip_norm=privacy.clip_norm,
        sampling_rate=sampling_rate,
        noise_multiplier=noise,
        units=rows.units,
        seed=config.seed,
        bank=facts.name,
        reproducible=privacy.reproducible_noise,
    )
    if (request.run, facts.name) not in _proven:
        shortest = sorted(rows.units, key=lambda unit: sum(len(rows.train[place].read_ids) for place in unit))[:2]
        prove(session.model, [[rows.train[place] for place in unit] for unit in shortest])
        _proven.add((request.run, facts.name))
    return mechanism, planned, Steps(sampling_rate, noise, stretch.steps)


def _published(
    request: TrainRequest, facts: BankFacts, rows: BankRows, stretch: Stretch, session: Session, delta: float
) -> tuple[PublishedMechanism, float, Steps]:
    """The same of the published algorithm, at the epsilon that can honestly be stated for it."""
    privacy = request.config.privacy
    noise = privacy.noise_multiplier
    noise = noise or SENSITIVITY * noise_multiplier_for(privacy.epsilon, delta, 1.0, stretch.total_steps)
    planned = epsilon([steps_of(noise, stretch.total_steps)], delta)
    mechanism = PublishedMechanism(privacy.clip_norm, noise, request.config.seed, facts.name, privacy.reproducible_noise)
    claimed = epsilon([Steps(1.0, noise, stretch.total_steps)], delta)
    log.info(
        "%s: DP-LoRA as published: epsilon %.3g at delta %.0e for %d steps, if one row may be in every minibatch and turn both clipped gradients "
        "round; with the paper's own assumption, that a row moves them by C, it would be %.3g",
        facts.name, planned, delta, stretch.total_steps, claimed,
    )  # fmt: skip
    return mechanism, planned, steps_of(noise, stretch.steps)
