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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from client_app.bank import BankFacts, bank_dataset, bank_facts, bank_rows
from client_app.worker import end_worker
from fedfinlora.commands.simulate import end_family, flower, free_port
from fedfinlora.compose import compose
from fedfinlora.config import Config
from fedfinlora.deployment.app_bundle import code_sha256, installed_files
from fedfinlora.deployment.certificates import days_left, expiry_words, make_node_key
from fedfinlora.deployment.history import read_history
from fedfinlora.deployment.local_server import close
from fedfinlora.deployment.policy import SETTINGS, BankSettings, Policy, read_settings, settings_text
from fedfinlora.deployment.reach import trouble
from fedfinlora.deployment.watching import Listen, watch_bank
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model_files import model_sha256
from fedfinlora.privacy.accounting import Steps, epsilon
from fedfinlora.privacy.ledger import read_ledger
from fedfinlora.runfolder import write_bytes

KEY, AUTHORITY = "node.key", "ca.crt"


def init(home: Path, name: str, data: Path, coordinator: str, authority: Path, overrides: Sequence[str]) -> int:
    """Make key and settings, and try rows, model and one local step. Nothing is written if a try fails."""
    if (home / SETTINGS).exists():
        raise UserError(f"{home} is already a bank's folder. Nothing was changed; `bank status` shows it.")
    if ":" not in coordinator:
        raise ConfigError(f"--coordinator {coordinator!r} must be HOST:PORT.")
    days_left(authority)
    if not data.is_dir():
        raise UserError(f"--data {data} is not a folder.")
    config = compose(overrides)
    policy = Policy(models=(f"{config.model.path} sha256:{model_sha256(config.model)}",))
    settings = BankSettings(name=name, data=str(data.absolute()), coordinator=coordinator, policy=policy)
    facts = BankFacts(name, 0, 0, settings.data, home / "state", home / "ledger")
    _try(config, facts)
    make_node_key(home / KEY, name)
    write_bytes(home / AUTHORITY, authority.read_bytes())
    write_bytes(home / SETTINGS, settings_text(settings).encode())
    print(f"bank {name} in {home}")
    print(f"1. read {home / SETTINGS}: it says what may run on your rows")
    print(f"2. send {home / KEY}.pub to the coordinator (node.key stays here)")
    print(f"3. python -m fedfinlora bank start --home {home}")
    return 0


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
    """Settings, certificate, the code's hash, what ran last and what has been spent."""
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
    for data_set, spent in spent_by_data_set(home, settings.name).items():
        print(f"epsilon spent on {data_set[:12]}: {spent:.3g}")
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


def spent_by_data_set(home: Path, name: str) -> dict[str, float]:
    """Epsilon of everything in each of the bank's ledgers, at the delta of its last line."""
    folder = home / "ledger" / name
    found = {}
    for file in sorted(folder.glob("*.jsonl")):
        lines = read_ledger(folder, file.stem)
        spent = [Steps(line["sampling_rate"], line["noise_multiplier"], line["steps"]) for line in lines]
        found[file.stem] = epsilon(spent, lines[-1]["delta"]) if lines else 0.0
    return found


def _line_of(line: dict[str, Any]) -> str:
    spent = "" if line["epsilon_spent"] is None else f"{line['epsilon_spent']:.3g}"
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
