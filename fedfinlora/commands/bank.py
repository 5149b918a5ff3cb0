"""`bank`: one bank's side of a deployment. Its rows, key, policy, ledger and history stay in one folder on its own machine.

`init` makes the key and the settings and tries everything that a round needs: the rows are read, the model is loaded, one local step is taken. `start` runs
Flower's SuperNode, which connects to the coordinator and hands each request to `client_app`, where the policy is checked first.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from client_app.bank import BankFacts, bank_dataset, bank_facts, bank_rows
from client_app.privacy_plan import CUSTOMERS
from client_app.worker import end_worker
from data.sources import load_rows
from fedfinlora.commands.simulate import end_family, flower, free_port
from fedfinlora.compose import compose
from fedfinlora.config import Config
from fedfinlora.deployment.app_bundle import code_sha256, installed_files
from fedfinlora.deployment.certificates import days_left, expiry_words, make_node_key
from fedfinlora.deployment.history import read_history
from fedfinlora.deployment.local_server import close
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
from fedfinlora.deployment.reach import trouble
from fedfinlora.deployment.watching import Listen, watch_bank
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model_files import model_sha256
from fedfinlora.privacy.accounting import default_delta
from fedfinlora.privacy.ledger import read_lines
from fedfinlora.privacy.ledger_chain import opened
from fedfinlora.privacy.ledger_spent import histories, members
from fedfinlora.runfolder import write_bytes

KEY, AUTHORITY = "node.key", "ca.crt"


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
    if ":" not in coordinator:
        raise ConfigError(f"--coordinator {coordinator!r} must be HOST:PORT.")
    days_left(authority)
    if not data.is_dir():
        raise UserError(f"--data {data} is not a folder.")
    settings = BankSettings(name=name, data=str(data.absolute()), coordinator=coordinator)
    budget = _asked_budget(settings.budget_epsilon) if budget_epsilon is None else budget_epsilon
    settings = replace(settings, budget_epsilon=budget)
    config = compose(overrides)
    policy = Policy(models=(f"{config.model.path} sha256:{model_sha256(config.model)}",))
    if budget:
        policy = replace(policy, privacy=tuple(mode for mode in policy.privacy if mode not in NEVER_WITH_A_BUDGET))
    facts = BankFacts(name, 0, 0, settings.data, home / "state", home / "ledger")
    declared = _declared(config, facts)
    settings = replace(settings, policy=policy, declared_rows=declared)
    _try(config, facts)
    make_node_key(home / KEY, name)
    write_bytes(home / AUTHORITY, authority.read_bytes())
    write_bytes(home / SETTINGS, settings_text(settings).encode())
    print(f"bank {name} in {home}")
    print(f"declared rows (rounded; the aggregator may come to know them): {', '.join(declared)}")
    print(_budget_words(budget))
    print(f"1. read {home / SETTINGS}: it says what may run on your rows")
    print(f"2. send {home / KEY}.pub to the coordinator (node.key stays here)")
    print(f"3. python -m fedfinlora bank start --home {home}")
    return 0


def _asked_budget(default: float) -> float:
    """What is typed on a terminal; the default where there is none."""
    if not sys.stdin.isatty():
        return default
    print(
        "How much epsilon may be spent on any of your rows, over all runs and for ever? 0 = no limit, and rounds without noise may run."
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
    """TASK:ROWS of all rows in the bank's folder, whatever tasks a run will ask for, and how many customers they name,
    all rounded."""
    whole = replace(bank_dataset(config.dataset, facts), tasks=(), max_rows_per_task=0, equalize_tasks=False, on_bad_row="skip")
    rows = load_rows(whole, "train").rows
    counts = sorted(Counter(row.task for row in rows).items())
    customers = len({row.issuer.casefold() for row in rows if row.issuer})
    return tuple(f"{name}:{rounded_rows(count)}" for name, count in [*counts, (CUSTOMERS, customers)] if count)


def _try(config: Config, facts: BankFacts) -> None:
    """Read the rows, load the model, take one step. UserError says what is wrong."""
    from fedfinlora.adapter import write_adapter
    from fedfinlora.models import get_session, initial_adapter
    from fedfinlora.training import Stretch, train

    config = replace(config, dataset=bank_dataset(config.dataset, facts))
    session = get_session(config)
    print(f"model {config.model.path}, {config.model.quantization}, on {session.device}: loaded in {session.load_s:.1f} s")
    rows = bank_rows(config, facts, session.tokenizer)
    print(f"rows: {len(rows.train)} to train on, {len(rows.holdout)} held out, {rows.skipped} skipped")
    write_adapter(session.model, initial_adapter(session, config))
    few = min(4, len(rows.train))
    result = train(
        session.model, rows.train[:few], Stretch(0, 1, 1, float(few)), config.train, seed=config.seed, bank=facts.name
    )
    print(f"one step on {few} rows: loss {result.loss:.3f}, {result.wall_s:.1f} s")


def start(home: Path, listen: Listen, worker: bool = True) -> int:
    """Run the SuperNode in the foreground until it is ended by SIGTERM or Ctrl-C. `worker` keeps the base model loaded between messages.

    Metrics are served as `listen` says.
    """
    settings, digest = _settings(home)
    print(f"policy {digest[:16]}: {home / SETTINGS}")
    print(expiry_words(home / AUTHORITY))
    paths = {"settings": home / SETTINGS, "state-dir": home / "state", "ledger-dir": home / "ledger"}
    node_config = " ".join([*(f'{key}="{path}"' for key, path in paths.items()), f"worker={str(worker).lower()}"])
    command = [
        *flower("supernode"), "--root-certificates", str(home / AUTHORITY), "--superlink", settings.coordinator,
        "--auth-supernode-private-key", str(home / KEY), "--host", "127.0.0.1", "--port", str(free_port()), "--node-config", node_config,
    ]  # fmt: skip
    print(shlex.join([Path(command[0]).name, *command[1:]]), flush=True)
    environment = os.environ | {
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    running = open(home / "running.lock", "w")  # noqa: SIM115 - held until this process ends, in whatever way
    try:
        fcntl.flock(running, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(f"The bank of {home} is already running.") from error
    with open(home / "supernode.log", "ab") as log:
        process = subprocess.Popen(command, env=environment, cwd=home, stdout=log, stderr=log)
    watching = None
    try:
        watching = watch_bank(home, settings.name, lambda: process.poll() is None, listen)
        status = process.wait()
        why = trouble(settings.coordinator, home / AUTHORITY)
        why = why or "If the coordinator has not enrolled node.key.pub, or has revoked it, that is why."
        raise UserError(f"The SuperNode ended with status {status}. {why} Its log: {home / 'supernode.log'}")
    except KeyboardInterrupt:
        print("bank ended", flush=True)
        return 0
    finally:
        close(watching)
        end_family(process)
        end_worker(home / "state")


def status(home: Path) -> int:
    """Settings, certificate, the code's hash, what ran last and what has been spent of the budget."""
    settings, digest = _settings(home)
    print(f"bank {settings.name}, rows in {settings.data}, coordinator {settings.coordinator}")
    print(f"policy {digest}")
    print(f"code   {code_sha256(installed_files())}")
    print(expiry_words(home / AUTHORITY))
    mode = (home / KEY).stat().st_mode & 0o777
    print(f"node.key: mode {mode:04o}" + ("" if mode == 0o600 else " - OTHERS CAN READ IT: chmod 600"))
    history = read_history(_facts(home).history_file)
    if history:
        print(f"last request: {_line_of(history[-1])}")
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
        print(_line_of(line))
    if not lines:
        print("nothing has run here yet")
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
    return (
        f"{line['time']}  {line['run'][:40]}  round {line['round']}  {outcome}  {line['rows']} rows  {line['steps']} steps  "
        f"{line['bytes_sent']:,} bytes sent  {spent}  {line.get('detail', '')}"
    ).rstrip()


def _settings(home: Path) -> tuple[BankSettings, str]:
    if not (home / SETTINGS).is_file():
        raise UserError(f"There is no bank in {home}. Run `python -m fedfinlora bank init` first.")
    return read_settings(home / SETTINGS)


def _facts(home: Path) -> BankFacts:
    return bank_facts({"settings": str(home / SETTINGS), "state-dir": str(home / "state"), "ledger-dir": str(home / "ledger")})
