"""`bank`: one bank's side of a deployment. Its rows, key, policy, ledger and history stay in one folder on its own
machine.

`init` makes the key and the settings and tries everything that a round needs: the rows are read, the model is loaded,
one local step is taken. `start` runs Flower's SuperNode, which connects to the coordinator and hands each request to
`client_app`, where the policy is checked first.
"""

from __future__ import annotations

import math
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from client_app.facts import BankFacts, bank_facts
from client_app.own_rows import bank_dataset
from client_app.prepared_rows import bank_rows
from client_app.privacy_plan import CUSTOMERS
from client_app.trial import Forecast
from client_app.trial import try_plan as trial_of
from client_app.worker import end_worker
from data.sources import load_rows
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.config.words import toml_text
from fedfinlora.deployment.app_bundle import code_sha256, installed_files
from fedfinlora.deployment.bounded_logs import bounded
from fedfinlora.deployment.certificates import (
    check_bank_certificate,
    days_left,
    expiry_words,
    make_node_key,
    tls_key,
    write_private,
)
from fedfinlora.deployment.flower_link import flower, free_port
from fedfinlora.deployment.local_server import close
from fedfinlora.deployment.own_user import check_user
from fedfinlora.deployment.plan import read_plan
from fedfinlora.deployment.policy import (
    NEVER_WITH_A_BUDGET,
    SETTINGS,
    BankSettings,
    Policy,
    declared_sizes,
    read_settings,
    rounded_rows,
    settings_text,
)
from fedfinlora.deployment.reach import AUTHORITY, CERTIFICATE, TLS_KEY, check_address, trouble
from fedfinlora.deployment.watching import Listen, watch_bank
from fedfinlora.errors import ConfigError, UserError, printable
from fedfinlora.files import made_as, make_private, write_bytes
from fedfinlora.model.files import model_sha256
from fedfinlora.privacy.accounting import default_delta
from fedfinlora.privacy.history import read_history, unread
from fedfinlora.privacy.ledger import read_lines
from fedfinlora.privacy.ledger_chain import opened
from fedfinlora.privacy.ledger_spent import histories, members
from fedfinlora.run.folder import alone_in
from fedfinlora.system.family import end_family
from fedfinlora.system.process_identity import this_process
from fedfinlora.system.surroundings import corrected
from fedfinlora.wire.reasons import SAFE_REASONS

KEY = "node.key"


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

    `budget_epsilon` None is asked for on a terminal, and is else the default of `BankSettings`; only 0 means no limit,
    and only then may rounds run that leave without the bank's own noise.
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
    print(_budget_words(budget))
    print(f"1. read {home / SETTINGS}: it says what may run on your rows")
    print(f"2. send {home / KEY}.pub to the coordinator (node.key stays here)")
    print(f"3. take the certificate that it sends back: python -m fedfinlora bank accept {name}.crt --home {home}")
    print(f"4. python -m fedfinlora bank start --home {home}")
    return 0


def accept(home: Path, certificate: Path) -> int:
    """Take the certificate that the coordinator has issued for the bank's key. UserError unless it is by the authority
    that the bank trusts.
    """
    settings, _ = _settings(home)
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


def _budget_words(budget: float) -> str:
    if not budget:
        return "budget: NONE. Rounds without noise may run, and are booked as infinite"
    return f"budget: epsilon {budget:g} for any row, over all runs; only private rounds may run"


def _declared(config: Config, facts: BankFacts) -> tuple[str, ...]:
    """TASK:ROWS of all rows in the bank's folder, for all tasks, and how many customers they name,
    all rounded."""
    whole = replace(
        bank_dataset(config.dataset, facts), tasks=(), max_rows_per_task=0, equalize_tasks=False, on_bad_row="skip"
    )
    rows = load_rows(whole, "train").rows
    counts = sorted(Counter(row.task for row in rows).items())
    customers = len({row.issuer.casefold() for row in rows if row.issuer})
    return tuple(f"{name}:{rounded_rows(count)}" for name, count in [*counts, (CUSTOMERS, customers)] if count)


def _try(config: Config, facts: BankFacts) -> None:
    """Read the rows, load the model, take one step. UserError says what is wrong."""
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
    print(f"one step on {few} rows: loss {result.loss:.3f}, {result.wall_s:.1f} s")


def start(home: Path, listen: Listen, worker: bool = True) -> int:
    """Run the SuperNode in the foreground until it is ended by SIGTERM or Ctrl-C. `worker` keeps the base model loaded
    between messages.

    Metrics are served as `listen` says. UserError that says who runs it where the bank runs already.
    """
    _settings(home)
    check_user()
    with alone_in(home, f"The bank {home}"), bounded(home / "supernode.log", home / "state" / "worker.log"):
        return _serve(home, listen, worker)


def _serve(home: Path, listen: Listen, worker: bool) -> int:
    settings, digest = _settings(home)
    print(f"policy {digest[:16]}: {home / SETTINGS}")
    print(expiry_words(home / AUTHORITY))
    if not (home / CERTIFICATE).is_file():
        raise UserError(
            f"The coordinator has not enrolled {home / KEY}.pub yet, or its certificate was not taken. Send that file "
            "to it, and take what "
            f"comes back: python -m fedfinlora bank accept {settings.name}.crt"
        )
    check_bank_certificate(home / CERTIFICATE, home / KEY, home / AUTHORITY, settings.name)
    print(expiry_words(home / CERTIFICATE))
    paths = {"settings": home / SETTINGS, "state-dir": home / "state", "ledger-dir": home / "ledger"}
    paths |= {"node-key": home / KEY, "authority": home / AUTHORITY}
    node_config = " ".join(
        [
            *(f"{key}={toml_text(str(path))}" for key, path in paths.items()),
            f"worker={str(worker).lower()}",
            f'bank-process="{this_process()}"',
        ]
    )
    command = [
        *flower("supernode"), "--root-certificates", str(home / AUTHORITY), "--superlink", settings.coordinator,
        "--auth-supernode-private-key", str(home / KEY), "--host", "127.0.0.1", "--port", str(free_port()),
        "--node-config", node_config,
    ]  # fmt: skip
    print(shlex.join([Path(command[0]).name, *command[1:]]), flush=True)
    environment = corrected(os.environ) | {
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    with open(home / "supernode.log", "ab") as log:
        process = subprocess.Popen(command, env=environment, cwd=home, stdout=log, stderr=log)
    watching = None
    try:
        watching = watch_bank(home, settings.name, lambda: process.poll() is None, listen)
        status = process.wait()
        why = trouble(settings.coordinator, home)
        why = why or "If the coordinator has not enrolled node.key.pub, or has revoked it, that is why."
        raise UserError(f"The SuperNode ended with status {status}. {why} Its log: {home / 'supernode.log'}")
    except KeyboardInterrupt:
        print("bank ended", flush=True)
        return 0
    finally:
        close(watching)
        end_family(process)
        end_worker(home / "state")


def try_plan(home: Path, file: Path, step: bool = False) -> int:
    """What the bank would do with a coordinator's plan, rule by rule; 0 if every round would be let through, else 1.
    Nothing is trained or booked.

    `step` also loads the model and takes one local step.
    """
    settings, digest = _settings(home)
    plan, facts = read_plan(file), _facts(home)
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
    """What a run would do and spend, in lines."""
    lines = [f"{forecast.rows} rows, {forecast.steps} steps in all"]
    if math.isinf(forecast.epsilon_planned):
        return [*lines, "epsilon: infinite, for what leaves has no noise of the bank's own"]
    lines.append(
        f"epsilon: {forecast.epsilon_planned:.3g} for this run, {forecast.epsilon_after:.3g} on the row that has spent "
        "most after it, over all "
        f"runs, at delta {forecast.delta:.1e}"
    )
    if forecast.budget_epsilon:
        left = max(0.0, forecast.budget_epsilon - forecast.epsilon_after)
        lines.append(f"budget: {forecast.budget_epsilon:g}; about {left:.3g} of it is left after the run")
    if forecast.left_out:
        lines.append(f"{forecast.left_out} rows or customers have spent their budget and take no part")
    return lines


def status(home: Path) -> int:
    """Settings, certificate, the code's hash, what ran last and what has been spent of the budget."""
    settings, digest = _settings(home)
    print(f"bank {settings.name}, rows in {settings.data}, coordinator {settings.coordinator}")
    print(f"policy {digest}")
    print(f"code   {code_sha256(installed_files())}")
    print(expiry_words(home / AUTHORITY))
    known = (home / CERTIFICATE).is_file()
    print(
        expiry_words(home / CERTIFICATE)
        if known
        else f"{CERTIFICATE}: NOT HERE - python -m fedfinlora bank accept FILE"
    )
    mode = (home / KEY).stat().st_mode & 0o777
    print(f"node.key: mode {mode:04o}" + ("" if mode == 0o600 else " - OTHERS CAN READ IT: chmod 600"))
    history = read_history(_facts(home).history_file)
    if history:
        print(printable(f"last request: {_line_of(history[-1])}"))
    print(_budget_words(settings.budget_epsilon))
    declared = sum(rows for task, rows in declared_sizes(settings.declared_rows).items() if task != CUSTOMERS)
    delta = min(settings.delta or 1.0, default_delta(max(1, declared)))
    for unit, spent in spent_by_unit(home / "ledger", delta).items():
        print(f"largest epsilon spent on any {unit}: {spent:.3g} at delta {delta:.1e}")
    return 0


def history(home: Path) -> int:
    """Every request that reached the bank, and what became of it."""
    _settings(home)
    lines = read_history(_facts(home).history_file)
    print("time                      run                  round  outcome  rows  steps  bytes sent  epsilon spent")
    for line in lines:
        print(printable(_line_of(line)))
    if not lines:
        print("nothing has run here yet")
    if more := unread(_facts(home).history_file):
        print(f"{more} more requests were refused unread")
    return 0


def spent_by_unit(folder: Path, delta: float) -> dict[str, float]:
    """Row, and customer where rounds by customer were booked -> the largest epsilon of any that the ledger knows, rows
    that are gone too; {} without a ledger.
    """
    if not read_lines(folder):
        return {}
    found = {}
    with opened(folder, writing=False) as ledger:
        for unit, by_customer in (("row", False), ("customer", True)):
            units = members(ledger.index, by_customer)
            if units.count:
                found[unit] = histories(ledger.lines, ledger.index, units).largest(delta)
    return found


def _line_of(line: dict[str, Any]) -> str:
    known = line["epsilon_spent"] is not None
    spent = f"{line['epsilon_spent']:.3g}" if known else "infinite" if line.get("noise_multiplier") == 0 else ""
    outcome = f"{line['outcome']} {line['code']}".strip()
    more = f"  ({line['unread']} before it were refused unread)" if line.get("unread") else ""
    return (
        f"{line['time']}  {line['run'][:40]}  round {line['round']}  {outcome}  {line['rows']} rows  {line['steps']} "
        "steps  "
        f"{line['bytes_sent']:,} bytes sent  {spent}  {line.get('detail', '')}{more}"
    ).rstrip()


def _settings(home: Path) -> tuple[BankSettings, str]:
    if not (home / SETTINGS).is_file():
        raise UserError(f"There is no bank in {home}. Run `python -m fedfinlora bank init` first.")
    return read_settings(home / SETTINGS)


def _facts(home: Path) -> BankFacts:
    return bank_facts(
        {"settings": str(home / SETTINGS), "state-dir": str(home / "state"), "ledger-dir": str(home / "ledger")}
    )
