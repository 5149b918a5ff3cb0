"""Who gets what at the SuperLink's two listeners: every path that Flower serves, tried by a stranger, a bank, a revoked
one, and another user of the machine.

The SuperLink is the real one, a process of its own, with a coordinator's folder; no run and no bank's process is needed
for what is refused at the door.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from fastapi.routing import APIRoute, iter_route_contexts
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.superlink.main import create_app
from parties import Machine, certifies, enrolls, when

from fedfinlora.commands import coordinator_setup
from fedfinlora.deployment import door, listeners
from fedfinlora.deployment.bank_keys import make_node_key
from fedfinlora.deployment.bank_settings import BankSettings, settings_text
from fedfinlora.deployment.certificates import make_authority
from fedfinlora.deployment.coordinator_home import Coordinator
from fedfinlora.deployment.flower_link import free_port
from fedfinlora.deployment.own_user import is_own
from fedfinlora.deployment.reach import bank_context
from fedfinlora.files import read_json
from fedfinlora.system.family import end_family

NOBODY = 65534
"""Another user of the machine, whom only root can be."""


def served() -> list[tuple[str, str]]:
    """(method, path) of all that Flower's SuperLink serves."""
    app = create_app()
    routes = [context.route for context in iter_route_contexts(app.routes)]
    found = [
        (method, route.path) for route in routes if isinstance(route, APIRoute) for method in sorted(route.methods)
    ]
    others = [
        ("GET", route.path) for route in app.routes if not isinstance(route, APIRoute) and getattr(route, "path", "")
    ]
    return sorted({*found, *others})


@dataclass
class Doors:
    """A SuperLink that is up, with two enrolled banks, a third that is not, and a cousin whose certificate is another
    authority's.
    """

    home: Path
    port: int
    inner: int
    superlink: psutil.Process
    banks: dict[str, Path]

    def client(self, name: str) -> httpx.Client:
        """At the public listener, with a bank's certificate; "" shows none."""
        stranger = ssl.create_default_context(cafile=str(self.home / "ca.crt"))
        context = bank_context(self.banks[name]) if name else stranger
        return httpx.Client(base_url=f"https://127.0.0.1:{self.port}", verify=context, timeout=60)

    def signed(self, name: str, age_s: float = 0.0) -> dict[str, str]:
        """Headers of a request that a bank has signed so many seconds ago."""
        key: Any = load_ssh_private_key((self.banks[name] / "node.key").read_bytes(), None)
        timestamp = now().isoformat()
        public = base64.b64encode(public_key_to_bytes(key.public_key())).decode()
        signature = base64.b64encode(sign_message(key, timestamp.encode())).decode()
        signs = {
            FLEET_HTTP_PUBLIC_KEY_HEADER: public,
            TIMESTAMP_HEADER: timestamp,
            FLEET_HTTP_SIGNATURE_HEADER: signature,
        }
        return {**signs, "content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}

    def heartbeat(self, name: str) -> bytes:
        node = int(read_json(self.home / "banks.json")[name])
        return SendNodeHeartbeatRequest(node=Node(node_id=node), heartbeat_interval=60).SerializeToString()


HEARTBEAT = "/v1/fleet/send-node-heartbeat"


def bank_folder(folder: Path, name: str, authority: Path) -> Path:
    """What `bank init` makes, without a model and rows."""
    make_node_key(folder / "node.key", name)
    (folder / "ca.crt").write_bytes((authority / "ca.crt").read_bytes())
    (folder / "bank.yaml").write_text(
        settings_text(BankSettings(name=name, data=str(folder), coordinator="127.0.0.1:1"))
    )
    return folder


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    place = tmp_path_factory.mktemp("doors")
    machine = Machine(place / "aggregator")
    home, port = machine.coordinator, free_port()
    coordinator_setup.init(home, [], port, "127.0.0.1", 10)
    banks = {
        name: bank_folder(place / name, name, home) for name in ("north", "east", "gone", "late", "cousin", "twin")
    }
    for name in ("north", "east", "gone"):
        enrolls(home, banks[name], name)
    make_authority(place / "other", 10)
    certifies(banks["cousin"], "cousin", place / "other")
    certifies(banks["twin"], "north", home)  # its key is enrolled nowhere
    certifies(banks["late"], "late", home, days=0)
    process = machine.starts("coordinator", "start")
    try:
        when(lambda: "coordinator is up" in machine.said("coordinator start"), "the coordinator is up", 300)
        superlink = psutil.Process(process.pid).children()[0]
        yield Doors(home, port, int(read_json(home / "coordinator.json")["control_port"]), superlink, banks)
    finally:
        machine.ends()
        end_family(process)


def shut_out(call: Any) -> None:
    """The connection ends without an answer."""
    with pytest.raises(httpx.TransportError):
        call()


@pytest.mark.slow
def test_every_path_that_flower_serves_is_shut_to_a_stranger(doors: Doors) -> None:
    for name in ("", "cousin", "late"):
        with doors.client(name) as client:
            for method, path in served():
                shut_out(lambda client=client, method=method, path=path: client.request(method, path))


@pytest.mark.slow
def test_an_enrolled_bank_finds_the_fleet_interface_and_nothing_else(doors: Doors) -> None:
    paths = served()
    assert len(paths) > 60, "else the routes were not found"
    with doors.client("north") as client:
        for method, path in [
            *paths,
            ("GET", "/"),
            ("POST", "//v1/control/start-run"),
            ("POST", "/v1/fleet/../control/start-run"),
        ]:
            status = client.request(method, path, headers=doors.signed("north")).status_code
            assert (status == 404) == (path not in door.OPEN_PATHS), (method, path, status)
        assert client.get("/health").status_code == 200
        answer = client.post(HEARTBEAT, headers=doors.signed("north"), content=doors.heartbeat("north"))
        assert answer.status_code == 200


@pytest.mark.slow
def test_a_key_that_is_not_enrolled_is_refused_on_every_path(doors: Doors) -> None:
    with doors.client("twin") as client:
        for method, path in served():
            assert client.request(method, path).status_code == 401


@pytest.mark.slow
def test_a_recorded_request_is_of_no_use_over_another_banks_connection(doors: Doors) -> None:
    headers, content = doors.signed("north"), doors.heartbeat("north")
    with doors.client("north") as north, doors.client("east") as east:
        assert east.post(HEARTBEAT, headers=headers, content=content).status_code == 401
        assert north.post(HEARTBEAT, headers=headers, content=content).status_code == 200, "else nothing was tried"
        double = [*headers.items(), (FLEET_HTTP_PUBLIC_KEY_HEADER, doors.signed("east")[FLEET_HTTP_PUBLIC_KEY_HEADER])]
        assert east.post(HEARTBEAT, headers=double, content=content).status_code == 401
        assert east.post(HEARTBEAT, headers=doors.signed("east"), content=content).status_code == 401, "north's node"


@pytest.mark.slow
def test_a_revoked_bank_is_refused_on_an_open_connection(doors: Doors) -> None:
    with doors.client("gone") as client:
        assert client.get("/health").status_code == 200
        assert coordinator_setup.revoke(doors.home, "gone") == 0
        answer = client.get("/health")
        assert answer.status_code == 401
        assert "or has revoked it" in answer.text
    assert "gone" not in read_json(doors.home / "banks.json")
    assert not (doors.home / "enrolled" / "gone.crt").exists()


SCAN = """
import encodings.idna, http.client, json, os, ssl, sys
port, user, paths = int(sys.argv[1]), int(sys.argv[2]), json.load(sys.stdin)
context = ssl._create_unverified_context()
if user != os.geteuid():
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
for method, path in paths:
    try:
        more = {"context": context} if sys.argv[3] == "HTTPSConnection" else {}
        plain = getattr(http.client, sys.argv[3])("127.0.0.1", port, timeout=60, **more)
        plain.request(method, path)
        print(plain.getresponse().status)
    except OSError:
        print("shut")
"""


def scanned(port: int, paths: list[tuple[str, str]], user: int, speaks: str = "HTTPSConnection") -> set[str]:
    """What a process of a user gets on a port of this machine."""
    command = [sys.executable, "-I", "-c", SCAN, str(port), str(user), speaks]
    done = subprocess.run(command, input=json.dumps(paths), capture_output=True, text=True, timeout=300, check=True)
    return set(done.stdout.split())


@pytest.mark.slow
def test_another_user_of_the_machine_gets_nothing_from_the_inner_listener(doors: Doors) -> None:
    """Only root can be another user; for others the same is shown by a listener that expects another user."""
    paths = served()
    assert "shut" not in scanned(doors.inner, paths[:5], os.geteuid()), "else nothing was tried"
    if os.geteuid() == 0:
        assert scanned(doors.inner, paths, NOBODY) == {"shut"}
    with loopback() as (near, far):
        assert is_own(far)
        near.close()
        when(lambda: not is_own(far), "the other end is closed", 10)


@pytest.mark.slow
def test_another_user_of_the_banks_machine_gets_nothing_from_its_supernode(tmp_path: Path) -> None:
    """The listener that `flower.py supernode` puts in the place of uvicorn's, with an interface behind it that answers
    everybody.
    """
    port = free_port()
    server = listeners.Listener(
        uvicorn.Config(create_app(), host="127.0.0.1", port=port, lifespan="off", log_config=None), is_own
    )
    threading.Thread(target=server.run, daemon=True).start()
    when(lambda: server.started, "the listener is up")
    try:
        assert scanned(port, [("GET", "/health")], os.geteuid(), "HTTPConnection") == {"200"}
        if os.geteuid() == 0:
            assert scanned(port, served(), NOBODY, "HTTPConnection") == {"shut"}
    finally:
        server.should_exit = True


@contextmanager
def loopback() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()) as near:
        far, _ = listening.accept()
        with far:
            yield near, far


@pytest.mark.slow
@pytest.mark.usefixtures("dawdler")
def test_a_thousand_idle_connections_disturb_no_bank(doors: Doors) -> None:
    """From twenty other addresses, without a certificate; and a bank's own, of which those beyond its share are
    closed.
    """
    with ExitStack() as stack, doors.client("north") as north:
        assert north.get("/health").status_code == 200
        idle = [stack.enter_context(socket.socket()) for _ in range(1000)]
        for number, each in enumerate(idle):
            each.bind((f"127.0.0.{2 + number % 20}", 0))
            each.settimeout(60)
            each.connect(("127.0.0.1", doors.port))
        assert north.get("/health").status_code == 200
        with doors.client("east") as east:
            assert east.get("/health").status_code == 200, "a new connection"
        files = doors.superlink.num_fds()
        assert files < listeners.MOST_GREETED_IN_ALL + 200, "the oldest give way at once"
        when(lambda: all(ended(each) for each in idle), "the handshakes were given up", listeners.HANDSHAKE_S + 30)

        context = bank_context(doors.banks["north"])
        own = []
        for _ in range(2 * door.MOST_OF_A_BANK):
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", doors.port), timeout=60))
            own.append(stack.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1")))
        when(lambda: sum(map(ended, own)) >= door.MOST_OF_A_BANK, "those beyond the bank's share are closed", 30)
        with doors.client("east") as east:
            assert east.get("/health").status_code == 200
        when(lambda: all(map(ended, own)), "those that ask nothing are closed", door.HEAD_S + 30)
    assert Coordinator(doors.home).healthy()


def ended(connection: socket.socket) -> bool:
    """Whether the other end has closed a connection."""
    connection.settimeout(0.001)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except (ssl.SSLError, OSError):
        return not isinstance(sys.exc_info()[1], ssl.SSLWantReadError)


def lives_s(doors: Doors, bank: str, piece: bytes, pause_s: float, most_s: float) -> float:
    """Seconds until the SuperLink ends a bank's connection that sends such a piece of a header again and again."""
    context = bank_context(doors.banks[bank])
    with (
        socket.create_connection(("127.0.0.1", doors.port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as link,
    ):
        begun = time.monotonic()
        try:
            link.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\n")
            while time.monotonic() - begun < most_s:
                link.sendall(piece)
                time.sleep(pause_s)
        except OSError:
            pass
        return time.monotonic() - begun


@pytest.fixture(scope="module")
def dawdler(doors: Doors) -> Iterator[Future[float]]:
    """How many seconds a head lives that comes a few bytes at a time: found out while others wait, too."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(lives_s, doors, "east", b"x: y\r\n", 0.5, door.HEAD_S + 30)


@pytest.mark.slow
def test_a_head_without_end_and_one_that_dawdles_are_closed(doors: Doors, dawdler: Future[float]) -> None:
    assert lives_s(doors, "north", b"x-more: " + b"a" * 8000 + b"\r\n", 0.01, 60) < door.HEAD_S / 2
    assert door.HEAD_S / 2 < dawdler.result() < door.HEAD_S + 15


@pytest.mark.slow
def test_a_slow_body_ends_at_its_deadline_and_others_are_served(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    """The public listener in this process, where the deadline is two seconds; a bank's real certificate and
    connection.
    """
    monkeypatch.setattr(door, "BODY_S", 2.0)
    port, context = free_port(), bank_context(doors.banks["north"])
    config = uvicorn.Config(
        create_app(), host="127.0.0.1", port=port, interface="asgi3", lifespan="off", log_config=None,
        ssl_context_factory=lambda _config, _default: listeners.public_context(doors.home),
    )  # fmt: skip
    outer = listeners._Outer(config, protocol=partial(door.Visit, door.Door(create_app(), doors.home / "enrolled")))
    threading.Thread(target=outer.run, daemon=True).start()
    when(lambda: outer.started, "the listener is up")
    head = "".join(f"{name}: {value}\r\n" for name, value in doors.signed("north").items())
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as link,
            httpx.Client(
                base_url=f"https://127.0.0.1:{port}", verify=bank_context(doors.banks["east"]), timeout=60
            ) as east,
        ):
            begun = time.monotonic()
            link.sendall(
                f"POST /v1/fleet/push-object HTTP/1.1\r\nhost: a\r\n{head}content-length: 1000\r\n\r\n1".encode()
            )
            assert east.get("/health").status_code == 200
            when(lambda: ended(link), "the connection is ended", 30)
            assert door.BODY_S <= time.monotonic() - begun < door.BODY_S + 8, "before a second byte was due"
            assert east.get("/health").status_code == 200
    finally:
        outer.should_exit = True


@pytest.mark.slow
def test_private_keys_and_folders_are_the_coordinators_own(doors: Doors) -> None:
    assert doors.home.stat().st_mode & 0o777 == 0o700
    for name in ("ca.key", "server.key", "signing.key"):
        assert (doors.home / name).stat().st_mode & 0o777 == 0o600
    assert (doors.banks["north"] / "tls.key").stat().st_mode & 0o777 == 0o600
