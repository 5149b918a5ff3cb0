"""What leaves a bank, and what a deployment does when something breaks: parties are killed, the way is cut or slow, the
disk is full.

One coordinator and two banks serve all tests of this file. South reaches the coordinator by a way that the test can
cut, and that is read along.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import ssl
import subprocess
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate
from flwr.app import Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.utils import uint64_to_int64
from parties import ROOT, SOON, Federation, Machine, certifies, shoot, when
from reliability import DEADLINE_S, OUTCOMES, Outcome
from tiny_runs import rounds_of, same_run
from wiretap import found_in, pushed, secrets_of, words_in

from benchmarks.hostile_bank import HostileBank
from fedfinlora.deployment.app_bundle import code_sha256, installed_files
from fedfinlora.deployment.bank_settings import read_settings, settings_text
from fedfinlora.deployment.certificates import make_authority
from fedfinlora.deployment.door import peer_of
from fedfinlora.deployment.flower_patches.pieces import PIECE_BYTES
from fedfinlora.deployment.reach import bank_context
from fedfinlora.files import read_json
from fedfinlora.model.adapter import norm
from fedfinlora.privacy.head import Head
from fedfinlora.run.checkpoint import load_checkpoint
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.wire.messages import ALWAYS_SENT, TrainRequest
from fedfinlora.wire.reasons import SAFE_REASONS
from fedfinlora.wire.vectors import from_arrays

SHIFTED_CLOCK = Path(__file__).parents[1] / "shifted_clock"
LARGE = ("model.path=memory:llama-4-layers", "peft.rank=110")
"""788,480 numbers."""
SLOW_S = 400
"""For a round of six banks on a slow machine, whose deadline may be 150 seconds."""
DONE_1 = [(1, "begun"), (1, "sent")]
"""Round 1 in a bank's history."""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    found = Federation(tmp_path_factory.mktemp("federation"))
    try:
        found.begins()
        yield found
    finally:
        found.ends()


def events(run: Path, name: str) -> list[dict[str, Any]]:
    """Events of one name in a run's progress so far."""
    try:
        lines = (run / "progress.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [event for event in map(json.loads, lines) if event["event"] == name]


def begins(machine: Machine, round_number: int) -> None:
    """Wait until a bank begins a round once more."""
    before = machine.history().count((round_number, "begun"))
    when(
        lambda: machine.history().count((round_number, "begun")) > before,
        f"{machine.home.name} begins round {round_number}",
    )


def retries(machine: Machine) -> int:
    """How often a bank's SuperNode has found no coordinator so far."""
    return (machine.bank / "supernode.log").read_text("utf-8").count(OUTCOMES["cut"].says)


def server_process(run: Path) -> psutil.Process:
    return psutil.Process(int(events(run, "run_start")[-1]["process"]))


def failed(command: subprocess.Popen[bytes], aggregator: Machine) -> str:
    """The line with which `coordinator run` ended in failure."""
    assert command.wait(timeout=240) == 1
    last = aggregator.said("coordinator run").strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "coordinator run resume=" in last
    return last


@contextmanager
def small_disk(folder: Path, megabytes: int = 64) -> Iterator[Path]:
    """A file system of its own, which only root can make; for others the plain folder."""
    folder.mkdir()
    if os.geteuid() != 0:
        yield folder
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, run: Path) -> None:
    """Leave no byte free on a small disk; where there is none, let the server write no more."""
    if not os.path.ismount(disk):
        server_process(run).rlimit(psutil.RLIMIT_FSIZE, (0, 0))
        return
    with open(disk / "ballast", "wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(b"0" * 4096)
        except OSError:
            return


def configs(message: Message) -> dict[str, dict[str, Any]]:
    return {name: dict(record) for name, record in message.content.config_records.items()}


def nothing_private_has_left(federation: Federation) -> None:
    """No row, path, key or name of south's machine in what it has sent so far, nor in what the aggregator holds, its
    database above all.
    """
    south, tap = federation.south, federation.tap
    secrets = secrets_of(south.bank, south.home / "rows")
    assert found_in(tap.sent(), {**secrets, "any key": [b"PRIVATE KEY"]}) == set()
    assert words_in(tap.requests(), [socket.gethostname(), south.user]) == set()
    held = [file.read_bytes() for file in federation.aggregator.home.rglob("*") if file.is_file()]
    assert found_in(held, {**secrets, "paths": [str(south.home).encode()]}) == set()


class CutRun(NamedTuple):
    """A run in whose first round south's line is cut."""

    folder: Path
    command: subprocess.Popen[bytes]
    since: float
    """When it was cut, in seconds."""
    earlier: int
    """How many lines south's history had before the run."""
    tries: int
    """How often south had found no coordinator before the cut."""


@pytest.fixture(scope="module")
def cut_run(federation: Federation) -> Iterator[CutRun]:
    """A run of two rounds and an adapter of 3 MB, on a small disk of the aggregator's. South keeps most figures back,
    and its line is slow, and is cut while it trains in round 1. What concerns others is tried in the meantime.

    A line on which 2.1 MB pass while south waits for an answer: harder than 1 Mbit/s and Flower's 30 seconds, in which
    3.75 MB pass.
    """
    south, way = federation.south, federation.way
    settings = south.bank / "bank.yaml"
    before = settings.read_text("utf-8")
    bank = read_settings(settings)[0]
    settings.write_text(settings_text(replace(bank, policy=replace(bank.policy, reveal=("rows",)))))
    way.speed = 350_000
    try:
        with small_disk(federation.aggregator.home / "disk") as disk:
            earlier = len(south.history())
            command = federation.run(disk / "disturbed", *LARGE)
            begins(south, 1)
            tries = retries(south)
            way.cut()
            yield CutRun(disk / "disturbed", command, time.monotonic(), earlier, tries)
    finally:
        way.speed = 0
        settings.write_text(before)


class Disturbed(NamedTuple):
    """The cut run at its end, after all that happened to it."""

    folder: Path
    undisturbed: Path
    """The same run in one process, without any fault."""
    history: list[tuple[int, str]]
    """South's, up to the beginning of round 2."""
    failures: dict[str, str]
    """Fault -> the line with which `coordinator run` ended."""
    sent: list[Message]
    """What south has sent in it."""


@pytest.fixture(scope="module")
def disturbed(federation: Federation, cut_run: CutRun) -> Disturbed:
    aggregator, south, way, run = federation.aggregator, federation.south, federation.way, cut_run.folder
    failures: dict[str, str] = {}
    undisturbed = federation.in_one_process("undisturbed", *LARGE)

    # A minute after the cut south's line is whole again, and breaks once more while south sends.
    when(lambda: time.monotonic() - cut_run.since > 60, "a minute has passed")
    assert retries(south) >= cut_run.tries + 4
    carried = way.bytes
    way.mend()
    when(lambda: way.bytes > carried + 1_000_000, "south has sent a third")
    tries = retries(south)
    way.cut()
    when(lambda: retries(south) >= tries + 2, "south tries to connect")
    way.mend()
    when(lambda: len(events(run, "round_done")) == 1, "round 1 is closed")
    way.speed = 0

    # The server's process is killed in round 2.
    when(lambda: (2, "begun") in south.history()[cut_run.earlier :], "south begins round 2")
    server_process(run).kill()
    history = south.history()[cut_run.earlier :][:3]
    failures["server killed"] = failed(cut_run.command, aggregator)

    # The disk is full at the end of round 2.
    command = federation.resume(run)
    begins(south, 2)
    fill(run.parent, run)
    failures["disk full"] = failed(command, aggregator)
    assert not list(run.rglob("*.tmp"))
    (run.parent / "ballast").unlink(missing_ok=True)

    # The SuperLink is killed in round 2; the banks come back by themselves to the one that takes its place.
    command = federation.resume(run)
    begins(south, 2)
    psutil.Process(federation.coordinator.pid).children()[0].kill()
    assert federation.coordinator.wait(timeout=180) == 1
    failures["superlink killed"] = failed(command, aggregator)
    federation.starts_coordinator()
    assert federation.resume(run).wait(timeout=240) == 0, aggregator.said("coordinator run")
    assert federation.south_bank.poll() is None
    return Disturbed(run, undisturbed, history, failures, pushed(federation.tap.requests()))


@pytest.mark.slow
def test_a_refused_bank_learns_the_reason(federation: Federation, cut_run: CutRun, tmp_path: Path) -> None:
    make_authority(tmp_path / "other", 10)
    cousin, misled = federation.guest("cousin"), federation.guest("misled", port=federation.plain_port)
    (cousin.bank / "ca.crt").write_bytes((tmp_path / "other" / "ca.crt").read_bytes())
    certifies(cousin.bank, "cousin", tmp_path / "other")
    certifies(misled.bank, "misled", federation.aggregator.coordinator)
    behind, far_behind, ahead, _ = federation.strangers
    for machine, shift_s in ((behind, -240), (far_behind, -360), (ahead, 60)):
        machine.starts("bank", "start", also={"PYTHONPATH": str(SHIFTED_CLOCK), "CLOCK_SHIFT_S": str(shift_s)})
    for machine in (cousin, misled):
        machine.starts("bank", "start")
    assert OUTCOMES["clock far behind"].says in refused(far_behind)
    assert OUTCOMES["clock ahead"].says in refused(ahead)
    assert OUTCOMES["authority"].says in refused(cousin)
    assert OUTCOMES["plain"].says in refused(misled)
    log = behind.bank / "supernode.log"
    when(lambda: "SuperNode ID" in log.read_text(), OUTCOMES["clock behind"].does)
    try:
        answer = httpx.get(f"http://127.0.0.1:{federation.port}/health", timeout=10)
    except httpx.TransportError:
        answer = None
    assert answer is None, OUTCOMES["plain client"].does
    behind.ends()


def refused(machine: Machine) -> str:
    """What `bank start` said before it ended with status 1."""
    assert machine.running[-1].wait(timeout=240) == 1
    return machine.said("bank start")


@pytest.mark.slow
def test_a_request_of_two_gigabytes_is_refused_before_it_is_read(federation: Federation) -> None:
    superlink = psutil.Process(federation.coordinator.pid).children()[0].pid
    before = peak_from_now(superlink)
    trusted = bank_context(federation.north.bank)
    certificate = load_pem_x509_certificate((federation.north.bank / "bank.crt").read_bytes())
    key = b64encode(peer_of(certificate.public_bytes(Encoding.DER)).header).decode()
    head = f"POST /v1/fleet/push-object HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {PROTOBUF_MEDIA_TYPE}\r\n"
    head += f"{FLEET_HTTP_PUBLIC_KEY_HEADER}: {key}\r\n"

    def answer(more: str, pieces: int) -> str:
        """The first line that the SuperLink says to a request with so many pieces of a mebibyte; "" where it just
        closes.
        """
        with (
            socket.create_connection(("127.0.0.1", federation.port), timeout=60) as plain,
            trusted.wrap_socket(plain, server_hostname="127.0.0.1") as link,
        ):
            try:
                link.sendall(f"{head}{more}\r\n\r\n".encode())
                for _ in range(pieces):
                    link.sendall(b"100000\r\n" + bytes(2**20) + b"\r\n")
                return link.recv(4096).decode().partition("\r\n")[0]
            except OSError:
                return ""

    assert OUTCOMES["two gigabytes"].says in answer(f"Content-Length: {2 * 2**30}", 0)
    assert "200" not in answer("Transfer-Encoding: chunked", 64)
    assert peak_bytes(superlink) - before < 48 * 2**20


@pytest.mark.slow
def test_a_second_coordinator_of_a_home_is_refused_and_says_who_is_there(
    federation: Federation, cut_run: CutRun
) -> None:
    second = federation.aggregator.types("coordinator", "start", timeout=180)
    assert second.returncode == 1
    said = second.stderr.strip().splitlines()[-1]
    assert f"{OUTCOMES['two coordinators'].says} {federation.coordinator.pid} on " in said
    assert "coordinator start" in said
    assert federation.coordinator.poll() is None


@pytest.mark.slow
def test_a_run_through_everything_ends_in_the_same_bytes(disturbed: Disturbed) -> None:
    assert disturbed.history == [*DONE_1, (2, "begun")], OUTCOMES["cut"].does
    assert OUTCOMES["server killed"].says in disturbed.failures["server killed"]
    assert OUTCOMES["disk full"].says in disturbed.failures["disk full"]
    assert OUTCOMES["superlink killed"].says in disturbed.failures["superlink killed"]
    assert same_run(disturbed.folder, disturbed.undisturbed)


@pytest.mark.slow
def test_a_reply_is_update_layout_id_and_the_metrics_the_policy_allows(
    federation: Federation, disturbed: Disturbed
) -> None:
    hello = next(message for message in disturbed.sent if message.metadata.message_type == "query")
    assert configs(hello) == {"reply": {"status": "ok", "bank": "south", "source-sha256": source_fingerprint()}}
    trained = [message for message in disturbed.sent if message.metadata.message_type == "train"]
    newest = {message.content.config_records["reply"]["round"]: message for message in trained}
    for line in rounds_of(disturbed.folder):
        reply = newest[line["round"]]
        assert set(reply.content) == {"reply", "delta", "figures"}
        [south] = [bank for bank in line["banks"] if bank["bank"] == "south"]
        head = {"status": "ok", "bank": "south", "layout-id": load_checkpoint(disturbed.folder).layout_id}
        ledger = {"ledger-number": south["ledger"]["number"], "ledger-hash": south["ledger"]["hash"]}
        signed = {key: configs(reply)["reply"][key] for key in ("run", "round", "attempt", "request", "signature")}
        assert configs(reply) == {"reply": {**head, "policy-sha256": south["policy_sha256"], **ledger, **signed}}
        assert ledger_lines(federation.south)[south["ledger"]["number"] - 1]["hash"] == south["ledger"]["hash"]
        assert set(reply.content.metric_records["figures"]) == {*ALWAYS_SENT, "rows"}
        # The delta is the one that the round's record speaks of, and the search for secrets would find it.
        arrays = reply.content.array_records["delta"]
        delta = from_arrays(arrays, sum(array.shape[0] for array in arrays.values()))
        assert norm(delta) == south["delta_norm"]
        assert found_in(federation.tap.sent(), {"delta": [delta[:1000].tobytes()]}) == {"delta"}


@pytest.mark.slow
def test_a_large_adapter_passes_a_slow_line_in_pieces_that_are_sent_once(
    federation: Federation, disturbed: Disturbed
) -> None:
    statuses = [bank["status"] for line in rounds_of(disturbed.folder) for bank in line["banks"]]
    assert statuses == ["ok"] * 4, OUTCOMES["slow"].does
    first = next(message for message in disturbed.sent if message.metadata.message_type == "train").metadata.run_id
    requests = [request for request in federation.tap.requests() if request.path == "/v1/fleet/push-object"]
    pushes = [PushObjectRequest.FromString(request.body) for request in requests]
    pieces = [push for push in pushes if push.object_content.startswith(ArrayChunk.__qualname__.encode())]
    assert max(len(piece.object_content) for piece in pieces) < PIECE_BYTES + 100
    times = Counter(piece.object_id for piece in pieces if piece.run_id == first)
    assert len(times) >= 6, "an answer of 3 MB"
    assert times.total() - len(times) <= 2, "no more than the two that were on their way when the line was cut"


def content_of(sender: HostileBank, request: TrainRequest, delta: np.ndarray | None = None, **head: Any) -> RecordDict:
    """A private reply's content, with the head of a ledger that has a line a round."""
    return sender.content(request, delta, ledger=Head(request.round, f"{request.round:064x}"), **head)


class Play:
    """What four hostile banks do in each of three rounds."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._coordinator = federation.aggregator.coordinator
        self.over = threading.Event()
        self.dawdled = 0
        """How many bytes of an answer came one by one."""
        self.wanted: dict[str, bool] = {}
        """Whether the SuperLink wanted an answer."""
        self.old: dict[str, tuple[Message, RecordDict]] = {}
        self.disk_bytes: list[int] = []
        """Of the SuperLink's database before and after the 64 MiB."""

    def _stored(self) -> int:
        return sum(file.stat().st_size for file in self._coordinator.glob("state.db*"))

    def east(self, bank: HostileBank, message: Message, request: TrainRequest) -> None:
        """NaN; silent; late, then in north's name with the right id of north's request, and in north's name as its own
        answer.
        """
        if request.round == 1:
            bank.sends(message, content_of(bank, request, np.full(request.adapter.size, np.nan, np.float32)))
        if request.round == 2:
            self.old["east"] = message, content_of(bank, request)
        if request.round == 3:
            bank.sends(*self.old["east"])
            self.forged = [
                self.forges(bank, message, each, request) for each in requests_to(self._coordinator, "north")
            ]
            bank.sends(message, content_of(bank, request, bank="north"))

    def forges(self, bank: HostileBank, message: Message, answers: str, request: TrainRequest) -> int:
        """Push what north would answer to its request, as Flower (1.41) takes it. Returns the status that comes of
        it.
        """
        north = int(read_json(self._coordinator / "banks.json")["north"])
        metadata = Metadata(
            run_id=message.metadata.run_id, message_id="", src_node_id=north, dst_node_id=message.metadata.src_node_id,
            reply_to_message_id=answers,
            group_id=message.metadata.group_id, created_at=time.time(), ttl=60.0, message_type="train",
        )  # fmt: skip
        forged = make_message(metadata=metadata, content=content_of(bank, request, bank="north"))
        forged.metadata.__dict__["_message_id"] = forged.object_id
        with pytest.raises(RunNotRunningException) as refusal:  # what Flower's client makes of a 403
            bank.pushes(forged, get_object_tree(forged), {})
        answer: Any = refusal.value.__context__
        return int(answer.response.status_code)

    def west(self, bank: HostileBank, message: Message, request: TrainRequest) -> None:
        """Bytes that are no message; 64 MiB; another layout."""
        if request.round == 1:
            piece = ArrayChunk(memoryview(b"no message"))
            head = Message(RecordDict(), reply_to=message)
            head.metadata.__dict__["_message_id"] = piece.object_id
            bank.pushes(head, get_object_tree(piece), {piece.object_id: piece})
        if request.round == 2:
            self.disk_bytes = [self._stored()]
            with pytest.raises(RunNotRunningException):  # what Flower's client makes of a 403
                bank.sends(message, content_of(bank, request, np.ones(2**24, np.float32)))
            self.disk_bytes.append(self._stored())
        if request.round == 3:
            bank.sends(message, content_of(bank, request, layout_id="0" * 64))

    def up(self, bank: HostileBank, message: Message, request: TrainRequest) -> None:
        """Norm 1000 and then once more, better; announced and never sent; an old message and its numbers again."""
        if request.round == 1:
            size = request.adapter.size
            self.old["up"] = message, content_of(bank, request)
            self.wanted["once"] = bank.sends(
                message, content_of(bank, request, np.full(size, 1000 / size**0.5, np.float32))
            )
            self.wanted["twice"] = bank.sends(*self.old["up"])
        if request.round == 2:
            bank.sends(message, content_of(bank, request), whole=False)
        if request.round == 3:
            self.wanted["replayed"] = bank.sends(*self.old["up"])
            bank.sends(message, self.old["up"][1])

    def drip(self, bank: HostileBank, message: Message, request: TrainRequest) -> None:
        """Dawdles in round 2."""
        if request.round == 2:
            threading.Thread(target=self._dawdles, daemon=True).start()
        else:
            bank.sends(message, content_of(bank, request))

    def _dawdles(self) -> None:
        """Send a piece of an answer at 0.1 byte a second."""
        with begins_a_body(self._federation, self._federation.strangers[3]) as link:
            while not ended(link) and not self.over.wait(10):
                link.sendall(b"x")
                self.dawdled += 1


class HostileRun(NamedTuple):
    """A private run of three rounds with two honest banks and four hostile ones, in a crowd."""

    folder: Path
    play: Play
    earlier: int
    lines: int
    """How many lines south's history and ledger had before."""
    peak_bytes: int
    """By how much the server's memory grew in round 2."""
    deadline_s: int

    def says(self, outcome: Outcome) -> str:
        """What the operator reads, with this run's deadline."""
        return outcome.says.replace(f"={DEADLINE_S} s", f"={self.deadline_s} s")


@pytest.fixture(scope="module")
def hostile_run(federation: Federation) -> HostileRun:
    """South is killed while it trains in round 2, and started again; from then on a thousand connections idle."""
    south, play = federation.south, Play(federation)
    run = federation.aggregator.home / "runs" / "hostile"
    earlier, lines = len(south.history()), len(ledger_lines(south))
    # An honest bank that starts again is in time on a slow machine, too.
    deadline_s = min(max(DEADLINE_S, round(4 * federation.start_s)), 150)
    with played(federation, play):
        privately = ("privacy=example", "privacy.epsilon=8", "train.steps_per_round=60")
        command = federation.run(run, "num_server_rounds=3", f"strategy.deadline_s={deadline_s}", *privately, banks=6)
        when(lambda: len(events(run, "round_done")) == 1, "round 1 is closed", SLOW_S)
        server = server_process(run).pid
        before = peak_from_now(server)
        when(lambda: booked(south)[lines:] == [1, 2], "south has booked round 2", SLOW_S)
        shoot(federation.south_bank, int((south.bank / "state" / "worker.pid").read_text()))
        assert south.history()[earlier:] == [*DONE_1, (2, "begun")], "south was killed while it trained"
        starts = connections(south)
        federation.south_bank = south.starts("bank", "start", also=SOON)
        when(lambda: connections(south) > starts, "south is connected again")
        with idle_connections(federation.port, 1000) as opened:
            when(lambda: len(events(run, "round_done")) == 2, "round 2 is closed", SLOW_S)
            peak = peak_bytes(server) - before
            when(lambda: len(opened) > 1000, "idle connections were ended and came again")
            assert command.wait(timeout=SLOW_S) == 0, federation.aggregator.said("coordinator run")
        return HostileRun(run, play, earlier, lines, peak, deadline_s)


def connections(machine: Machine) -> int:
    """How often a bank's SuperNode has been let in so far."""
    return (machine.bank / "supernode.log").read_text("utf-8").count("SuperNode ID")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_late_and_hostile_banks_cost_their_own_answers_only(
    federation: Federation, hostile_run: HostileRun
) -> None:
    south, play, run = federation.south, hostile_run.play, hostile_run.folder
    earlier, lines = hostile_run.earlier, hostile_run.lines
    assert hostile_run.peak_bytes < 32 * 2**20, "of the 64 MiB that west has sent"
    first, second, third = (heard(run, number) for number in (1, 2, 3))
    assert first["east"] == OUTCOMES["nan"].says
    assert first["west"] == OUTCOMES["no message"].says
    assert first["up"] == OUTCOMES["norm"].says, OUTCOMES["request lost"].does
    # It may or may not be seen between leaving and coming back.
    assert second["south"] in OUTCOMES["bank killed"].says.split(", or ")
    assert second["east"] == hostile_run.says(OUTCOMES["bank late"])
    assert second["west"] == hostile_run.says(OUTCOMES["large"])
    assert second["up"] == hostile_run.says(OUTCOMES["stall"])
    before, after = play.disk_bytes
    assert after - before < 8 * 2**20, OUTCOMES["large"].does
    assert third["east"] == OUTCOMES["name"].says
    assert set(play.forged) == {403}, "with the right id of north's request"
    assert third["west"].startswith(OUTCOMES["layout"].says)
    assert [each["north"] for each in (first, second, third)] == ["ok"] * 3
    assert [each["south"] for each in (first, third)] == ["ok"] * 2
    assert play.wanted["once"]
    assert not play.wanted["twice"], OUTCOMES["twice"].does
    assert not play.wanted["replayed"], OUTCOMES["older"].does
    assert third["up"] == "ok"

    # Round 2 is north's alone: the step is as long as its delta.
    line = rounds_of(run)[1]
    [north] = [bank for bank in line["banks"] if bank["bank"] == "north"]
    assert line["update_norm"] == pytest.approx(north["delta_norm"])
    # What was begun is booked, what was sent is written down.
    assert south.history()[earlier:] == [*DONE_1, (2, "begun"), (3, "begun"), (3, "sent")]
    assert booked(south)[lines:] == [1, 2, 3]
    spent = [line for line in ledger_lines(south)[lines:] if not line["noise_multiplier"] > 0]
    assert spent == [], "all of them had noise"
    nothing_private_has_left(federation)


def requests_to(coordinator: Path, bank: str) -> list[str]:
    """Ids of a bank's open requests, from the SuperLink's database, which no bank sees: whoever guesses one right has
    no more than this.
    """
    node = int(read_json(coordinator / "banks.json")[bank])
    with closing(sqlite3.connect(f"{(coordinator / 'state.db').as_uri()}?mode=ro", uri=True)) as link:
        rows = link.execute(
            "SELECT message_id FROM message_ins WHERE dst_node_id = ?", (uint64_to_int64(node),)
        ).fetchall()
    assert rows
    return [str(row[0]) for row in rows]


@contextmanager
def played(federation: Federation, play: Play) -> Iterator[None]:
    """Four hostile banks that are connected; up does not get its first request."""
    acts = zip(federation.strangers, (play.east, play.west, play.up, play.drip), strict=True)
    hostile = [
        HostileBank(machine.home.name, machine.bank, federation.port, act, deaf=act == play.up) for machine, act in acts
    ]
    try:
        yield
    finally:
        play.over.set()
        for bank in hostile:
            bank.ends()


def booked(machine: Machine) -> list[int]:
    """The rounds in a bank's privacy ledger."""
    return [int(line["round"]) for line in ledger_lines(machine)]


def ledger_lines(machine: Machine) -> list[dict[str, Any]]:
    """The whole lines of a bank's privacy ledger, read as they are: to open it would wait for the bank."""
    file = machine.bank / "ledger" / "ledger.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]] if file.exists() else []


def heard(run: Path, round_number: int) -> dict[str, str]:
    """Bank -> what the round's record says of it: "ok", or code and reason."""
    banks = rounds_of(run)[round_number - 1]["banks"]
    return {bank["bank"]: "ok" if bank["status"] == "ok" else f"{bank['code']}: {bank['reason']}" for bank in banks}


def peak_from_now(process: int) -> int:
    """Let the system measure a process's peak again. Returns what it has now."""
    Path(f"/proc/{process}/clear_refs").write_text("5")
    return peak_bytes(process)


def peak_bytes(process: int) -> int:
    """The most memory that a process has had at once."""
    words = Path(f"/proc/{process}/status").read_text().split()
    return int(words[words.index("VmHWM:") + 1]) * 1024


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_survives_a_thousand_idle_connections_and_a_trickling_bank(
    federation: Federation, hostile_run: HostileRun
) -> None:
    """The idle ones are another network's each fifty; when they are ended they come again. Drip begins its answer in
    round 2 and dawdles in it.
    """
    answers = [heard(hostile_run.folder, number)["drip"] for number in (1, 2, 3)]
    assert answers == ["ok", hostile_run.says(OUTCOMES["crowd"]), "ok"]
    assert hostile_run.play.dawdled, "else nothing was tried"
    assert federation.north_bank.poll() is None


def begins_a_body(federation: Federation, machine: Machine) -> ssl.SSLSocket:
    """A connection with a bank's certificate on which the head of a piece of an answer is sent, and no byte of the
    piece.
    """
    certificate = load_pem_x509_certificate((machine.bank / "bank.crt").read_bytes())
    key = b64encode(peer_of(certificate.public_bytes(Encoding.DER)).header).decode()
    plain = socket.create_connection(("127.0.0.1", federation.port), timeout=60)
    link = bank_context(machine.bank).wrap_socket(plain, server_hostname="127.0.0.1")
    head = f"POST /v1/fleet/push-object HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {PROTOBUF_MEDIA_TYPE}\r\n"
    link.sendall(f"{head}Content-Length: {PIECE_BYTES}\r\n{FLEET_HTTP_PUBLIC_KEY_HEADER}: {key}\r\n\r\n".encode())
    return link


def ended(link: ssl.SSLSocket) -> bool:
    """Whether the other end has closed it; nothing is sent by it otherwise."""
    link.settimeout(0.01)
    try:
        return link.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@contextmanager
def idle_connections(port: int, count: int) -> Iterator[list[int]]:
    """So many connections that say nothing, from twenty addresses, opened again when they are ended. Gives a list that
    has an entry for each that was opened.
    """
    held: list[socket.socket] = []
    opened: list[int] = []
    over = threading.Event()

    def opens(number: int) -> socket.socket:
        one = socket.socket()
        one.bind((f"127.0.0.{2 + number % 20}", 0))
        one.settimeout(10)
        one.connect(("127.0.0.1", port))
        one.setblocking(False)
        opened.append(number)
        return one

    def keeps() -> None:
        while not over.wait(1):
            for number, one in enumerate(held):
                with suppress(BlockingIOError, OSError):
                    if not one.recv(1):
                        one.close()
                        held[number] = opens(number)

    held += [opens(number) for number in range(count)]
    thread = threading.Thread(target=keeps, daemon=True)
    thread.start()
    try:
        yield opened
    finally:
        over.set()
        thread.join(timeout=30)
        for one in held:
            one.close()


@pytest.mark.slow
def test_code_that_a_bank_has_not_installed_does_not_run_there(federation: Federation, tmp_path: Path) -> None:
    """One line of client_app is another in the aggregator's checkout. South's security team has read it."""
    aggregator, north, south = federation.aggregator, federation.north, federation.south
    for name in (*installed_files(), ".gitignore"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    with open(tmp_path / "client_app" / "app.py", "a", encoding="utf-8") as stream:
        stream.write('__import__("pathlib").Path.home().joinpath("it ran").touch()\n')
    settings = south.bank / "bank.yaml"
    own = settings.read_text("utf-8")
    settings.write_text(own.replace("code: []", f"code: [{code_sha256(installed_files(tmp_path))}]"), "utf-8")
    # A coordinator that was started with other code refuses it itself.
    elsewhere = federation.run(aggregator.home / "runs" / "elsewhere", "num_server_rounds=1", checkout=tmp_path)
    assert elsewhere.wait(timeout=240) == 1
    said = "only the code that is installed where it was started; of this bundle client_app/app.py differs"
    assert said in aggregator.said("coordinator run")
    federation.coordinator.terminate()
    federation.coordinator.wait(timeout=180)
    federation.starts_coordinator(checkout=tmp_path)
    run = aggregator.home / "runs" / "changed"
    earlier = [len(bank.history()) for bank in (north, south)]
    try:
        command = federation.run(run, "num_server_rounds=1", checkout=tmp_path)
        assert command.wait(timeout=240) == 0, aggregator.said("coordinator run")
    finally:
        settings.write_text(own, "utf-8")
    assert heard(run, 1) == {"north": f"policy-code: {SAFE_REASONS['policy-code']}", "south": "ok"}
    assert not (north.home / "it ran").exists()
    assert (south.home / "it ran").exists(), "else nothing was tried"
    assert north.history()[earlier[0] :] == [(0, "refused"), (1, "refused")]
    assert south.history()[earlier[1] :] == DONE_1
    last = north.types("bank", "history").stdout.splitlines()[-1]
    assert "refused policy-code" in last
    assert OUTCOMES["other code"].says in last
    assert not [file for file in (north.bank / "flwr").rglob("*.py") if b'"it ran"' in file.read_bytes()]
    for file in (*run.rglob("*"), aggregator.coordinator / "superlink.log"):
        assert file.is_dir() or str(north.home).encode() not in file.read_bytes()
