"""How the aggregator copes with many banks: `python -m benchmarks.load --banks 200 [--rounds 2] [--numbers 4718592]
[--json FILE]`.

The aggregator is the real one: `coordinator init`, `start` and `run` on loopback, TLS and node authentication on, a
tiny model whose adapter has as many numbers as that of Llama 3.1 8B with rank 8 on q, k and v. The banks are two
hundred identities in this one process, each with its own enrolled key and connection, which speak Flower's Fleet API
and answer each request with random numbers at once: two hundred SuperNodes would not fit on one machine, and their
training is not what is measured. The times are therefore those of sending, checking, storing and averaging. Memory is
resident memory, sampled ten times a second, beyond what the process had when the first round began.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.benches.round import running, typed
from fedfinlora.compose import PROJECT_ROOT
from fedfinlora.deployment.bank_keys import make_node_key, tls_key
from fedfinlora.deployment.certificates import CA_CERTIFICATE, issue_bank, open_authority, write_private
from fedfinlora.deployment.coordinator_home import Coordinator
from fedfinlora.deployment.flower_link import free_port
from fedfinlora.deployment.flower_patches.pieces import PIECES
from fedfinlora.deployment.flower_patches.presenting import presenting
from fedfinlora.deployment.processes import program_of
from fedfinlora.deployment.reach import AUTHORITY, CERTIFICATE, TLS_KEY
from fedfinlora.errors import UserError
from fedfinlora.files import read_lines, write_json
from fedfinlora.provenance.evidence import answer_signed, request_statement
from fedfinlora.provenance.signatures import Signer, load_signer
from fedfinlora.run.origin import git_commit, source_fingerprint
from fedfinlora.wire.messages import Figures, pack_reply, unpack_request

LLAMA_NUMBERS = 4_718_592
"""Numbers of the adapter of Llama 3.1 8B with rank 8 on q, k and v."""
TINY_NUMBERS_A_RANK = 640
"""Numbers of the tiny model's adapter on q, k and v, for each rank: two layers of 64 + 64, 64 + 32 and 64 + 32."""


@dataclass
class Memory:
    """Resident memory of some processes, in bytes: the largest, and that at the time `mark` was called."""

    find: Callable[[], list[psutil.Process]]
    most: int = 0
    marked: int = 0
    now: int = 0
    samples: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Sample until `end`."""
        while not self._ended.wait(0.1):
            total = 0
            for process in self.find():
                with suppress(psutil.Error):
                    total += process.memory_info().rss
            self.samples += bool(total)
            self.now = total or self.now
            self.most = max(self.most, total)

    def mark(self) -> None:
        """What is in memory now is the start; the largest counts from here on."""
        self.marked = self.most = self.now
        self.samples = 0

    def end(self) -> None:
        """Sample no more."""
        self._ended.set()

    @property
    def beyond(self) -> int:
        """The largest less the start. UserError if hardly anything was seen of the processes."""
        if self.samples < 10:
            raise UserError("The processes' memory was not seen: are they called otherwise in this version of Flower?")
        return self.most - self.marked


def measure(banks: int, rounds: int, numbers: int) -> dict[str, Any]:
    """One deployment with so many banks; its figures."""
    with tempfile.TemporaryDirectory(prefix="fedfinlora-load-") as place, ExitStack() as stack:
        folder, home = Path(place), Path(place) / "coordinator"
        names = [f"bank-{index:04d}" for index in range(banks)]
        port = free_port()
        typed("coordinator", "init", "--home", str(home), "--listen", "127.0.0.1", "--port", str(port))
        start = ["coordinator", "start", "--home", str(home)]
        coordinator = psutil.Process(stack.enter_context(running(home, *start, until="coordinator is up")))
        keys = _enroll(home, names, folder / "keys")
        connections = [stack.enter_context(_connected(port, folder / "keys" / name)) for name in keys]
        print(f"{len(connections)} banks are connected", flush=True)
        server = Memory(lambda: _named(coordinator, "flwr-serverapp"))
        link = Memory(lambda: _named(coordinator, "flower-superlink"))
        for memory in (server, link):
            threading.Thread(target=memory.watch, daemon=True).start()
            stack.callback(memory.end)
        rank = round(numbers / TINY_NUMBERS_A_RANK)
        words = [
            "model=tiny-random", "model.threads=1", "peft.target_modules=[q_proj,k_proj,v_proj]", f"peft.rank={rank}",
            f"num_server_rounds={rounds}", "evaluation=none",
            "strategy.wait_s=600", f"output_dir={folder}", "run_name=run",
        ]  # fmt: skip
        run = subprocess.Popen(
            [sys.executable, "-m", "fedfinlora", "coordinator", "run", "--home", str(home), "--banks", str(banks),
            *words],
            cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        stack.callback(run.kill)
        signers = [load_signer(folder / "keys" / name / "node.key") for name in names]
        answers = Answers(names, signers, numbers, lambda: [memory.mark() for memory in (server, link)])
        while run.poll() is None:
            if not sum(answers.answer(index, connection) for index, connection in enumerate(connections)):
                time.sleep(0.05)
        said = run.communicate()[0]
        lines = read_lines(folder / "run" / "rounds.jsonl") if run.returncode == 0 else []
    if not lines:  # not within: Flower's connections swallow what is raised there
        raise UserError(f"The run failed: {said}")
    adapter_bytes = 4 * rank * TINY_NUMBERS_A_RANK
    assert all(bank["status"] == "ok" for line in lines for bank in line["banks"])
    return {
        "banks": banks,
        "adapter_bytes": adapter_bytes,
        "round_s": [line["timings"]["total_s"] for line in lines],
        "aggregate_s": [line["timings"]["aggregate_s"] for line in lines],
        "bytes_up": lines[-1]["bytes_up"],
        "bytes_down": lines[-1]["bytes_down"],
        "server_beyond_start_adapters": server.beyond / adapter_bytes,
        "server_start_bytes": server.marked,
        "superlink_beyond_start_adapters": link.beyond / adapter_bytes,
        "superlink_start_bytes": link.marked,
    }


class Answers:
    """What the banks answer: who they are, and random numbers. One thread, since Flower keeps the identity of a process
    in one place.
    """

    def __init__(
        self, names: Sequence[str], signers: Sequence[Signer], numbers: int, on_first_request: Callable[[], Any]
    ) -> None:
        rank = round(numbers / TINY_NUMBERS_A_RANK)
        self._names, self._signers, self._on_first_request = names, signers, on_first_request
        self._delta = np.random.default_rng(0).normal(0.0, 1e-4, rank * TINY_NUMBERS_A_RANK).astype(np.float32)
        self._begun = False

    def answer(self, index: int, connection: tuple[Any, ...]) -> bool:
        """Answer the message that waits for one bank, if there is one."""
        from flwr.app import ConfigRecord, Message, RecordDict
        from flwr.supercore.inflatable.inflatable_object import (
            get_all_nested_objects,
            get_object_tree,
            iterate_object_tree,
        )
        from flwr.supercore.inflatable.inflatable_utils import (
            inflate_object_from_contents,
            pull_objects,
            push_object_contents_from_iterable,
        )
        from flwr.supercore.task_identity import TaskIdentity

        node, receive, send, _, _, pull, push, confirm = connection
        received = receive()
        if received is None:
            return False
        head, tree = received
        run, name = head.metadata.run_id, self._names[index]
        contents = pull_objects(
            [one.object_id for one in iterate_object_tree(tree)], lambda object_id: pull(run, object_id)
        )
        confirm(run, head.metadata.message_id)
        message: Any = inflate_object_from_contents(head.metadata.message_id, contents)
        message.metadata.__dict__["_message_id"] = head.metadata.message_id
        TaskIdentity.node_id, TaskIdentity.run_id, TaskIdentity.task_id = node, run, 1
        if head.metadata.message_type == "query":
            reply = RecordDict(
                {"reply": ConfigRecord({"status": "ok", "bank": name, "source-sha256": source_fingerprint()})}
            )
        else:
            if not self._begun:
                self._on_first_request()
                self._begun = True
            request = unpack_request(message.content)
            figures = Figures(
                rows=32, steps=1, tokens=1000, answer_tokens=100, train_loss=1.0, holdout_rows=0,
                holdout_loss=float("nan"), train_s=0.0, load_s=0.0, bank_rows=32,
                skipped_rows=0,
            )  # fmt: skip
            delta = self._delta * np.float32(
                1 + 1e-3 * index
            )  # every bank sends other bytes: Flower stores equal ones once
            reply = pack_reply(name, request.layout_id, delta, figures)
            answer_signed(reply, request_statement(message.content), self._signers[index])
        answer = Message(reply, reply_to=message)
        answer.metadata.__dict__["_message_id"] = answer.object_id
        objects = get_all_nested_objects(answer)
        wanted, session = send(answer, get_object_tree(answer), 0.0)
        push_object_contents_from_iterable(
            ((object_id, objects[object_id].deflate()) for object_id in wanted),
            lambda object_id, content: push(run, session, object_id, content),
        )
        return True


def _enroll(home: Path, names: Sequence[str], keys: Path) -> list[str]:
    """Make and register key and certificate for each name. Over one connection: `coordinator enroll` starts Flower's
    command line for each.
    """
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.proto.control_pb2 import RegisterNodeRequest
    from flwr.supercore.control.control_http_client import ControlHttpClient
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

    ids, authority = {}, open_authority(home)
    version = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
    address = f"127.0.0.1:{Coordinator(home).settings['control_port']}"
    with ControlHttpClient.from_server_address(
        address, False, (home / CA_CERTIFICATE).read_bytes(), [version]
    ) as client:
        for name in names:
            folder = keys / name
            make_node_key(folder / "node.key", name)
            public = folder / "node.key.pub"
            issue_bank(folder / CERTIFICATE, name, public.read_bytes(), 10, authority)
            write_private(folder / TLS_KEY, tls_key(folder / "node.key"))
            (folder / AUTHORITY).write_bytes((home / CA_CERTIFICATE).read_bytes())
            (home / "enrolled" / f"{name}.pub").write_bytes(public.read_bytes())
            ids[name] = str(
                client.RegisterNode(RegisterNodeRequest(public_key=try_load_public_key(public), name=name)).node_id
            )
    write_json(Coordinator(home).banks_file, ids)
    return list(names)


@contextmanager
def _connected(port: int, bank: Path) -> Iterator[tuple[Any, ...]]:
    """Flower's connection of the bank in a folder, which shows its certificate."""
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.supernode import fleet_http_connection

    private: Any = load_ssh_private_key((bank / "node.key").read_bytes(), None)
    flowers: Any = fleet_http_connection
    client = flowers.FleetHttpClient
    flowers.FleetHttpClient = presenting(client)
    try:
        with fleet_http_connection.http_request_response(
            f"127.0.0.1:{port}", False, str(bank / AUTHORITY), (private, private.public_key()), None, None
        ) as connection:
            flowers.FleetHttpClient = client
            yield connection
    finally:
        flowers.FleetHttpClient = client


def _named(parent: psutil.Process, program: str) -> list[psutil.Process]:
    """The processes of a program below `parent`."""
    found = []
    for process in parent.children(recursive=True):
        with suppress(psutil.Error):  # it has ended; the others are still counted
            found += [process] if program_of(process.cmdline()) == program else []
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__.splitlines()[0])
    parser.add_argument("--banks", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--numbers", type=int, default=LLAMA_NUMBERS, help="of the adapter")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    os.environ.update(PIECES)  # these banks send as SuperNodes do
    found = []
    for banks in options.banks:
        found.append(measure(banks, options.rounds, options.numbers))
        print(json.dumps(found[-1], allow_nan=False), flush=True)
        if options.json:
            command = f"python -m benchmarks.load --banks {' '.join(map(str, options.banks))} --rounds {options.rounds}"
            origin = {"command": command, "git_commit": git_commit(), "cpus": len(os.sched_getaffinity(0))}
            write_json(options.json, {"bench": "load", **origin, "runs": found})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
