"""What ten thousand rounds leave behind: memory, open files, disk and seconds a round at 100, 1,000, … rounds of one
run of the tiny model.

    python -m benchmarks.long_run --rounds 10000 --folder /tmp/long-run [--first 9900] [--own-rows] [--every 1000]

The server's rounds and the banks' training are the real ones, two banks with two steps a round, in one process:
requests and replies pass through Flower's serialization and no socket. `--own-rows` gives the banks rows and a privacy
ledger of their own, as deployed banks have. `--first N` begins with a run that is made to look as if N - 1 rounds were
over, for a look at round 10,000 without the way there.

The status is 1 where something grew beyond what docs/deployment.md says that is kept ("What is kept, and how long"). A
round takes 0.08 s of processor time on a slow thread, so 10,000 rounds a quarter of an hour on an idle machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity

from client_app.app import app
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.files import read_json, write_bytes, write_json
from fedfinlora.run.checkpoint import load_checkpoint, save_checkpoint
from fedfinlora.run.folder import config_fingerprint, read_config, write_config
from server_app.federated import run_federated

BANKS = 2
SERVER_NODE, RUN_ID = 1, 1
FIRST_MARK = 100
"""Memory and open files are compared with those after so many rounds: by then all is loaded."""
MORE_MEMORY_BYTES = 64 * 2**20
"""Growth of the process's resident memory that is no leak: pages that the allocator keeps."""
MORE_FILES = 8
LINE_BYTES = 16 * 2**10
"""Of the records of one round with two banks: rounds.jsonl, progress.jsonl, TensorBoard, what was signed, the ledger.
"""


@dataclass(frozen=True)
class Mark:
    """What was there after some round."""

    round: int
    rss_bytes: int
    files: int
    state_bytes: int
    """Of checkpoints and the banks' moments."""
    adapter_bytes: int
    one_adapter_bytes: int
    record_bytes: int
    """Of everything else in the folder: what is kept for audit, a line or a file a round."""
    seconds: float
    """Of wall clock, a round, since the mark before."""
    cpu_s: float
    """Of processor time, likewise."""

    def __str__(self) -> str:
        sizes = (self.rss_bytes, self.state_bytes, self.adapter_bytes, self.record_bytes)
        rss, state, adapters, records = (f"{size / 2**20:8.2f}" for size in sizes)
        return (
            f"{self.round:>8,} {rss} {self.files:>6} {state} {adapters} {records} {self.seconds:>9.3f} "
            f"{self.cpu_s:>8.3f}"
        )


HEAD = "  rounds  RSS MiB  files  state MiB  adapters  records  s a round    CPU s"


@dataclass
class ProcessGrid:
    """The part of Flower's Grid that the server uses, over ClientApps in this process. `marks` are the rounds after
    which to look.
    """

    nodes: dict[int, dict[str, Any]]
    folder: Path
    every: int
    marks: list[Mark] = field(default_factory=list)

    def __post_init__(self) -> None:
        TaskIdentity.node_id, TaskIdentity.run_id, TaskIdentity.task_id = SERVER_NODE, RUN_ID, 1
        self._contexts = {
            node: Context(RUN_ID, node, dict(config), RecordDict(), {}) for node, config in self.nodes.items()
        }
        self._waiting: dict[str, Message] = {}
        self._numbers = itertools.count(1)
        self._rounds, self._last, self._since = 0, 0, (time.monotonic(), time.process_time())

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterator[str]:
        """Take the requests of one round."""
        asked = list(messages)
        if asked and asked[0].metadata.message_type == "train":
            if self._rounds and (self._rounds == FIRST_MARK or self._rounds % self.every == 0):
                self.look(int(asked[0].metadata.group_id) - 1)
            self._rounds += 1
        ids = []
        for message in asked:
            ids.append(f"message-{next(self._numbers)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self._waiting[ids[-1]] = _through_the_wire(message)
        return iter(ids)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Let the banks work, and fetch what they answer."""
        asked = [self._waiting.pop(message_id) for message_id in message_ids if message_id in self._waiting]
        return [_through_the_wire(self._answer(message)) for message in asked]

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        TaskIdentity.node_id = node
        try:
            return app(message, self._contexts[node])
        finally:
            TaskIdentity.node_id = SERVER_NODE

    def look(self, number: int) -> None:
        """Measure after round `number`, and print."""
        process = psutil.Process()
        state, adapters, records = _sizes(self.folder)
        newest = max((self.folder / "run" / "adapters").glob("round_*"), key=lambda path: path.stat().st_mtime)
        now = time.monotonic(), time.process_time()
        wall_s, cpu_s = (
            (here - before) / max(1, self._rounds - self._last) for here, before in zip(now, self._since, strict=True)
        )
        mark = Mark(
            number,
            process.memory_info().rss,
            process.num_fds(),
            state,
            adapters,
            sum(_sizes(newest)),
            records,
            wall_s,
            cpu_s,
        )
        self.marks.append(mark)
        self._last, self._since = self._rounds, now
        print(mark, flush=True)


def _through_the_wire(message: Message) -> Message:
    return message_from_proto(ProtoMessage.FromString(message_to_proto(message).SerializeToString()))


def _sizes(folder: Path) -> tuple[int, int, int]:
    """Bytes of (states, adapters, everything else)."""
    state = adapters = records = 0
    for file in folder.rglob("*"):
        if not file.is_file():
            continue
        size, parts = file.stat().st_size, file.relative_to(folder).parts
        if file.name.startswith("round_") and file.suffix == ".safetensors":
            state += size
        elif "adapters" in parts:
            adapters += size
        else:
            records += size
    return state, adapters, records


def faults(marks: list[Mark], keep_rounds: int) -> list[str]:
    """What grew beyond what is kept, a sentence each."""
    first, found = marks[0], []
    for mark in marks[1:]:
        more = mark.rss_bytes - first.rss_bytes
        if more > MORE_MEMORY_BYTES:
            found.append(f"memory has grown by {more / 2**20:.0f} MiB from round {first.round:,} to {mark.round:,}")
        if mark.files > first.files + MORE_FILES:
            found.append(f"{mark.files - first.files} more open files at round {mark.round:,} than at {first.round:,}")
        if mark.state_bytes > 2 * first.state_bytes:
            found.append(
                f"checkpoints and moments have {mark.state_bytes:,} bytes at round {mark.round:,}, "
                f"{first.state_bytes:,} at {first.round:,}"
            )
        most = (keep_rounds + 2) * mark.one_adapter_bytes  # the last ones, the best and the final one
        if keep_rounds and mark.adapter_bytes > most:
            found.append(f"adapters have {mark.adapter_bytes:,} bytes at round {mark.round:,}, above {most:,}")
        records = (mark.record_bytes - first.record_bytes) / (mark.round - first.round)
        if records > LINE_BYTES:
            found.append(f"records grow by {records:,.0f} bytes a round, above {LINE_BYTES:,}")
    return found


def long_run(
    folder: Path, rounds: int, first: int = 1, own_rows: bool = False, every: int = 1000
) -> tuple[list[Mark], Config]:
    """Run rounds `first` to `rounds` in `folder`, which must not exist. Returns the marks and the configuration."""
    folder.mkdir(parents=True)
    rows = [_write_rows(folder / f"rows-{bank}", bank if own_rows else 0) for bank in range(BANKS)]
    words = [
        "dataset=finlora", f"dataset.root={rows[0]}", f"output_dir={folder}", "run_name=run", "model=tiny-random",
        "model.threads=1", f"banks={BANKS}",
        "train.steps_per_round=2", "train.batch_rows=4", "train.holdout_max_rows=0", "evaluation=none",
        f"num_server_rounds={rounds if first == 1 else 1}",
    ]  # fmt: skip
    nodes: dict[int, dict[str, Any]] = {}
    for bank in range(BANKS):
        own = (
            {"bank": f"bank-{bank}", "data-path": str(rows[bank])}
            if own_rows
            else {"partition-id": bank, "num-partitions": BANKS}
        )
        nodes[100 - bank] = {**own, "state-dir": str(folder / "banks"), "ledger-dir": str(folder / f"ledger-{bank}")}
    config = compose(words)
    if first > 1:
        config = _as_if_after(first - 1, rounds, run_federated(ProcessGrid(nodes, folder, every), config), folder)
    grid = ProcessGrid(nodes, folder, every)
    run_federated(grid, config)
    grid.look(rounds)
    return grid.marks, config


def _write_rows(folder: Path, bank: int) -> Path:
    file = folder / "train" / "fpb_train.jsonl"
    file.parent.mkdir(parents=True)
    lines = [
        json.dumps(
            {"context": f"bank {bank} item {n} up {n * 7 % 11}. Answer: ", "target": "positive"}, allow_nan=False
        )
        for n in range(32)
    ]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def _as_if_after(number: int, rounds: int, run: Path, folder: Path) -> Config:
    """Let the run's only round have been number `number` of `rounds`."""
    state = load_checkpoint(run)
    write_bytes(
        run / "rounds.jsonl", (json.dumps({**state.line, "round": number - 1}, allow_nan=False) + "\n").encode()
    )
    save_checkpoint(run, replace(state, round=number, line={**state.line, "round": number}))
    for file in folder.glob("banks/*/*/round_0001.safetensors"):
        file.rename(file.with_name(f"round_{number:04d}.safetensors"))
    shutil.rmtree(run / "adapters" / "final")
    return replace(planned_for(run, rounds), resume=str(run))


def planned_for(run: Path, rounds: int) -> Config:
    """Let the run have been begun for so many rounds."""
    config, manifest = replace(read_config(run), num_server_rounds=rounds), run / "manifest.json"
    write_config(run, config)
    write_json(manifest, {**read_json(manifest), "config_sha256": config_fingerprint(config)})
    return config


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=10_000)
    options.add_argument("--first", type=int, default=1)
    options.add_argument("--every", type=int, default=1000, help="rounds between two lines")
    options.add_argument("--folder", type=Path, required=True, help="where to run; it must not exist")
    options.add_argument("--own-rows", action="store_true", help="banks with rows and a ledger of their own")
    chosen = options.parse_args()
    print(HEAD, flush=True)
    marks, config = long_run(chosen.folder, chosen.rounds, chosen.first, chosen.own_rows, chosen.every)
    found = faults(marks, config.keep_rounds)
    for fault in found:
        print(f"GREW: {fault}")
    print("Nothing grew beyond what is kept." if not found else f"{len(found)} faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
