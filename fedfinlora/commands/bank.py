"""`bank`: one bank's side of a deployment. Its rows, key, policy, ledger and history stay on its own machine.

`start` runs Flower's SuperNode, which hands each request to `client_app`, where the policy is checked first.
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

from client_app.facts import BankFacts, bank_facts
from client_app.privacy_plan import CUSTOMERS
from client_app.worker import end_worker
from fedfinlora.commands.privacy_ledger import largest_by_unit
from fedfinlora.config.words import toml_text
from fedfinlora.deployment.app_bundle import code_sha256, installed_files
from fedfinlora.deployment.bank_keys import check_bank_certificate
from fedfinlora.deployment.bank_settings import (
    SETTINGS,
    BankSettings,
    declared_sizes,
    read_settings,
)
from fedfinlora.deployment.bounded_logs import bounded
from fedfinlora.deployment.certificates import expiry_words
from fedfinlora.deployment.flower_link import flower, flower_environment, free_port
from fedfinlora.deployment.local_server import close
from fedfinlora.deployment.own_user import check_user
from fedfinlora.deployment.reach import AUTHORITY, CERTIFICATE, trouble
from fedfinlora.deployment.watching import Listen, watch_bank
from fedfinlora.errors import UserError, plural, printable
from fedfinlora.privacy.accounting import default_delta
from fedfinlora.privacy.history import read_history, unread
from fedfinlora.privacy.ledger import read_lines
from fedfinlora.privacy.ledger_chain import opened
from fedfinlora.run.folder import alone_in
from fedfinlora.system.family import end_family
from fedfinlora.system.process_identity import this_process

KEY = "node.key"


def budget_words(budget: float) -> str:
    if not budget:
        return "budget: NONE. Rounds without noise may run, and are booked as infinite"
    return f"budget: epsilon {budget:g} for any row, over all runs; only private rounds may run"


def start(home: Path, listen: Listen, worker: bool = True) -> int:
    """Run the SuperNode in the foreground until SIGTERM or Ctrl-C. `worker` keeps the base model loaded between
    messages.
    """
    settings_of(home)
    check_user()
    with alone_in(home, f"The bank {home}"), bounded(home / "supernode.log", home / "state" / "worker.log"):
        return _serve(home, listen, worker)


def _serve(home: Path, listen: Listen, worker: bool) -> int:
    settings, digest = settings_of(home)
    print(f"policy {digest[:16]}: {home / SETTINGS}")
    print(expiry_words(home / AUTHORITY))
    if not (home / CERTIFICATE).is_file():
        raise UserError(
            f"The coordinator has not enrolled {home / KEY}.pub yet, or its certificate was not taken. Send that file "
            f"to it, and take what comes back: python -m fedfinlora bank accept {settings.name}.crt"
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
    with open(home / "supernode.log", "ab") as log:
        environment = flower_environment(home / "flwr")
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


def status(home: Path) -> int:
    """Settings, certificate, the code's hash, the last request, and what is spent of the budget."""
    settings, digest = settings_of(home)
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
    history = read_history(facts_of(home).history_file)
    if history:
        print(printable(f"last request: {_line_of(history[-1])}"))
    print(budget_words(settings.budget_epsilon))
    declared = sum(rows for task, rows in declared_sizes(settings.declared_rows).items() if task != CUSTOMERS)
    delta = min(settings.delta or 1.0, default_delta(max(1, declared)))
    for unit, spent in spent_by_unit(home / "ledger", delta).items():
        print(f"largest epsilon spent on any {unit}: {spent:.3g} at delta {delta:.1e}")
    return 0


def history(home: Path) -> int:
    settings_of(home)
    lines = read_history(facts_of(home).history_file)
    print("time                      run                  round  outcome  rows  steps  bytes sent  epsilon spent")
    for line in lines:
        print(printable(_line_of(line)))
    if not lines:
        print("nothing has run here yet")
    if more := unread(facts_of(home).history_file):
        print(f"refused unread, not listed: {plural(more, 'request')}")
    return 0


def spent_by_unit(folder: Path, delta: float) -> dict[str, float]:
    """`largest_by_unit` of a folder; {} without a ledger."""
    if not read_lines(folder):
        return {}
    with opened(folder, writing=False) as ledger:
        return largest_by_unit(ledger, delta)


def _line_of(line: dict[str, Any]) -> str:
    known = line["epsilon_spent"] is not None
    spent = f"{line['epsilon_spent']:.3g}" if known else "infinite" if line.get("noise_multiplier") == 0 else ""
    outcome = f"{line['outcome']} {line['code']}".strip()
    more = f"  ({line['unread']} before it were refused unread)" if line.get("unread") else ""
    return (
        f"{line['time']}  {line['run'][:40]}  round {line['round']}  {outcome}  {line['rows']} rows  {line['steps']} "
        f"steps  {line['bytes_sent']:,} bytes sent  {spent}  {line.get('detail', '')}{more}"
    ).rstrip()


def settings_of(home: Path) -> tuple[BankSettings, str]:
    if not (home / SETTINGS).is_file():
        raise UserError(f"There is no bank in {home}. Run `python -m fedfinlora bank init` first.")
    return read_settings(home / SETTINGS)


def facts_of(home: Path) -> BankFacts:
    return bank_facts(
        {"settings": str(home / SETTINGS), "state-dir": str(home / "state"), "ledger-dir": str(home / "ledger")}
    )
