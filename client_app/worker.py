"""A process per bank that keeps the base model between messages.

Flower starts a new client process for every message, which would load the model each time. With `worker=true` in the
node config (`bank start` sets it) the client process checks the request, hands it over a local socket, and sends back
what comes. The worker is started on demand, also after a crash, and ends after a while without work. Where it cannot be
had the client process does the work itself. It has the bank's rows in memory, so it ends with its bank, whose process
the node config names (`bank-process`). PR_SET_PDEATHSIG would not do: its parent, a client process, ends after each
message.

The socket lies in a folder of mode 0700, has mode 0600, and takes connections of the same user only. One frame is a
JSON line, then the raw float32 numbers that it announces. Another version of the code has another socket.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from client_app.bank import RoundReply, train_round
from client_app.facts import BankFacts, bank_facts
from fedfinlora.config.values import build, to_json
from fedfinlora.errors import UserError
from fedfinlora.logs import about, show_logs
from fedfinlora.model.adapter import Vector
from fedfinlora.model.block_means import from_text, to_text
from fedfinlora.model.devices import gpus_here
from fedfinlora.privacy.head import Head
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.system.locks import wait_for
from fedfinlora.system.process_identity import ProcessIdentity
from fedfinlora.wire.messages import BankError, Figures, TrainRequest
from fedfinlora.wire.reasons import SAFE_REASONS

log = logging.getLogger("fedfinlora.bank")
IDLE_S = 900.0
"""A worker without work ends after so many seconds."""
REQUEST_S = 60.0
"""Who connects must send, and take the answer, without a longer pause: a silent client delays no one
ever.
"""
START_S = 60.0
"""Longest wait for a worker that was started."""
WATCH_S = 0.2
"""How often a worker looks whether its bank still runs."""
LONGEST_LINE = 2**20
LARGEST_VECTOR = 2**28
"""Numbers of an adapter at most: a gibibyte."""
LONGEST_SOCKET_PATH = 107
"""Bytes of a Unix socket's path."""
PROCESS_FILE = "worker.pid"
ROOT = Path(__file__).resolve().parents[1]


class WorkerGone(Exception):
    """There is no worker to talk to; nothing was handed over."""


def train_in_worker(request: TrainRequest, facts: BankFacts, node_config: Mapping[str, Any]) -> RoundReply:
    """`train_round` in the bank's worker, or here where none can be had. A worker that dies at work is a BankError: the
    round may be booked.
    """
    try:
        connection = _connected(facts, node_config)
    except WorkerGone as error:
        log.warning("no worker (%s): the model is loaded in this process", error)
        return train_round(request, facts)
    values = {
        "node_config": dict(node_config), "config": to_json(request.config), "run": request.run, "round": request.round,
        "layout_id": request.layout_id, "source_sha256": request.source_sha256, "silent": request.silent,
        "ledger_heads": {bank: asdict(head) for bank, head in request.ledger_heads.items()},
        "second_moments": to_text(request.second_moments),
    }  # fmt: skip
    with connection, connection.makefile("rwb") as stream:
        try:
            _send(stream, values, request.adapter)
            answer, delta = _receive(stream)
        except (OSError, ValueError) as error:
            code = "privacy" if request.config.privacy.in_the_bank else "internal"
            raise BankError(
                code, f"the worker ended while it worked ({error}); the next round starts another"
            ) from error
    if answer["status"] != "ok":
        raise BankError(str(answer["code"]) if answer["code"] in SAFE_REASONS else "internal", str(answer["detail"]))
    ledger = Head(**answer["ledger"]) if answer["ledger"] else None
    moments = from_text(str(answer["second_moments"]))
    return RoundReply(delta, str(answer["layout_id"]), Figures(**answer["figures"]), ledger, moments)


def end_with(bank: ProcessIdentity, path: Path) -> None:
    """End this process at once when `bank` has ended, and take its socket away."""

    def watch() -> None:
        while bank.runs:
            time.sleep(WATCH_S)
        log.warning("the bank's process %d has ended: so does its worker", bank.pid)
        with contextlib.suppress(OSError):
            path.unlink()
        os._exit(0)  # the other thread may train, and need minutes to notice it

    threading.Thread(target=watch, name="bank", daemon=True).start()


def serve(path: Path, idle_s: float, memory_gib: float, bank: ProcessIdentity | None = None) -> None:
    """Answer one request after the other until there was no request for `idle_s` seconds, or `bank` has ended."""
    if bank is not None:
        end_with(bank, path)
    if memory_gib and gpus_here():
        log.warning("worker-memory-gib is not applied: CUDA maps far more address space than it uses")
    elif memory_gib:
        limit = int(memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with socket.socket(socket.AF_UNIX) as listening:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        old = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(old)
        listening.listen(4)
        listening.settimeout(idle_s)
        log.info("worker %d listens on %s", os.getpid(), path)
        try:
            while True:
                connection, _ = listening.accept()
                connection.settimeout(REQUEST_S)
                with connection, connection.makefile("rwb") as stream:
                    if _same_user(connection):
                        _serve_one(stream)
        except TimeoutError:
            log.info("worker %d ends: %g s without work", os.getpid(), idle_s)
        finally:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _serve_one(stream: Any) -> None:
    try:
        values, adapter = _receive(stream)
        request = TrainRequest(
            build(json.loads(values["config"])), str(values["run"]), int(values["round"]), str(values["layout_id"]),
            str(values["source_sha256"]), adapter,
                {bank: Head(**head) for bank, head in values["ledger_heads"].items()}, bool(values["silent"]),
            from_text(str(values["second_moments"])),
        )  # fmt: skip
        facts = bank_facts(values["node_config"])
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        log.warning("an unusable request: %s", error)
        return
    with about(run=request.run, round=request.round, bank=facts.name):
        answer, delta = _answer_to(request, facts)
    with contextlib.suppress(OSError):  # who asked may have gone
        _send(stream, answer, delta)


def _answer_to(request: TrainRequest, facts: BankFacts) -> tuple[dict[str, Any], Vector]:
    """The head of the answer and its adapter; never raises."""
    try:
        delta, layout_id, figures, head, moments = train_round(request, facts)
        values = {"layout_id": layout_id, "figures": asdict(figures), "second_moments": to_text(moments)}
        return {"status": "ok", "ledger": asdict(head) if head else None, **values}, delta
    except BankError as error:
        log.error("%s", error)
        return {"status": "error", "code": error.code, "detail": str(error)}, np.zeros(0, np.float32)
    except MemoryError:
        log.exception("out of memory")
        return {"status": "error", "code": "memory", "detail": "out of memory"}, np.zeros(0, np.float32)
    except Exception as error:
        log.exception("unexpected error")
        code = "memory" if "out of memory" in str(error).lower() else "internal"
        return {"status": "error", "code": code, "detail": type(error).__name__}, np.zeros(0, np.float32)


def end_worker(state_folder: Path) -> None:
    """End the worker that was started last for a bank, if it still runs."""
    import psutil

    try:
        process = psutil.Process(int((state_folder / PROCESS_FILE).read_text()))
        if "client_app.worker" in process.cmdline():
            process.terminate()
            process.wait(timeout=10)
    except (OSError, ValueError, psutil.Error):
        return


# --- the socket -----------------------------------------------------------------------------------


def socket_path(facts: BankFacts) -> Path:
    """Where the worker of this bank and this code listens: in $XDG_RUNTIME_DIR, else in $TMPDIR, else in /tmp, where
    the path is short enough.
    """
    what = f"{facts.state_folder.absolute()}|{facts.name}|{ROOT}|{source_fingerprint()}"
    own = Path(f"fedfinlora-{os.getuid()}") / f"{hashlib.sha256(what.encode()).hexdigest()[:24]}.sock"
    places = [Path(place) / own for place in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir()) if place]
    return next((path for path in places if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH), Path("/tmp") / own)


def _connected(facts: BankFacts, node_config: Mapping[str, Any]) -> socket.socket:
    """A connection to the worker, which is started if it is not there. WorkerGone if that fails."""
    path = socket_path(facts)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        found = path.parent.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise WorkerGone(f"{path.parent} is open to others")
        with wait_for(path.with_suffix(".lock"), f"The worker of {facts.name}"):
            return _try(path) or _start(path, facts, node_config)
    except (OSError, UserError) as error:
        raise WorkerGone(str(error)) from error


def _start(path: Path, facts: BankFacts, node_config: Mapping[str, Any]) -> socket.socket:
    idle_s, memory_gib = (
        float(node_config.get("worker-idle-s", IDLE_S)),
        float(node_config.get("worker-memory-gib", 0.0)),
    )
    facts.state_folder.mkdir(parents=True, exist_ok=True)
    end_worker(facts.state_folder)  # one of other code: two would hold two models
    with open(facts.state_folder / "worker.log", "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "client_app.worker", str(path), str(idle_s), str(memory_gib), facts.name,
            str(node_config.get("bank-process", ""))],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, close_fds=True,
        )  # fmt: skip
    (facts.state_folder / PROCESS_FILE).write_text(str(process.pid))
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        connection = _try(path)
        if connection is not None:
            return connection
        if process.poll() is not None:
            raise WorkerGone(f"it ended with status {process.returncode}; see {facts.state_folder / 'worker.log'}")
        time.sleep(0.05)
    process.kill()
    raise WorkerGone(f"it did not answer within {START_S:g} s")


def _try(path: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        return None
    return connection


def _same_user(connection: socket.socket) -> bool:
    """Whether the other side is a process of this user (Linux's SO_PEERCRED)."""
    peer = getattr(socket, "SO_PEERCRED", None)
    if peer is None:
        return True
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, peer, struct.calcsize("3i")))
    return bool(user == os.getuid())


def _send(stream: Any, values: Mapping[str, Any], vector: Vector) -> None:
    data = np.ascontiguousarray(vector, "<f4").tobytes()
    stream.write(json.dumps({**values, "numbers": len(data) // 4}).encode() + b"\n")
    stream.write(data)
    stream.flush()


def _receive(stream: Any) -> tuple[dict[str, Any], Vector]:
    """ValueError for anything that is no frame; sizes are checked before anything is read."""
    line = stream.readline(LONGEST_LINE)
    if not line.endswith(b"\n"):
        raise ValueError("no answer")
    values = json.loads(line)
    count = int(values.pop("numbers"))
    if not 0 <= count <= LARGEST_VECTOR:
        raise ValueError(f"{count} numbers")
    data = stream.read(4 * count)
    if len(data) != 4 * count:
        raise ValueError("cut off")
    return values, np.frombuffer(data, "<f4").astype(np.float32)


if __name__ == "__main__":
    show_logs()
    with about(bank=sys.argv[4]):
        serve(
            Path(sys.argv[1]),
            float(sys.argv[2]),
            float(sys.argv[3]),
            ProcessIdentity.parse(sys.argv[5]) if sys.argv[5] else None,
        )
