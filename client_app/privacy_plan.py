"""What a bank decides before a private round: delta and denominator from its own settings, the noise, a test of the
gradients, the ledger's line.

The bank alone decides whether noise may be repeated (tests only), delta, the declared sizes that stand for its row
counts, the fewest units, and the budget. The request decides the rest (epsilon wanted, steps, clip norm, tasks), all of
which is accounted for.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from fedfinlora.config.schema import Config
from fedfinlora.config.values import to_json
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import write_adapter
from fedfinlora.model.packing import Example
from fedfinlora.privacy.accounting import Accounted, Steps, default_delta, epsilon, noise_multiplier_for
from fedfinlora.privacy.dp_lora import SENSITIVITY, PublishedMechanism
from fedfinlora.privacy.first_round_check import self_test, units_to_test
from fedfinlora.privacy.history import newest_head
from fedfinlora.privacy.ledger import Booked, BudgetError, Spending, book
from fedfinlora.privacy.mechanism import NEIGHBOUR_SHARE, Mechanism
from fedfinlora.train.gradient_step import GradientStep
from fedfinlora.wire.messages import BankError, TrainRequest

if TYPE_CHECKING:
    from client_app.facts import BankFacts
    from client_app.prepared_rows import BankRows
    from fedfinlora.model.loading import Session
    from fedfinlora.train.loop import Stretch

log = logging.getLogger("fedfinlora.bank")
NAMES = {
    "example": "example-level DP-SGD", "dp_lora": "DP-LoRA as published",
    "none": "none", "bank": "none in the bank (privacy=bank)",
}  # fmt: skip
"""privacy.mode -> what ledger and history call it."""
CUSTOMERS = "customers"
"""The entry of declared_rows that says how many customers there are."""


class BankMechanism(GradientStep, Accounted, Protocol):
    """A mechanism inside a bank: it makes the steps' gradients private, and accounts for them."""

    def among(self, rows: Sequence[Example], taking_part: NDArray[np.bool_]) -> tuple[BankMechanism, Sequence[Example]]:
        """(the mechanism, the rows to train on) when only the marked ones of `rows` have budget left."""


@dataclass(frozen=True)
class PrivacyPlan:
    """What a private round does and costs; it is in the ledger when it is made."""

    mechanism: BankMechanism
    examples: Sequence[Example]
    """The rows that it is given."""
    delta: float
    epsilon_planned: float
    steps: Steps
    booked: Booked


_tested: dict[tuple[str, str], tuple[str, bool]] = {}
"""(Run, bank) whose gradients this process has tested -> (what was tested, whether units must go one to a pass)."""


def declared_size(config: Config, declared: Mapping[str, int], is_sample: bool, max_rows: int | None = None) -> int:
    """How many train rows the bank is taken to have for this request: the declared sizes of the tasks asked for, within
    the request's own limits.

    `is_sample`: dataset.max_rows_per_task is already in the sizes (a simulated bank's). `max_rows` takes the place of
    train.max_rows; 0 = no limit. Returns 0 where no declared task is asked for.
    """
    tasks = set(config.dataset.tasks) or declared.keys()
    limit = 0 if is_sample else config.dataset.max_rows_per_task
    sizes = [declared.get(task, 0) for task in tasks if task != CUSTOMERS]
    rows = sum(min(size, limit or size) for size in sizes)
    return min(rows, (config.train.max_rows if max_rows is None else max_rows) or rows)


def delta_of(config: Config, facts: BankFacts, declared: Mapping[str, int]) -> float:
    """The bank's delta: min(1e-5, N^-1.2) for its whole data set, or a smaller one from its settings or from the
    request.
    """
    whole = sum(rows for task, rows in declared.items() if task != CUSTOMERS)
    return min(default_delta(whole), facts.delta or 1.0, config.privacy.delta or 1.0)


def make_plan(
    request: TrainRequest, facts: BankFacts, rows: BankRows, stretch: Stretch, session: Session | None
) -> PrivacyPlan:
    """Find the noise, test the gradients, and write the round into the ledger. BankError: nothing may be trained.

    `stretch` is of a bank with the declared number of rows. Without a session nothing is tested (`client_app.trial`).
    """
    privacy = request.config.privacy
    delta = delta_of(request.config, facts, rows.declared)
    beyond = (
        rows.skipped if privacy.unit == "example" else 0
    )  # as in client_app.admission.admit_rows: the window is the server's
    if not rows.units or len(rows.units) + beyond < facts.min_units:
        raise BankError(
            "privacy",
            f"{len(rows.units)} units for round {request.round}, fewer than min_units={facts.min_units}",
            "min_units",
        )
    try:
        mechanism = PLANNERS[privacy.mode](request, facts, rows, stretch, session, delta)
        planned, steps = epsilon([mechanism.spends(stretch.total_steps)], delta), mechanism.spends(stretch.steps)
        booked = book_round(request, facts, rows, steps, delta)
    except BankError:
        raise
    except BudgetError as error:
        raise BankError("privacy", str(error), "budget_epsilon") from error
    except (UserError, ValueError) as error:
        raise BankError("privacy", str(error), "privacy") from error
    log.info(
        ("%s: round %d: %s, noise multiplier %.3g, epsilon planned %.3g, spent on these rows %.3g at delta %.1e, %d "
        "units excluded"),
        facts.name, request.round, NAMES[privacy.mode], mechanism.noise_multiplier, planned, booked.epsilon, delta,
        booked.left_out,
    )  # fmt: skip
    mechanism, examples = mechanism.among(rows.train, booked.taking_part)
    return PrivacyPlan(mechanism, examples, delta, math.inf if facts.reproducible_noise else planned, steps, booked)


def book_round(request: TrainRequest, facts: BankFacts, rows: BankRows, steps: Steps, delta: float) -> Booked:
    """Write a round into the bank's ledger, with noise or without. UserError where the ledger or the budget does not
    allow it.
    """
    privacy, unit = request.config.privacy, request.config.privacy.unit
    limits = [limit for limit in (privacy.budget_epsilon, facts.budget_epsilon) if limit]
    spending = Spending(
        request.run, request.round, facts.name, NAMES[privacy.mode], unit if privacy.in_the_bank else "example", steps,
        facts.reproducible_noise
    )  # fmt: skip
    return book(
        facts.ledger_folder,
        rows.in_ledger,
        spending,
        delta=delta,
        budget_epsilon=min(limits, default=0.0),
        run_epsilon=facts.policy.max_epsilon if facts.policy and privacy.in_the_bank else 0.0,
        witness=request.ledger_heads.get(facts.name),
        own_witness=newest_head(facts.history_file) if facts.policy else None,
        least_units=facts.min_units if privacy.in_the_bank else 0,
        one_bank=facts.deployed,
        version_1=rows.version_1,
    )


def _example_level(
    request: TrainRequest, facts: BankFacts, rows: BankRows, stretch: Stretch, session: Session | None, delta: float
) -> Mechanism:
    """DP-SGD with the noise that the wanted epsilon needs."""
    config, privacy = request.config, request.config.privacy
    size = declared_size(config, rows.declared, is_sample=not facts.deployed)
    sampling_rate = stretch.rows_per_step / size
    if sampling_rate > 1:
        wanted = f"train.batch_rows={config.train.batch_rows}" if config.train.batch_rows else "a step"
        raise BankError("privacy", f"{wanted} is more than the {size} declared rows of {facts.name}: lower it")
    declared_units = size if privacy.unit == "example" else rows.declared.get(CUSTOMERS, 0)
    if not declared_units:
        raise BankError(
            "privacy",
            f"privacy.unit=customer needs {CUSTOMERS}:NUMBER among the declared_rows of {facts.name}",
            "declared_rows",
        )
    noise = privacy.noise_multiplier
    noise = noise or noise_multiplier_for(privacy.epsilon, delta, sampling_rate, stretch.total_steps)
    expected_units = sampling_rate * declared_units
    alone = session is None or _units_go_alone(request, facts, rows, session, expected_units)
    return Mechanism(
        clip_norm=privacy.clip_norm,
        sampling_rate=sampling_rate,
        noise_multiplier=noise,
        units=rows.units,
        expected_units=expected_units,
        seed=config.seed,
        bank=facts.name,
        reproducible=facts.reproducible_noise,
        alone=alone,
        augmentations=privacy.augmentations,
    )


def _units_go_alone(
    request: TrainRequest, facts: BankFacts, rows: BankRows, session: Session, expected_units: float
) -> bool:
    """Whether a unit's gradient changes too much when it is computed among others: measured on the adapter and with the
    settings of the request.

    A deployed bank measures each adapter that it is sent, for a server could choose one that makes rounding large;
    simulated banks only the first of a run.
    """
    config, what = request.config, hashlib.sha256(to_json(request.config).encode())
    if facts.deployed:
        what.update(request.adapter.tobytes())
    tested, alone = _tested.get((request.run, facts.name), ("", True))
    if tested == what.hexdigest():
        return alone
    write_adapter(session.model, request.adapter)
    examples = [[rows.train[place] for place in unit] for unit in rows.units]
    change = self_test(session.model, units_to_test(examples, config.train.batch_tokens), config.privacy.clip_norm)
    alone = change * expected_units > NEIGHBOUR_SHARE
    how = "one unit to a pass" if alone else "units packed together"
    log.info(
        "%s: computed among others a unit's gradient changes by %.2g of the clip norm: %s", facts.name, change, how
    )
    _tested[request.run, facts.name] = what.hexdigest(), alone
    return alone


def _published(
    request: TrainRequest, facts: BankFacts, rows: BankRows, stretch: Stretch, session: Session | None, delta: float
) -> PublishedMechanism:
    """The same of the published algorithm, at the epsilon that really holds for it."""
    privacy = request.config.privacy
    noise = privacy.noise_multiplier
    noise = noise or SENSITIVITY * noise_multiplier_for(privacy.epsilon, delta, 1.0, stretch.total_steps)
    claimed = epsilon([Steps(1.0, noise, stretch.total_steps)], delta)
    log.info(
        "%s: DP-LoRA as published: what is planned holds if one row may be in every minibatch and turn both clipped "
        "gradients round; with the paper's "
        "own assumption, that a row moves them by C, epsilon would be %.3g at delta %.0e for %d steps",
        facts.name, claimed, delta, stretch.total_steps,
    )  # fmt: skip
    return PublishedMechanism(privacy.clip_norm, noise, request.config.seed, facts.name, facts.reproducible_noise)


Planner = Callable[["TrainRequest", "BankFacts", "BankRows", "Stretch", "Session | None", float], BankMechanism]
PLANNERS: dict[str, Planner] = {"example": _example_level, "dp_lora": _published}
"""privacy.mode -> the mechanism of a bank for a request, given its delta. BankError or UserError where there is none.
"""
