"""`bank init|accept|try`: a bank's key, settings and certificate, and whether it could do what a round asks."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from client_app.facts import BankFacts
from client_app.own_rows import bank_dataset
from client_app.prepared_rows import bank_rows
from client_app.privacy_plan import CUSTOMERS
from client_app.trial import Forecast
from client_app.trial import try_plan as trial_of
from data.rows import Row
from data.sources import load_rows
from fedfinlora.commands.bank import KEY, budget_words, facts_of, settings_of
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.deployment.bank_keys import check_bank_certificate, make_node_key, tls_key
from fedfinlora.deployment.bank_settings import (
    SETTINGS,
    BankSettings,
    rounded_rows,
    settings_text,
)
from fedfinlora.deployment.certificates import days_left, expiry_words, write_private
from fedfinlora.deployment.plan import read_plan
from fedfinlora.deployment.policy import NEVER_WITH_A_BUDGET, Policy
from fedfinlora.deployment.reach import AUTHORITY, CERTIFICATE, TLS_KEY, check_address
from fedfinlora.errors import ConfigError, UserError, plural, printable
from fedfinlora.files import made_as, make_private, write_bytes
from fedfinlora.model.files import model_sha256
from fedfinlora.privacy.cohorts import customer_of
from fedfinlora.wire.reasons import SAFE_REASONS


def init(
    home: Path,
    name: str,
    data: Path,
    coordinator: str,
    authority: Path,
    overrides: Sequence[str],
    budget_epsilon: float | None = None,
) -> int:
    """Make key and settings, and try rows, model and one local step. Nothing is written if a try fails.

    `budget_epsilon` None is asked for on a terminal, and is else the default of `BankSettings`; only 0 means no limit.
    """
    if (home / SETTINGS).exists():
        raise UserError(f"{home} is already a bank's folder. Nothing was changed; `bank status` shows it.")
    check_address(coordinator)
    days_left(authority)
    if not data.is_dir():
        raise UserError(f"--data {data} is not a folder.")
    settings = BankSettings(name=name, data=str(data.absolute()), coordinator=coordinator)
    budget = _asked_budget(settings.budget_epsilon) if budget_epsilon is None else budget_epsilon
    settings = replace(settings, budget_epsilon=budget)
    config = compose(overrides)
    settings = replace(settings, columns=config.dataset.columns)
    policy = Policy(models=(f"{config.model.path} sha256:{model_sha256(config.model)}",))
    if budget:
        policy = replace(policy, privacy=tuple(mode for mode in policy.privacy if mode not in NEVER_WITH_A_BUDGET))
    facts = BankFacts(name, 0, 0, settings.data, home / "state", home / "ledger", columns=settings.columns)
    declared = _declared(config, facts)
    settings = replace(settings, policy=policy, declared_rows=declared)
    _try(config, facts)
    make_private(home)
    with made_as(home):
        make_node_key(home / KEY, name)
        write_bytes(home / AUTHORITY, authority.read_bytes())
        write_bytes(home / SETTINGS, settings_text(settings).encode())
    print(f"bank {name} in {home}")
    print(f"declared rows (rounded; the aggregator may come to know them): {', '.join(declared)}")
    print(budget_words(budget))
    print(f"1. read {home / SETTINGS}: it says what may run on your rows")
    print(f"2. send {home / KEY}.pub to the coordinator (node.key stays here)")
    print(f"3. take the certificate that it sends back: python -m fedfinlora bank accept {name}.crt --home {home}")
    print(f"4. python -m fedfinlora bank start --home {home}")
    return 0


def accept(home: Path, certificate: Path) -> int:
    """Take the certificate that the coordinator has issued. UserError unless it is by the authority that the bank
    trusts.
    """
    settings, _ = settings_of(home)
    content = check_bank_certificate(certificate, home / KEY, home / AUTHORITY, settings.name)
    (home / TLS_KEY).unlink(missing_ok=True)
    write_private(home / TLS_KEY, tls_key(home / KEY))
    write_bytes(home / CERTIFICATE, content)
    print(f"{expiry_words(home / CERTIFICATE)}. It is used when the bank starts.")
    return 0


def _asked_budget(default: float) -> float:
    """What is typed on a terminal; the default where there is none."""
    if not sys.stdin.isatty():
        return default
    print(
        "How much epsilon may be spent on any of your rows, over all runs and for ever? 0 = no limit, and rounds "
        "without noise may run."
    )
    typed = input(f"budget_epsilon [{default:g}]: ").strip()
    try:
        return float(typed) if typed else default
    except ValueError as error:
        raise ConfigError(f"budget_epsilon must be a number, not {typed!r}.") from error


def _declared(config: Config, facts: BankFacts) -> tuple[str, ...]:
    """`rounded_sizes` of all rows in the bank's folder, for all tasks."""
    whole = replace(
        bank_dataset(config.dataset, facts), tasks=(), max_rows_per_task=0, equalize_tasks=False, on_bad_row="skip"
    )
    return rounded_sizes(load_rows(whole, "train").rows)


def rounded_sizes(rows: Sequence[Row]) -> tuple[str, ...]:
    """What a bank with these rows declares."""
    customers = {customer_of(row.issuer) for row in rows} - {""}
    counts = sorted(Counter(row.task for row in rows).items())
    return tuple(f"{name}:{rounded_rows(count)}" for name, count in [*counts, (CUSTOMERS, len(customers))] if count)


def _try(config: Config, facts: BankFacts) -> None:
    from fedfinlora.model.adapter import write_adapter
    from fedfinlora.model.loading import get_session, initial_adapter
    from fedfinlora.train.loop import Stretch, train

    config = replace(config, dataset=bank_dataset(config.dataset, facts))
    session = get_session(config)
    print(
        f"model {config.model.path}, {config.model.quantization}, on {session.device}: loaded in {session.load_s:.1f} s"
    )
    rows = bank_rows(config, facts, session.tokenizer)
    print(f"rows: {len(rows.train)} to train on, {len(rows.holdout)} held out, {rows.skipped} skipped")
    write_adapter(session.model, initial_adapter(session, config))
    few = min(4, len(rows.train))
    result = train(
        session.model, rows.train[:few], Stretch(0, 1, 1, float(few)), config.train, seed=config.seed, bank=facts.name
    )
    print(f"one step on {plural(few, 'row')}: loss {result.loss:.3f}, {result.wall_s:.1f} s")


def try_plan(home: Path, file: Path, step: bool = False) -> int:
    """What the bank would do with a plan, rule by rule; 0 if every round would be let through, else 1. Nothing is
    trained or booked; `step` also loads the model and takes one local step.
    """
    settings, digest = settings_of(home)
    plan, facts = read_plan(file), facts_of(home)
    trial = trial_of(plan.config, plan.source_sha256, facts)
    print(f"bank {settings.name}, policy {digest[:16]}, plan {file}")
    width = max(len(verdict.rule) for verdict in trial.verdicts)
    for verdict in trial.verdicts:
        words = f"refused  {verdict.reason}. What to change: {verdict.way_out}" if not verdict.is_allowed else "allowed"
        print(printable(f"{verdict.rule.ljust(width)}  {words}"))
    if trial.forecast is None:
        print("Rules that need the rows were not looked at: the request is refused before.")
    else:
        print("\n".join(_forecast_words(trial.forecast)))
    if trial.code:
        print(f"The coordinator would get {trial.code}: {SAFE_REASONS[trial.code]}")
    if trial.is_allowed and step:
        _try(plan.config, facts)
    print("allowed: every round of this plan would be let through" if trial.is_allowed else "refused: see above")
    return 0 if trial.is_allowed else 1


def _forecast_words(forecast: Forecast) -> list[str]:
    lines = [f"{plural(forecast.rows, 'row')}, {plural(forecast.steps, 'step')} in all"]
    if math.isinf(forecast.epsilon_planned):
        return [*lines, "epsilon: infinite, for what leaves has no noise of the bank's own"]
    lines.append(
        f"epsilon: {forecast.epsilon_planned:.3g} for this run, {forecast.epsilon_after:.3g} on the row that has spent "
        f"most after it, over all runs, at delta {forecast.delta:.1e}"
    )
    if forecast.budget_epsilon:
        left = max(0.0, forecast.budget_epsilon - forecast.epsilon_after)
        lines.append(f"budget: {forecast.budget_epsilon:g}; about {left:.3g} of it is left after the run")
    if forecast.left_out:
        lines.append(f"rows or customers that have spent their budget and take no part: {forecast.left_out}")
    return lines
