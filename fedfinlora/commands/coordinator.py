"""`coordinator`: the aggregator's side of a deployment, on Flower's SuperLink with TLS and node authentication.

Each action prints the Flower command that it runs. Everything lies in one folder (default ~/.fedfinlora/coordinator): the consortium's authority, the
server's certificate, the SuperLink's database, the enrolled banks' public keys, and Flower's own settings.

Flower's control interface knows no accounts: who reaches the port and trusts the authority may start and stop runs. Let a firewall keep everybody but
the banks' and the operator's machines away from it (docs/deployment.md).
"""

from __future__ import annotations

import os
import shlex
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfinlora.adapter_folder import check_start
from fedfinlora.commands.simulate import Link, end_family, flower, watch
from fedfinlora.compose import OWN_PATHS, PROJECT_ROOT, absolute_words, compose
from fedfinlora.deployment.app_bundle import code_sha256, installed_files
from fedfinlora.deployment.certificates import check_public_key, expiry_words, issue_server, make_authority
from fedfinlora.deployment.enrolled import ENROLLED
from fedfinlora.deployment.local_server import close
from fedfinlora.deployment.run_list import note_run
from fedfinlora.deployment.watching import Listen, watch_coordinator
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.runfolder import (
    ORIGIN_FILE,
    new_run_folder,
    origin_of_this_process,
    read_json,
    write_bytes,
    write_json,
)
from fedfinlora.wire import BANK_NAME
from server_app.witness import WITNESS_VARIABLE

CONNECTION = "coordinator"
START_TIMEOUT_S = 120.0
SETTINGS = "coordinator.json"


@dataclass(frozen=True)
class Coordinator:
    """A coordinator's folder."""

    home: Path

    @property
    def settings(self) -> Mapping[str, Any]:
        """host, port and names. UserError before `init`."""
        file = self.home / SETTINGS
        if not file.is_file():
            raise UserError(f"There is no coordinator in {self.home}. Run `python -m fedfinlora coordinator init` first.")
        found: Mapping[str, Any] = read_json(file)
        return found

    @property
    def environment(self) -> dict[str, str]:
        """Of every Flower process: its own settings folder, no downloads, no telemetry."""
        return os.environ | {
            "FLWR_HOME": str(self.home / "flwr"),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            # Whole adapters come and go in several threads: give what is freed back to the system instead of keeping it for later.
            "MALLOC_ARENA_MAX": "2",
            "MALLOC_MMAP_THRESHOLD_": str(2**20),
            "MALLOC_TRIM_THRESHOLD_": str(2**20),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    @property
    def banks_file(self) -> Path:
        """Name -> node id of the registered banks."""
        return self.home / "banks.json"

    def link(self, run: Path) -> Link:
        """The running SuperLink, to start and follow runs."""
        return Link(run, self.environment, None, CONNECTION)

    def healthy(self) -> bool:
        """Whether the SuperLink answers over TLS with the certificate of this consortium."""
        import httpx

        context = ssl.create_default_context(cafile=str(self.home / "ca.crt"))
        try:
            return httpx.get(f"https://{self._address}/health", timeout=5.0, verify=context).is_success
        except httpx.HTTPError:
            return False

    @property
    def _address(self) -> str:
        return f"{self.settings['local']}:{self.settings['port']}"


def init(home: Path, hosts: Sequence[str], port: int, listen: str, days: int) -> int:
    """Make authority, certificate and settings. What is there already is not touched."""
    if (home / SETTINGS).exists():
        raise UserError(f"{home} is already a coordinator's folder. Nothing was changed.")
    local = "127.0.0.1" if listen in ("0.0.0.0", "127.0.0.1") else listen
    names = list(dict.fromkeys([*hosts, "localhost", local]))
    make_authority(home, 10 * days)
    issue_server(home, names, days)
    write_bytes(
        home / "flwr" / "config.toml",
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{local}:{port}"\n'
        f'root-certificates = "{home / "ca.crt"}"\n'.encode(),
    )
    (home / "enrolled").mkdir(exist_ok=True)
    write_json(home / SETTINGS, {"listen": listen, "local": local, "port": port, "hosts": names})
    print(f"coordinator in {home}, for {', '.join(names)}, port {port}")
    print(f"1. give {home / 'ca.crt'} to every bank (its content is public; ca.key stays here)")
    print("2. enroll each bank's node.key.pub:  python -m fedfinlora coordinator enroll node.key.pub --name BANK")
    print("3. python -m fedfinlora coordinator start")
    return 0


def enroll(home: Path, key: Path, name: str) -> int:
    """Take a bank's public key; it is registered now, or when the coordinator starts."""
    coordinator = Coordinator(home)
    _ = coordinator.settings
    if not BANK_NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r} is not a plain name of letters, digits, '.', '_' and '-'.")
    content = check_public_key(key)
    kept = home / "enrolled" / f"{name}.pub"
    if kept.exists() and kept.read_bytes() != content:
        raise UserError(f"{name} is enrolled with another key. Revoke it first: python -m fedfinlora coordinator revoke {name}")
    for other in sorted((home / "enrolled").glob("*.pub")):
        if other.stem != name and other.read_bytes().split()[:2] == content.split()[:2]:
            raise UserError(f"This key is already enrolled, as {other.stem}. Every bank needs a key of its own.")
    write_bytes(kept, content)
    if coordinator.healthy():
        _register(coordinator)
    else:
        print(f"{name} will be registered when the coordinator starts")
    return 0


def revoke(home: Path, name: str) -> int:
    """Let a bank in no more."""
    coordinator = Coordinator(home)
    kept = home / "enrolled" / f"{name}.pub"
    if not kept.is_file():
        raise UserError(f"No bank {name!r} is enrolled: {', '.join(_enrolled(home)) or 'there is none'}.")
    if not coordinator.healthy():
        raise UserError("The coordinator is not running: start it, so that the revocation takes effect at once.")
    node = _nodes(coordinator).get(name)
    if node is not None:
        _tell(coordinator, "supernode", "unregister", str(node["node-id"]), CONNECTION)
    kept.rename(kept.with_suffix(f".revoked-{int(time.time())}"))
    write_json(coordinator.banks_file, {other: ident for other, ident in _ids(home).items() if other != name})
    print(f"{name} is revoked; what it sends is not accepted any more")
    return 0


def renew(home: Path, days: int) -> int:
    """A new server certificate of the same authority, for the same names. Banks need nothing new."""
    issue_server(home, [str(host) for host in Coordinator(home).settings["hosts"]], days)
    print(f"{expiry_words(home / 'server.crt')}. Restart the coordinator to use it.")
    return 0


def start(home: Path, listen: Listen) -> int:
    """Run the SuperLink in the foreground until it is ended by SIGTERM or Ctrl-C; register enrolled banks as soon as it answers.

    Metrics and the status page are served as `listen` says.
    """
    coordinator = Coordinator(home)
    settings = coordinator.settings
    print(expiry_words(home / "server.crt"))
    command = [
        *flower("superlink"), "--ssl-ca-certfile", str(home / "ca.crt"), "--ssl-certfile", str(home / "server.crt"), "--ssl-keyfile",
        str(home / "server.key"), "--enable-supernode-auth", "--host", str(settings["listen"]), "--port", str(settings["port"]), "--database",
        str(home / "state.db"), "--isolation", "subprocess", "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    print(shlex.join([Path(command[0]).name, *command[1:]]), flush=True)
    watching = watch_coordinator(home, str(settings["hosts"][0]), coordinator.healthy, listen)
    with open(home / "superlink.log", "ab") as log:
        own = {ENROLLED: str(coordinator.banks_file), WITNESS_VARIABLE: str(home / "witness")}
        environment = coordinator.environment | own
        process = subprocess.Popen(command, env=environment, cwd=home, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not coordinator.healthy():
            if process.poll() is not None:
                raise UserError(f"The SuperLink ended with status {process.returncode}; see {home / 'superlink.log'}.")
            if time.monotonic() > deadline:
                raise UserError(f"The SuperLink did not answer within {START_TIMEOUT_S:g} s; see {home / 'superlink.log'}.")
            time.sleep(0.2)
        _register(coordinator)
        print(f"coordinator is up on port {settings['port']}", flush=True)
        status = process.wait()
        raise UserError(f"The SuperLink ended with status {status}; see {home / 'superlink.log'}.")
    except KeyboardInterrupt:
        print("coordinator ended", flush=True)
        return 0
    finally:
        close(watching)
        end_family(process)


def status(home: Path) -> int:
    """Certificates, the hash of the code that a run sends to the banks, banks and runs; 0 when the SuperLink answers."""
    coordinator = Coordinator(home)
    _ = coordinator.settings
    for name in ("ca.crt", "server.crt"):
        print(expiry_words(home / name))
    print(f"code {code_sha256(installed_files())}")
    if not coordinator.healthy():
        print("coordinator: NOT RUNNING")
        return 1
    print("coordinator: up")
    nodes = _nodes(coordinator)
    for name in _enrolled(home):
        print(f"bank {name}: {nodes.get(name, {}).get('status', 'not registered')}")
    answer = coordinator.link(home).flwr("ls", CONNECTION)
    for run in answer.get("runs", []):
        print(f"run {run['run-id']}: {run['status']}")
    return 0


def run(home: Path, overrides: Sequence[str], min_banks: int) -> int:
    """Start a run with every bank that is connected, and follow it; 0 only when it completes.

    Ctrl-C ends the following, not the run: it goes on at the coordinator, and `flwr stop` ends it.
    """
    coordinator = Coordinator(home)
    if not coordinator.healthy():
        raise UserError("The coordinator is not running. Start it: python -m fedfinlora coordinator start")
    banks = min_banks or len(_enrolled(home))
    if not banks:
        raise UserError("No bank is enrolled: python -m fedfinlora coordinator enroll node.key.pub --name BANK")
    config = compose(overrides)
    if config.resume:
        folder, words = Path(config.resume), []
    else:
        check_start(config)
        folder = new_run_folder(config)
        decided = ("output_dir", "run_name", "dataset.root", "overwrite", "banks", "strategy.min_banks", *OWN_PATHS)
        words = [word for word in overrides if word.split("=")[0].lstrip("+~") not in decided]
        words += [f"run_name={folder.name}", f"strategy.min_banks={config.strategy.min_banks or banks}", f"banks={banks}"]
        words += absolute_words(config, overrides)
        if not config.strategy.deadline_s:
            print(
                "warning: with strategy.deadline_s=0 a round waits for ever for an answer that was lost on its way",
                file=sys.stderr,
            )
    print(f"run folder: {folder}", flush=True)
    write_json(folder / ORIGIN_FILE, origin_of_this_process())
    note_run(home, folder)
    link = coordinator.link(folder)
    run_id = link.start(config, words)
    print(
        f"flwr run {PROJECT_ROOT} {CONNECTION} --run-config {folder / 'state' / 'run-config.toml'}  (run {run_id})", flush=True
    )
    try:
        watch(link, folder, run_id)
    except UserError as error:
        raise UserError(f"{error} {_how_to_go_on(coordinator, folder)}") from error
    except KeyboardInterrupt:
        stop = f"FLWR_HOME={home / 'flwr'} flwr stop {run_id} {CONNECTION}"
        print(f"\nThe run goes on without you, in {folder}. To end it: {stop}", file=sys.stderr)
        return 1
    result = read_json(folder / "result.json")
    if result["status"] != "completed":
        raise UserError(f"{result['reason']} {_how_to_go_on(coordinator, folder)}")
    print(f"report: {folder / 'report.html'}")
    return 0


def _how_to_go_on(coordinator: Coordinator, folder: Path) -> str:
    first = "" if coordinator.healthy() else "The coordinator is not running: start it again. "
    return f"{first}Go on with: python -m fedfinlora coordinator run resume={folder}"


def _register(coordinator: Coordinator) -> None:
    """Register every enrolled key that the SuperLink does not know yet, and keep its node id by the bank's name."""
    known, ids = _nodes(coordinator), _ids(coordinator.home)
    for name in _enrolled(coordinator.home):
        if name not in known:
            key = coordinator.home / "enrolled" / f"{name}.pub"
            ids[name] = str(_tell(coordinator, "supernode", "register", str(key), CONNECTION, "--name", name)["node-id"])
            write_json(coordinator.banks_file, ids)
            print(f"bank {name} is registered", flush=True)


def _nodes(coordinator: Coordinator) -> dict[str, dict[str, Any]]:
    """Name -> what the SuperLink says of each registered bank."""
    answer = coordinator.link(coordinator.home).flwr("supernode", "ls", CONNECTION)
    by_id = {str(node["node-id"]): node for node in answer.get("nodes", [])}
    return {name: by_id[node] for name, node in _ids(coordinator.home).items() if node in by_id}


def _ids(home: Path) -> dict[str, str]:
    """Name -> node id of the registered banks."""
    file = Coordinator(home).banks_file
    return dict(read_json(file)) if file.is_file() else {}


def _tell(coordinator: Coordinator, *words: str) -> dict[str, Any]:
    print(shlex.join(["flwr", *words]), flush=True)
    answer: dict[str, Any] = coordinator.link(coordinator.home).flwr(*words)
    return answer


def _enrolled(home: Path) -> list[str]:
    return sorted(file.stem for file in (home / "enrolled").glob("*.pub"))
