"""What a bank lets through: the rules that a request meets before a row is read, and those that depend on the rows."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any, NamedTuple

from client_app.facts import BankFacts
from client_app.prepared_rows import BankRows, bank_rows, check_least_rows
from client_app.privacy_plan import declared_size
from fedfinlora.deployment.policy import Work, broken_rule
from fedfinlora.errors import UserError
from fedfinlora.model.files import model_sha256
from fedfinlora.privacy.history import refuses_unread, rounds_today
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.train.loop import Stretch, stretch_of_round, total_steps
from fedfinlora.train.own_trainer import reason_against
from fedfinlora.wire.messages import BankError, TrainRequest
from fedfinlora.wire.reasons import UNREAD


def check_refusals(facts: BankFacts) -> None:
    """BankError where so many requests were refused today that this one is not looked at
    (`fedfinlora.privacy.history`).
    """
    try:
        if facts.policy is not None and refuses_unread(facts.history_file):
            raise BankError(UNREAD, f"{facts.name}: too many requests were refused today")
    except UserError as error:
        if isinstance(error, BankError):
            raise
        raise BankError("disk", str(error)) from error


def admit(request: TrainRequest, facts: BankFacts) -> None:
    """What can be said of a request before a row is read. BankError where the bank does not do it.

    A deployed bank that has a budget sends nothing that is not accounted for; and it does not make up the sizes that it
    declares, which would reveal its own row counts.
    """
    check_policy(request, facts)
    if facts.trainer.name and (reason := reason_against(request.config)):
        raise BankError("trainer", f"{facts.name} has its own trainer. {reason}", "trainer")
    if facts.deployed and request.config.privacy.in_the_bank and not facts.declared_rows:
        raise BankError(
            "privacy",
            f"{facts.name} has no declared_rows, and a private round would round its secret row counts instead. Add "
            "declared_rows: [TASK:ROWS, …] to "
            "bank.yaml, as `bank init` writes it",
            "declared_rows",
        )
    if facts.deployed and facts.budget_epsilon and not request.config.privacy.in_the_bank:
        raise BankError(
            "policy-privacy",
            (
                f"{facts.name} has budget_epsilon={facts.budget_epsilon:g}, and privacy={request.config.privacy.mode} "
                "would spend without limit"
            ),
            "budget_epsilon",
        )


def work_of(request: TrainRequest, facts: BankFacts, steps: int = 0, rows: int = 0) -> Work:
    """What the request asks for, as the rules of a policy see it now."""
    now, today = datetime.now(), rounds_today(facts.history_file)
    # Once begun, this round is among those of today.
    begun_before = max(0, today - 1) if steps else today
    config = request.config
    return Work(
        config,
        steps,
        rows,
        begun_before,
        now,
        lambda: model_sha256(config.model),
        facts.min_rows,
        facts.name,
        facts.rank,
    )


def check_policy(request: TrainRequest, facts: BankFacts, steps: int = 0, rows: int = 0) -> None:
    """BankError with the rule's name where the bank's policy does not allow the request. Steps and rows are 0 as long
    as they are not known.
    """
    if facts.policy is None:
        return
    try:
        rule = broken_rule(facts.policy, work_of(request, facts, steps, rows))
    except UserError as error:
        raise BankError("model", str(error)) from error
    if rule:
        raise BankError(
            f"policy-{rule}",
            f"{facts.name}: round {request.round} of {request.run} is against the policy's rule {rule}",
        )


def check_source(request: TrainRequest) -> None:
    """BankError where the server runs other code than the bank."""
    if request.source_sha256 != source_fingerprint():
        raise BankError("source", "the server's source hash differs from this bank's")


class AdmittedRows(NamedTuple):
    """What a round is trained on and for how long, allowed by all rules that depend on rows."""

    rows: BankRows
    stretch: Stretch


def admit_rows(request: TrainRequest, facts: BankFacts, tokenizer: Any) -> AdmittedRows:
    """Read the bank's rows and see what a round would do with them. BankError where there are too few, or a rule
    forbids it.

    The steps of a private round follow from the declared sizes alone.
    """
    config = request.config
    rows = bank_rows(config, facts, tokenizer)
    # Under privacy the rows that do not fit the window count too: the server sets it, and could find a row's length by
    # the refusals.
    beyond = rows.skipped if config.privacy.in_the_bank else 0
    check_least_rows(len(rows.train) + len(rows.holdout) + beyond, facts, "there are")
    size = (
        declared_size(config, rows.declared, is_sample=not facts.deployed)
        if config.privacy.in_the_bank
        else len(rows.train)
    )
    if not size:
        raise BankError(
            "privacy", f"the declared_rows of {facts.name} name none of the tasks asked for", "declared_rows"
        )
    steps = total_steps(size, config.num_server_rounds, config.train)
    stretch = stretch_of_round(request.round, config.num_server_rounds, steps, size, config.train)
    wanted = math.ceil(stretch.steps * stretch.rows_per_step)
    check_policy(request, facts, stretch.steps, wanted)
    if not config.privacy.in_the_bank:
        check_least_rows(min(wanted, len(rows.train)), facts, "the round's steps take")
    return AdmittedRows(rows, stretch)
