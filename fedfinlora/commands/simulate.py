"""`simulate`: the main job through a real `flwr run` on a private SuperLink, blocking, with progress and a truthful
exit status.

`flwr run` alone returns at once, and with --stream returns 0 even when the app has failed; its daemon also keeps the
environment of whoever started it first. So each simulation gets a SuperLink of its own, on a free port, with its files
inside the run's folder.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.rows import data_files
from fedfinlora.compose import PROJECT_ROOT, compose
from fedfinlora.config.schema import Config
from fedfinlora.config.values import to_json
from fedfinlora.config.words import toml_text
from fedfinlora.errors import UserError
from fedfinlora.files import made_as, read_json, write_bytes, write_json
from fedfinlora.model.adapter_folder import check_start, start_files
from fedfinlora.run.checkpoint import latest_round
from fedfinlora.run.detach import leave_if_detached
from fedfinlora.run.ended import as_sentence, how_to_resume, is_recorded, record_end
from fedfinlora.run.folder import COMMAND_LOCK, SERVER_LOCK, hold_run, new_run_folder, read_config
from fedfinlora.run.opening import asked_otherwise, resumed_configuration
from fedfinlora.run.origin import ORIGIN_FILE, origin_of_this_process
from fedfinlora.run.progress import follow
from fedfinlora.run.progress_display import ProgressDisplay
from fedfinlora.run.resuming import check_same
from fedfinlora.system.family import end_family as end_family
from fedfinlora.system.family import family
from fedfinlora.system.locks import check_free
from fedfinlora.system.surroundings import settled
from fedfinlora.system.web import client_for

START_TIMEOUT_S = 120.0
ASK_EVERY_S = 5.0


def simulate(overrides: Sequence[str]) -> int:
    """Run to the end; 0 only when result.json says "completed"."""
    config = prepare(overrides)
    run = Path(config.resume) if config.resume else Path(config.output_dir) / config.run_name
    print(f"run folder: {run}", flush=True)
    crowd = crowded(config)
    if crowd:
        print(f"warning: {crowd}", file=sys.stderr)
    with hold_run(run, COMMAND_LOCK), made_as(run):
        check_free(run / SERVER_LOCK, f"The run {run}")
        leave_if_detached(run)
        return _simulate(run, config)


def _simulate(run: Path, config: Config) -> int:
    try:
        write_json(run / ORIGIN_FILE, origin_of_this_process())
        with _superlink(run) as link:
            run_id = link.start(config)
            watch(link, run, run_id)
    except KeyboardInterrupt:
        record_end(run, "stopped", "interrupted")
        with contextlib.suppress(OSError):
            print(f"\n{how_to_resume(run)}", file=sys.stderr, flush=True)
        return 1
    except Exception as error:
        record_end(run, "failed", str(error) or type(error).__name__)
        if isinstance(error, UserError) and latest_round(run) >= 0:
            raise UserError(f"{error} {as_sentence(how_to_resume(run))}") from error
        raise
    return final_status(run)


def final_status(run: Path) -> int:
    """0 where result.json says "completed"; UserError with the reason and how to go on where it does not."""
    result = read_json(run / "result.json")
    if result["status"] != "completed":
        again = f" {as_sentence(how_to_resume(run))}" if latest_round(run) >= 0 else ""
        raise UserError(f"{result['reason']}{again}")
    return 0


def prepare(overrides: Sequence[str]) -> Config:
    """The resolved configuration for the server, with its run folder made."""
    config = compose(overrides)
    if config.resume:
        folder = Path(config.resume)
        own = read_config(folder)
        for lock in (COMMAND_LOCK, SERVER_LOCK):
            check_free(folder / lock, f"The run {folder}")
        named = asked_otherwise(overrides)
        banks = [] if any(each.startswith("banks=") for each in named) else [f"banks={own.banks}"]
        asked = compose([*named, *banks]) if named else own
        going_on = replace(
            resumed_configuration(folder, asked), resume=config.resume, resume_anyway=config.resume_anyway
        )
        check_same(folder, going_on, data_files(going_on) | start_files(going_on))
        return going_on
    from client_app.own_rows import divide

    check_start(config)
    divide(config, config.banks)  # what is wrong with the rows is said here: from inside, a bank may only send a code
    return replace(config, run_name=new_run_folder(config).name, overwrite=False)


class Link:
    """A running SuperLink, by its connection's name in Flower's config.toml. `process` is None where it is somebody
    else's.
    """

    def __init__(
        self, run: Path, environment: dict[str, str], process: subprocess.Popen[bytes] | None, name: str = "private"
    ) -> None:
        self.run, self.environment, self.process, self.name = run, environment, process, name

    def flwr(self, *words: str) -> Any:
        """Call Flower's own command and return its JSON; UserError with its message when it fails."""
        command = [program("flwr"), *words, "--format", "json"]
        done = subprocess.run(
            command, env=self.environment, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False
        )
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
        answer = self.flwr("run", str(PROJECT_ROOT), self.name, "--run-config", str(file), *more)
        return str(answer["run-id"])

    def status(self, run_id: str) -> tuple[str, str]:
        """Flower's status of the run, e.g. `finished:failed`, and its details."""
        found = self.flwr("ls", self.name, "--run-id", run_id)["runs"][0]
        return str(found["status"]), str(found.get("status-details", ""))

    def save_log(self, run_id: str) -> None:
        """Keep what server and banks logged, in state/flower.log: the SuperLink's own files end with it."""
        command = [program("flwr"), "log", run_id, self.name, "--show"]
        try:
            done = subprocess.run(
                command, env=self.environment, cwd=PROJECT_ROOT, capture_output=True, check=False, timeout=30
            )
            write_bytes(self.run / "state" / "flower.log", done.stdout + done.stderr)
        except (OSError, subprocess.SubprocessError, UserError):
            return


def crowded(config: Config) -> str:
    """What is wrong where simulated banks would fight for cores; "" where they do not. Their threads spin while they
    wait for each other: with two workers of two threads on two cores a round took 38 s, with one worker of two threads
    11.
    """
    cores = len(os.sched_getaffinity(0))
    workers = simulated_workers(config)
    if _gpus() or not config.model.threads or workers * config.model.threads <= cores:
        return ""
    return (
        f"{workers} workers with model.threads={config.model.threads} each are more than the {cores} cores: they would "
        "wait for each other. "
        f"Set workers={max(1, cores // config.model.threads)}, or leave model.threads at 0."
    )


def simulated_workers(config: Config) -> int:
    """How many simulated banks train at the same time, each in a process with a base model of its own."""
    return min(config.workers or _gpus() or len(os.sched_getaffinity(0)), config.banks)


def worker_resources(config: Config) -> str:
    """What each simulated bank takes of this machine, so that `config.workers` of them train at the same time."""
    cores, gpus = len(os.sched_getaffinity(0)), _gpus()
    workers = simulated_workers(config)
    gpu_share = gpus / workers if gpus else 0.0
    return (
        f"client-resources-num-cpus={max(1, cores // workers)} client-resources-num-gpus={gpu_share:.3f} "
        f"init-args-num-cpus={max(cores, workers)} init-args-num-gpus={gpus}"
    )


def run_config_toml(config: Config) -> str:
    """Flower's run config as TOML: the whole configuration in one line of JSON."""
    return f"config = {toml_text(to_json(config))}\n"


@contextmanager
def _superlink(run: Path) -> Iterator[Link]:
    home = run / "state" / "flwr"
    shutil.rmtree(home, ignore_errors=True)
    port = free_port()
    connection = (
        f'[superlink]\ndefault = "private"\n\n[superlink.private]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    write_bytes(home / "config.toml", connection.encode())
    environment = settled(os.environ) | {
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",  # seconds; Flower's own second is for many runs on one SuperLink
        "RAY_USAGE_STATS_ENABLED": "0",
        "FEDFINLORA_BANK_STATE": str(run / "state" / "banks"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    log_file = run / "state" / "superlink.log"
    command = [
        program("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1",
        "--port", str(port), "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    with family(command, environment, log_file, run) as process:
        _wait_healthy(process, port, log_file)
        yield Link(run, environment, process)


def _wait_healthy(process: subprocess.Popen[bytes], port: int, log_file: Path) -> None:
    import httpx

    address = f"http://127.0.0.1:{port}/health"
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UserError(f"Flower's SuperLink ended with status {process.returncode}; see {log_file}.")
        try:
            with client_for(address, 1.0) as client:
                if client.get(address).is_success:
                    return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise UserError(f"Flower's SuperLink did not answer within {START_TIMEOUT_S:g} s; see {log_file}.")


def watch(link: Link, run: Path, run_id: str) -> None:
    """Show progress until the run has ended, in whatever way."""
    ended: dict[str, Any] = {}
    server_process = 0
    asked = time.monotonic()

    def over() -> bool:
        nonlocal asked
        if ended:
            return True
        if link.process is not None and link.process.poll() is not None:
            ended["reason"] = "Flower's SuperLink has ended."
        elif server_process and not _alive(server_process):
            ended["reason"] = _last_words(link, run_id) or "The server's process has died."
        elif not server_process and time.monotonic() - asked > ASK_EVERY_S:
            status, details = link.status(run_id)
            asked = time.monotonic()
            if status.startswith("finished"):
                ended["reason"] = _reason(details)
        return bool(ended)

    progress = run / "progress.jsonl"
    with ProgressDisplay() as display:
        for event in follow(progress, over, start_byte=progress.stat().st_size if progress.exists() else 0):
            display.handle(event)
            if event["event"] == "run_start":
                server_process = int(event["process"])
            if event["event"] == "run_done":
                ended.update(event)
    if ended.get("status") != "completed":
        link.save_log(run_id)
    status, reason = ended.get("status", "failed"), ended.get("reason", "The run ended without a result.")
    if not is_recorded(run, status, reason):
        record_end(run, status, reason)


def _last_words(link: Link, run_id: str) -> str:
    """Why Flower says that a run has failed; "" where it does not (yet) know, or cannot be asked."""
    try:
        status, details = link.status(run_id)
    except UserError:
        return ""
    return _reason(details) if status == "finished:failed" else ""


def _reason(details: str) -> str:
    """The last line of Flower's status details without the exception's class."""
    line = details.strip().splitlines()[-1] if details.strip() else "The run ended without a result."
    return line.split("fedfinlora: ", 1)[-1]


def _alive(process: int) -> bool:
    """Whether the process runs. One that has died and was not yet buried by its parent (a zombie) does not."""
    import psutil

    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def program(name: str) -> str:
    """Flower's command from this Python's environment, else from PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise UserError(f"{name} is not installed in this environment. Run `make venv` and use .venv/bin/python.")
    return found


def flower(name: str) -> list[str]:
    """The command that starts Flower's superlink or supernode as a deployment wants it
    (`fedfinlora.deployment.flower`).
    """
    return [sys.executable, "-P", str(PROJECT_ROOT / "fedfinlora" / "deployment" / "flower.py"), name]


def free_port() -> int:
    """A TCP port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _gpus() -> int:
    """GPUs that CUDA_VISIBLE_DEVICES leaves; as CUDA does, what follows an unknown number in it is not counted."""
    there = len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return there
    named = [each.strip() for each in visible.split(",")] if visible.strip() else []
    known = itertools.takewhile(
        lambda each: each.startswith(("GPU-", "MIG-")) or (each.isdecimal() and int(each) < there), named
    )
    return min(there, len(list(known)))
