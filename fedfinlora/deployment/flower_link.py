"""Flower's own commands, and a running SuperLink by which runs are started and asked for."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedfinlora.config.schema import Config
from fedfinlora.config.values import to_json
from fedfinlora.config.words import toml_text
from fedfinlora.deployment.app_bundle import lean_copy
from fedfinlora.deployment.simulated_banks import worker_resources
from fedfinlora.errors import UserError
from fedfinlora.files import write_bytes
from fedfinlora.run.origin import PROJECT_ROOT
from fedfinlora.system.surroundings import corrected

COLOURS = ("FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE")
"""Variables, set in Jupyter's kernels, with which Flower's JSON would come in colours."""
START_TIMEOUT_S = 120.0


def program(name: str) -> str:
    neighbour = Path(sys.executable).parent / name
    found = str(neighbour) if neighbour.exists() else shutil.which(name)
    if not found:
        raise UserError(f"{name} is not installed in this environment. Run `make venv` and use .venv/bin/python.")
    return found


def flower(name: str) -> list[str]:
    """The command that starts `fedfinlora.deployment.flower`."""
    return [sys.executable, "-P", str(PROJECT_ROOT / "fedfinlora" / "deployment" / "flower.py"), name]


def flower_environment(home: Path) -> dict[str, str]:
    """Of every Flower process: its own settings folder, no downloads, no telemetry."""
    return corrected(os.environ) | {
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def wait_for_superlink(process: subprocess.Popen[bytes], log: Path, is_up: Callable[[], bool]) -> None:
    """Until it answers. UserError where it ends before, or does not answer in time."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_up():
        if process.poll() is not None:
            raise UserError(f"Flower's SuperLink ended with status {process.returncode}; see {log}.")
        if time.monotonic() > deadline:
            raise UserError(f"Flower's SuperLink did not answer within {START_TIMEOUT_S:g} s; see {log}.")
        time.sleep(0.1)


def free_port() -> int:
    """A TCP port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_config_toml(config: Config) -> str:
    """Flower's run config as TOML: the whole configuration in one line of JSON."""
    return f"config = {toml_text(to_json(config))}\n"


class Link:
    """A running SuperLink, by its connection's name in Flower's config.toml. `process` is None where another started
    it.
    """

    def __init__(
        self, run: Path, environment: dict[str, str], process: subprocess.Popen[bytes] | None, name: str = "private"
    ) -> None:
        self.run, self.environment, self.process, self.name = run, environment, process, name

    def flwr(self, *words: str) -> Any:
        """Call Flower's own command and return its JSON; UserError with its message."""
        command = [program("flwr"), *words, "--format", "json"]
        plain = {name: value for name, value in self.environment.items() if name not in COLOURS}
        done = subprocess.run(command, env=plain, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
        start = done.stdout.find("{")
        try:
            answer = json.loads(done.stdout[start:]) if start >= 0 else {}
        except ValueError:
            answer = {}
        if done.returncode or not answer.get("success", bool(answer)):
            message = answer.get("error-message") or done.stderr.strip() or done.stdout.strip()
            raise UserError(f"`flwr {words[0]}` failed: {' '.join(str(message).split())}")
        return answer

    def start(self, config: Config) -> str:
        """Submit the run and return Flower's run id."""
        file = self.run / "state" / "run-config.toml"
        write_bytes(file, run_config_toml(config).encode())
        simulated = ["--federation-config", f"num-supernodes={config.banks} {worker_resources(config)}"]
        more = simulated if self.process else []
        with lean_copy() as app:
            answer = self.flwr("run", str(app), self.name, "--run-config", str(file), *more)
        return str(answer["run-id"])

    def status(self, run_id: str) -> tuple[str, str]:
        """Flower's status of the run, e.g. `finished:failed`, and its details."""
        found = self.flwr("ls", self.name, "--run-id", run_id)["runs"][0]
        return str(found["status"]), str(found.get("status-details", ""))

    def save_log(self, run_id: str) -> None:
        """Keep what server and banks logged, in state/flower.log."""
        command = [program("flwr"), "log", run_id, self.name, "--show"]
        try:
            done = subprocess.run(
                command, env=self.environment, cwd=PROJECT_ROOT, capture_output=True, check=False, timeout=30
            )
            write_bytes(self.run / "state" / "flower.log", done.stdout + done.stderr)
        except (OSError, subprocess.SubprocessError, UserError):
            return
