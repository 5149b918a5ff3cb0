"""The parties of a deployment as processes of their own, the way between them, and how to wait for one and to take one
away.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest.mock import patch

import psutil
from fake_grid import FakeGrid
from tiny_runs import write_rows
from wiretap import Tap

from fedfinlora.cli import main
from fedfinlora.commands import bank_setup, coordinator_setup
from fedfinlora.compose import compose
from fedfinlora.deployment.bank_keys import make_node_key, tls_key
from fedfinlora.deployment.bank_settings import BankSettings, settings_text
from fedfinlora.deployment.certificates import issue_bank, open_authority, write_private
from fedfinlora.deployment.flower_link import free_port
from fedfinlora.deployment.policy import Policy
from fedfinlora.deployment.reach import CERTIFICATE, TLS_KEY
from fedfinlora.privacy.history import read_history
from fedfinlora.system.family import end_family
from server_app.federated import run_federated

ROOT = Path(__file__).resolve().parents[2]
TINY = ("model=tiny-random", "model.threads=1")
SOON = {"PYTHONPATH": str(Path(__file__).parents[1] / "hasty"), "RETRY_S": "2", "POLL_S": "1"}
"""A bank that starts with it looks for a message every second, not every three seconds; where it finds no
coordinator it tries again after two seconds at the latest, not after twenty."""
HASTY = {**SOON, "WAIT_S": "6"}
"""Who starts with it also waits six seconds for an answer, not Flower's thirty."""
SMALL = ("num_server_rounds=2", "evaluation=none", "train.steps_per_round=2", "train.batch_rows=4")


class Machine:
    """One party: a HOME of its own, and the commands that it types."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.home.mkdir(parents=True)
        self.user = f"clerk-of-{home.name}"
        self.running: list[subprocess.Popen[bytes]] = []

    @property
    def bank(self) -> Path:
        """The folder of its bank."""
        return self.home / ".fedfinlora" / "bank"

    @property
    def coordinator(self) -> Path:
        """The folder of its coordinator."""
        return self.home / ".fedfinlora" / "coordinator"

    def environment(self) -> dict[str, str]:
        """Its own HOME and user's name; the models that are converted already; Flower looks for work twice a
        second.
        """
        own = {
            "HOME": str(self.home),
            "LOGNAME": self.user,
            "PYTHONPATH": "",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
        }
        return {**os.environ, **own, "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]}

    def types(self, *words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fedfinlora", *words]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment(), capture_output=True, text=True, timeout=timeout, check=False
        )

    def enters(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of this party's in the tests' own process, which has loaded torch already."""
        out, err = io.StringIO(), io.StringIO()
        with (
            patch.dict(os.environ, self.environment()),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            status = main(list(words))
        return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())

    def starts(
        self, *words: str, also: Mapping[str, str] | None = None, checkout: Path = ROOT
    ) -> subprocess.Popen[bytes]:
        """Run a command of a checkout in the background, its output in e.g. `bank start.log`; `also` is added to its
        environment.
        """
        with open(self.home / f"{' '.join(words[:2])}.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "fedfinlora", *words],
                cwd=checkout,
                env={**self.environment(), **(also or {})},
                stdout=log,
                stderr=log,
            )
        self.running.append(process)
        return process

    def said(self, name: str) -> str:
        """All that the commands of one name have said."""
        return (self.home / f"{name}.log").read_text("utf-8")

    def history(self) -> list[tuple[int, str]]:
        """(round, outcome) of each request that reached its bank; that it was booked between the two is not listed."""
        lines = [line for file in (self.bank / "state" / "history").glob("*.jsonl") for line in read_history(file)]
        return [(int(line["round"]), str(line["outcome"])) for line in lines if line["outcome"] != "booked"]

    def is_asked_to_end(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def ends(self) -> None:
        self.is_asked_to_end()
        for process in self.running:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                end_family(process)


def until(condition: str, machine: Machine, name: str, seconds: float = 240) -> None:
    """Wait until a party has said something."""
    found = _eventually(lambda: bool(re.search(condition, machine.said(name))), seconds)
    assert found, f"{condition!r} was not said: {machine.said(name)}"


def when(condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
    """Wait until something is so."""
    assert _eventually(condition, seconds), f"after {seconds:g} s not yet: {what}"


def _eventually(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def shoot(process: subprocess.Popen[bytes], *others: int) -> None:
    """SIGKILL a process, everything that it started, and `others`, at once: a machine that loses its power."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in [*family, *map(psutil.Process, others)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait(timeout=30)


class Line:
    """One direction of a way: what is sent at the same time goes one after the other."""

    def __init__(self) -> None:
        self._free_at = 0.0
        self._lock = threading.Lock()

    def takes(self, seconds: float) -> None:
        """Wait for one's turn and then for so long."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + seconds
            free_at = self._free_at
        time.sleep(max(0.0, free_at - time.monotonic()))


class Way:
    """A TCP way from a party to `port` on this machine, which can be cut and made slow. Bytes are counted.

    `speed` is in bytes a second in each direction, which all its connections share as on a real line; 0 = as fast as it
    goes.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._cut = threading.Event()
        self._open: set[socket.socket] = set()
        self.speed = 0.0
        self.bytes = 0
        self._lines = Line(), Line()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections and take no new one."""
        self._cut.set()
        for one in list(self._open):
            _end(one)

    def mend(self) -> None:
        self._cut.clear()

    def close(self) -> None:
        self.cut()
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            try:
                if self._cut.is_set():
                    raise ConnectionRefusedError
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                _end(near)
                continue
            self._open |= {near, far}
            for line, source, sink in zip(self._lines, (near, far), (far, near), strict=True):
                threading.Thread(target=self._carry, args=(line, source, sink), daemon=True).start()

    def _carry(self, line: Line, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(8192):
                if self.speed:
                    line.takes(len(data) / self.speed)
                sink.sendall(data)
                self.bytes += len(data)
        except OSError:
            pass
        finally:
            for one in (source, sink):
                _end(one)
                self._open.discard(one)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


def enrolls(home: Path, folder: Path, name: str) -> None:
    """Enrol the bank of a folder at the coordinator of `home`, and give it its certificate."""
    coordinator_setup.enroll(home, folder / "node.key.pub", name)
    bank_setup.accept(folder, home / "enrolled" / f"{name}.crt")


def certifies(folder: Path, name: str, authority: Path, days: int = 10) -> None:
    """Give the bank of a folder a certificate of any authority, without enrolling it anywhere."""
    issue_bank(folder / CERTIFICATE, name, (folder / "node.key.pub").read_bytes(), days, open_authority(authority))
    write_private(folder / TLS_KEY, tls_key(folder / "node.key"))


class Federation:
    """A coordinator that is up, and two enrolled banks that are connected to it: north directly, south by `way` and
    then by `tap`.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.aggregator, self.north, self.south = (Machine(home / name) for name in ("aggregator", "north", "south"))
        self.port = free_port()
        self.guests: list[Machine] = []
        self.plain = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
        """Somebody else's server, without TLS."""
        self.plain_port = int(self.plain.server_port)
        threading.Thread(target=self.plain.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def begins(self) -> None:
        coordinator_setup.init(self.aggregator.coordinator, [], self.port, "127.0.0.1", 10)
        self.tap = Tap(self.port, self.aggregator.coordinator, self.home / "tap")
        self.way = Way(self.tap.port)
        self.enrolls(self.north, self.port)
        self.enrolls(self.south, self.way.port)
        self.tap.speaks_as(self.south.bank)
        self.strangers = [self.guest(name, enrolled=True) for name in ("east", "west", "up", "drip")]
        started = time.monotonic()
        self.starts_coordinator()
        self.start_s = time.monotonic() - started
        """Of the coordinator, with six banks to register: how fast this machine is today."""
        self.north_bank = self.north.starts("bank", "start", also=SOON)
        self.south_bank = self.south.starts("bank", "start", also=HASTY)

    def starts_coordinator(self, checkout: Path = ROOT) -> None:
        before = self._ups()
        self.coordinator = self.aggregator.starts("coordinator", "start", checkout=checkout)
        when(lambda: self._ups() > before, "the coordinator is up")

    def _ups(self) -> int:
        file = self.aggregator.home / "coordinator start.log"
        return file.read_text("utf-8").count("coordinator is up") if file.exists() else 0

    def configures(self, machine: Machine, port: int) -> None:
        """Make a bank's folder as `bank init --budget-epsilon 0` does, without its trial of model and rows
        (tests/deployment/test_deployment.py has it)."""
        rows = write_rows(machine.home / "rows", train=40, word=machine.home.name)
        policy = Policy(models=("memory:tiny-random", "memory:llama-4-layers"), max_rank=0)
        settings = BankSettings(
            name=machine.home.name,
            data=str(rows),
            coordinator=f"127.0.0.1:{port}",
            declared_rows=("fpb:40",),
            budget_epsilon=0.0,
            min_rows=8,  # SMALL's steps take no more
            policy=policy,
        )
        make_node_key(machine.bank / "node.key", machine.home.name)
        (machine.bank / "ca.crt").write_bytes((self.aggregator.coordinator / "ca.crt").read_bytes())
        (machine.bank / "bank.yaml").write_text(settings_text(settings), "utf-8")

    def enrolls(self, machine: Machine, port: int) -> None:
        self.configures(machine, port)
        enrolls(self.aggregator.coordinator, machine.bank, machine.home.name)

    def guest(self, name: str, port: int = 0, enrolled: bool = False) -> Machine:
        """Another bank, not started."""
        machine = Machine(self.home / name)
        self.guests.append(machine)
        (self.enrolls if enrolled else self.configures)(machine, port or self.port)
        return machine

    def run(self, folder: Path, *more: str, banks: int = 2, checkout: Path = ROOT) -> subprocess.Popen[bytes]:
        """`coordinator run` in the background, with the code of `checkout`, as soon as `banks` are connected."""
        where = (f"output_dir={folder.parent}", f"run_name={folder.name}")
        return self.aggregator.starts(
            "coordinator", "run", "--banks", str(banks), *TINY, *SMALL, *where, *more, checkout=checkout
        )

    def in_one_process(self, name: str, *more: str) -> Path:
        """The folder of the run that `run` makes, made without Flower's processes and without any fault."""
        folder = self.home / name
        nodes = {}
        for node, party in enumerate((self.north, self.south), 1):
            own = {"state-dir": str(folder / party.home.name), "ledger-dir": str(folder / f"{party.home.name}-ledger")}
            nodes[node] = {"settings": str(party.bank / "bank.yaml"), **own}
        return run_federated(
            FakeGrid(nodes), compose([*TINY, *SMALL, *more, f"output_dir={folder}", "run_name=run", "banks=2"])
        )

    def resume(self, folder: Path) -> subprocess.Popen[bytes]:
        return self.aggregator.starts("coordinator", "run", f"resume={folder}")

    def ends(self) -> None:
        self.way.mend()
        banks = (*self.guests, self.south, self.north)
        for machine in banks:
            machine.is_asked_to_end()
        for machine in (*banks, self.aggregator):
            machine.ends()
        self.way.close()
        self.tap.close()
        self.plain.shutdown()
        self.plain.server_close()
