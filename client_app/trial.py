"""What a bank would do with a coordinator's plan: its policy, rule by rule, and what the run would spend. No model is
loaded.

The real functions decide, in the order in which a request meets them: `admit`, `check_source`, `admit_rows` and
`make_plan` of a bank (`client_app.admission`, `client_app.privacy_plan`), on the bank's own rows. They book in a copy
of the ledger, which is thrown away. So a plan is judged like a request, but for what only training shows: whether the
adapter fits the model and the steps stay finite.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from client_app.admission import AdmittedRows, admit, admit_rows, check_source, work_of
from client_app.bank import book_open, one_code
from client_app.facts import BankFacts
from client_app.privacy_plan import book_round, delta_of, make_plan
from fedfinlora.config.schema import Config
from fedfinlora.deployment.policy import RULES, broken_rules
from fedfinlora.errors import UserError
from fedfinlora.model.tokenizers import load_tokenizer
from fedfinlora.privacy.accounting import Steps
from fedfinlora.privacy.ledger_files import locked
from fedfinlora.wire.messages import BankError, TrainRequest

RUN = "bank try"
AFTER_ROWS = ("max_steps_per_round", "max_rows_per_round")
"""Rules of the policy that can be judged when the rows are known."""
OF_ROWS = ("declared_rows", "min_rows", "min_units", "budget_epsilon")
"""Settings of bank.yaml next to the policy that refuse."""
WAYS_OUT: Mapping[str, str] = {
    "model": "plan another model=, or list this one in policy.models",
    "peft_methods": "plan another peft=, or list it in policy.peft_methods",
    "max_rank": "plan a smaller peft.rank",
    "rank": "plan strategy=hetlora, flexlora, flora or residual with the bank's rank in strategy.ranks",
    "target_modules": "plan other peft.target_modules",
    "optimizer": "plan train.optimizer=adamw and no fedadamw_local, or privacy=example, or list it in policy.optimizer",
    "datasets": "plan dataset.tasks=[…] of policy.datasets",
    "generation": "plan train.holdout_max_rows=0, or where policy.generation is loss at least the bank's min_rows",
    "max_steps_per_round": "plan fewer train.steps_per_round, or more rounds",
    "max_rows_per_round": "plan a smaller train.batch_rows or fewer train.steps_per_round",
    "max_processes": "plan a smaller train.processes",
    "max_rounds_per_day": "wait for tomorrow, or raise policy.max_rounds_per_day",
    "privacy": "plan privacy=example, or list the mode in policy.privacy",
    "privacy_units": "plan another privacy.unit",
    "max_epsilon": "plan a smaller privacy.epsilon",
    "max_delta": "plan a smaller privacy.delta, or 0",
    "reveal": "plan strategy.weighting=equal or declared",
    "hours": "start the run within policy.hours",
    "declared_rows": "add what is missing to declared_rows in bank.yaml",
    "min_rows": "plan more tasks, a larger train.batch_rows or more train.steps_per_round",
    "min_units": "plan more tasks, or another privacy.unit",
    "budget_epsilon": "plan privacy=example, with a smaller privacy.epsilon or fewer rounds",
    "trainer": "plan privacy=none or privacy=bank and train.proximal_mu=0, or take trainer out of bank.yaml",
    "source": "the coordinator and the bank need the same version of the code",
}
"""Rule -> what to change, mostly in the plan."""


@dataclass(frozen=True)
class Verdict:
    """What one rule says of the plan."""

    rule: str
    is_allowed: bool
    reason: str = ""
    """Where it is refused: what is wrong, with the bank's own figures. It stays at the bank."""

    @property
    def way_out(self) -> str:
        return "" if self.is_allowed else WAYS_OUT.get(self.rule, "change what the reason names")


@dataclass(frozen=True)
class Forecast:
    """What the run would do and spend here."""

    rows: int
    """Rows that the run would train on."""
    steps: int
    """Optimiser steps of the whole run."""
    epsilon_planned: float
    """Of this run alone; infinite without noise of the bank's own."""
    epsilon_after: float
    """The largest of any row after the run, over all runs."""
    budget_epsilon: float
    """0 = none."""
    delta: float
    left_out: int
    """Units whose budget is spent before the run: they take no part."""


@dataclass(frozen=True)
class Trial:
    """All that is known of a plan."""

    code: str
    """What a request of the first round would be refused with, of SAFE_REASONS; "" if it would be trained on."""
    verdicts: tuple[Verdict, ...]
    forecast: Forecast | None
    """None where the plan does not come so far."""

    @property
    def is_allowed(self) -> bool:
        return all(verdict.is_allowed for verdict in self.verdicts)


def try_plan(config: Config, source_sha256: str, facts: BankFacts) -> Trial:
    """Run a plan through everything that its requests would meet before they are trained on."""
    request = TrainRequest(config, RUN, 1, "", source_sha256, np.zeros(1, np.float32))
    verdicts = _of_policy(request, facts)
    code, forecast = "", None
    try:
        admit(request, facts)
        check_source(request)
        tokenizer = _tokenizer(config)
        with one_code(config), _ledger_aside(facts) as aside:
            admitted = admit_rows(request, aside, tokenizer)
            forecast, late = _booked(request, aside, admitted)
        verdicts |= _of_rows(request, facts, admitted)
        if late:
            verdicts[late.rule] = late
    except BankError as error:
        code = error.code
        verdicts[error.rule] = Verdict(error.rule, False, str(error))
    return Trial(code, tuple(verdicts.values()), forecast)


def _of_policy(request: TrainRequest, facts: BankFacts) -> dict[str, Verdict]:
    """What each rule of the policy says before a row is read."""
    if facts.policy is None:
        return {}
    try:
        broken = set(broken_rules(facts.policy, work_of(request, facts)))
    except UserError as error:  # the base model's files cannot be read
        return {"model": Verdict("model", False, str(error))}
    return {
        rule: Verdict(rule, rule not in broken, f"asked for {_asked(rule, request.config)}" if rule in broken else "")
        for rule in RULES
        if rule not in AFTER_ROWS
    }


def _of_rows(request: TrainRequest, facts: BankFacts, admitted: AdmittedRows) -> dict[str, Verdict]:
    """What the rules that need the rows say: all of them let the first round through, so the largest and the smallest
    of the others are looked at.
    """
    config, stretch = request.config, admitted.stretch
    found = {rule: Verdict(rule, True) for rule in (*AFTER_ROWS, *OF_ROWS)}
    least, most = stretch.total_steps // config.num_server_rounds, -(-stretch.total_steps // config.num_server_rounds)
    if facts.policy is not None:
        work = work_of(request, facts, most, math.ceil(most * stretch.rows_per_step))
        for rule in set(broken_rules(facts.policy, work)) & set(AFTER_ROWS):
            found[rule] = Verdict(rule, False, f"a later round has {most} steps of {stretch.rows_per_step:g} rows")
    fewest = min(math.ceil(least * stretch.rows_per_step), len(admitted.rows.train))
    if not config.privacy.in_the_bank and fewest < facts.min_rows:
        found["min_rows"] = Verdict(
            "min_rows", False, f"a later round's steps take {fewest} rows, fewer than {facts.min_rows}"
        )
    return found


def _booked(request: TrainRequest, facts: BankFacts, admitted: AdmittedRows) -> tuple[Forecast, Verdict | None]:
    """(what the run would spend, the budget's verdict where a later round would be refused). The first round is booked
    as it really would be, then all others in one line.
    """
    config, (rows, stretch) = request.config, admitted
    planned = math.inf
    if config.privacy.in_the_bank:
        plan = make_plan(request, facts, rows, stretch, None)
        steps, booked, planned = plan.steps, plan.booked, plan.epsilon_planned
    else:
        steps, booked = book_open(request, facts, admitted)
    first, late = booked, None
    further = steps.count * (stretch.total_steps - stretch.steps) // stretch.steps
    delta = delta_of(config, facts, rows.declared)
    if further:
        rest = Steps(steps.sampling_rate, steps.noise_multiplier, further)
        try:
            booked = book_round(replace(request, round=2), facts, rows, rest, delta)
        except UserError as error:
            late = Verdict("budget_epsilon", False, f"not all rounds: {error}")
    limits = [limit for limit in (facts.budget_epsilon, config.privacy.budget_epsilon) if limit]
    return Forecast(
        len(rows.train), stretch.total_steps, planned, booked.epsilon, min(limits, default=0.0), delta, first.left_out
    ), late


@contextlib.contextmanager
def _ledger_aside(facts: BankFacts) -> Iterator[BankFacts]:
    """The bank with a copy of its ledger, next to it and gone afterwards."""
    facts.ledger_folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix="try-", dir=facts.ledger_folder.parent) as place:
        aside = Path(place) / "ledger"
        if facts.ledger_folder.is_dir():
            with locked(facts.ledger_folder, writing=False):
                shutil.copytree(facts.ledger_folder, aside)
        yield replace(facts, ledger_folder=aside)


def _tokenizer(config: Config) -> Any:
    try:
        return load_tokenizer(config.model)
    except UserError as error:
        raise BankError("model", str(error)) from error


def _asked(rule: str, config: Config) -> str:
    """What the plan has where a rule refuses, in its own words."""
    keys = {
        "model": "model.path", "peft_methods": "peft.method", "max_rank": "peft.rank",
        "rank": "strategy.ranks",
        "target_modules": "peft.target_modules",
        "optimizer": "train.optimizer", "datasets": "dataset.tasks", "generation": "train.holdout_max_rows",
        "privacy": "privacy.mode",
        "privacy_units": "privacy.unit", "max_epsilon": "privacy.epsilon", "max_delta": "privacy.delta",
        "reveal": "strategy.weighting",
    }  # fmt: skip
    if rule not in keys:
        return "a round now"
    group, _, name = keys[rule].partition(".")
    value = getattr(getattr(config, group), name)
    shown = f"[{','.join(value)}]" if isinstance(value, tuple) else value
    return f"{keys[rule]}={shown}"
