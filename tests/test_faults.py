"""What a deployment does when something breaks: parties are killed, the way is cut or slow, the disk is full.

One coordinator and two banks serve all tests of this file. South reaches the coordinator by a way that the test can cut.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from parties import Federation, Machine, when
from tiny_runs import adapter_bytes, rounds_bytes


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
    when(lambda: machine.history().count((round_number, "begun")) > before, f"{machine.home.name} begins round {round_number}")


def server_process(run: Path) -> psutil.Process:
    return psutil.Process(int(events(run, "run_start")[-1]["process"]))


def failed(command: subprocess.Popen[bytes], aggregator: Machine) -> str:
    """The line with which `coordinator run` ended in failure."""
    assert command.wait(timeout=120) == 1
    last = aggregator.said("coordinator run").strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "coordinator run resume=" in last
    return last


@contextmanager
def small_disk(folder: Path, megabytes: int = 8) -> Iterator[Path]:
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


@pytest.mark.slow
def test_a_run_through_everything_ends_in_the_same_bytes(federation: Federation) -> None:
    aggregator, south, way = federation.aggregator, federation.south, federation.way
    undisturbed = aggregator.home / "runs" / "undisturbed"
    assert federation.run(undisturbed).wait(timeout=240) == 0, aggregator.said("coordinator run")
    with small_disk(aggregator.home / "disk") as disk:
        run = disk / "disturbed"

        # South's way is slow, 1 Mbit a second, and is cut while it works on round 1.
        way.speed, carried = 125_000, way.bytes
        command = federation.run(run)
        begins(south, 1)
        slowly = way.bytes - carried
        log = south.bank / "supernode.log"
        tries = log.read_text().count("retrying in")
        way.cut()
        when(lambda: log.read_text().count("retrying in") >= tries + 4, "south tries to connect")
        way.speed = 0
        way.mend()

        # The server's process is killed in round 2.
        begins(south, 2)
        server_process(run).kill()
        assert "The server's process has died." in failed(command, aggregator)

        # The disk is full at the end of round 2.
        command = federation.resume(run)
        begins(south, 2)
        fill(disk, run)
        said = failed(command, aggregator)
        print(said)
        assert not list(run.rglob("*.tmp"))
        (disk / "ballast").unlink(missing_ok=True)

        # The SuperLink is killed in round 2; the banks come back by themselves to the one that takes its place.
        command = federation.resume(run)
        begins(south, 2)
        psutil.Process(federation.coordinator.pid).children()[0].kill()
        assert federation.coordinator.wait(timeout=60) == 1
        assert "The coordinator is not running: start it again." in failed(command, aggregator)
        federation.starts_coordinator()
        assert federation.resume(run).wait(timeout=240) == 0, aggregator.said("coordinator run")
        print(slowly)
        assert adapter_bytes(run) == adapter_bytes(undisturbed)
        assert rounds_bytes(run) == rounds_bytes(undisturbed)
        assert federation.south_bank.poll() is None
