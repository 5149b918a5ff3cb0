"""`coordinator`: the aggregator's side of a deployment, on Flower's SuperLink with TLS and known banks only.

Each action prints the Flower command that it runs. Everything lies in one folder (default ~/.fedfinlora/coordinator);
the authority's private key may lie elsewhere, and may be encrypted. Banks reach Flower's Fleet API at the public
address, over mutual TLS; Flower's other interfaces are on loopback (`fedfinlora.deployment.door`).
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from fedfinlora.deployment.app_bundle import code_sha256, installed_files
from fedfinlora.deployment.bounded_logs import bounded
from fedfinlora.deployment.certificates import (
    CA_CERTIFICATE,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    SIGNING_CERTIFICATE,
    SIGNING_KEY,
    expiry_words,
)
from fedfinlora.deployment.coordinator_home import (
    CONNECTION,
    LOOPBACK,
    Coordinator,
    enrolled,
    nodes_of,
    register,
)
from fedfinlora.deployment.flower_link import flower, wait_for_superlink
from fedfinlora.deployment.local_server import close
from fedfinlora.deployment.own_user import check_user
from fedfinlora.deployment.watching import Listen, watch_coordinator
from fedfinlora.errors import UserError
from fedfinlora.provenance.enrolled import ENROLLED, PUBLIC, SIGNING
from fedfinlora.run.folder import alone_in
from fedfinlora.system.family import end_family
from server_app.witness import WITNESS_VARIABLE

CERTIFICATES = (CA_CERTIFICATE, SERVER_CERTIFICATE, SIGNING_CERTIFICATE)


def start(home: Path, listen: Listen) -> int:
    """Run the SuperLink in the foreground until SIGTERM or Ctrl-C; register enrolled banks as soon as it answers.
    UserError that says who runs it where it runs already.
    """
    _ = Coordinator(home).settings
    check_user()
    with alone_in(home, f"The coordinator {home}"), bounded(home / "superlink.log"):
        return _serve(home, listen)


def _serve(home: Path, listen: Listen) -> int:
    coordinator = Coordinator(home)
    settings = coordinator.settings
    for name in CERTIFICATES:
        print(expiry_words(home / name))
    command = [
        *flower("superlink"), "--ssl-ca-certfile", str(home / CA_CERTIFICATE), "--ssl-certfile",
            str(home / SERVER_CERTIFICATE), "--ssl-keyfile",
        str(home / SERVER_KEY), "--enable-supernode-auth", "--host", LOOPBACK, "--port", str(settings["control_port"]),
            "--database",
        str(home / "state.db"), "--isolation", "subprocess", "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    print(shlex.join([Path(command[0]).name, *command[1:]]), flush=True)
    watching = watch_coordinator(home, str(settings["hosts"][0]), coordinator.healthy, listen)
    with open(home / "superlink.log", "ab") as log:
        own = {
            ENROLLED: str(coordinator.banks_file),
            SIGNING: str(home / SIGNING_KEY),
            WITNESS_VARIABLE: str(home / "witness"),
            PUBLIC: f"{settings['listen']}:{settings['port']}",
        }
        environment = coordinator.environment | own
        process = subprocess.Popen(command, env=environment, cwd=home, stdout=log, stderr=log)
    try:
        wait_for_superlink(process, home / "superlink.log", coordinator.healthy)
        register(coordinator)
        print(f"coordinator is up on port {settings['port']}", flush=True)
        status = process.wait()
        raise UserError(f"Flower's SuperLink ended with status {status}; see {home / 'superlink.log'}.")
    except KeyboardInterrupt:
        print("coordinator ended", flush=True)
        return 0
    finally:
        close(watching)
        end_family(process)


def status(home: Path) -> int:
    """Certificates, the hash of the code that a run sends, banks and runs; 0 when the SuperLink answers."""
    coordinator = Coordinator(home)
    _ = coordinator.settings
    for name in CERTIFICATES:
        print(expiry_words(home / name))
    for name in enrolled(home):
        print(expiry_words(home / "enrolled" / f"{name}.crt"))
    print(f"code {code_sha256(installed_files())}")
    if not coordinator.healthy():
        print("coordinator: NOT RUNNING")
        return 1
    print("coordinator: up")
    nodes = nodes_of(coordinator)
    for name in enrolled(home):
        print(f"bank {name}: {nodes.get(name, {}).get('status', 'not registered')}")
    answer = coordinator.link(home).flwr("ls", CONNECTION)
    for run in answer.get("runs", []):
        print(f"run {run['run-id']}: {run['status']}")
    return 0
