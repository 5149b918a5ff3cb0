"""What of a machine would make a run fail: each check looks at one thing, says what to do, and changes nothing."""

from __future__ import annotations

import locale
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedfinlora.model.devices import driver_gpus, gpu_traces
from fedfinlora.system.shadows import imported_folders, shadowing, words_for
from fedfinlora.system.web import PROXIES, proxy_trouble

OK, WARN, FAIL = "ok", "warn", "fail"
GIB = 2**30
TESTED_PYTHON = (3, 11)
FLOWER_PORTS = (9091, 9092, 9093, 9094)
"""Those that Flower's own commands take unless another is named. `simulate` and `bank start` choose free ones;
`coordinator start` takes 9092.
"""
LEAST_DISK_BYTES, LITTLE_DISK_BYTES = GIB // 4, 2 * GIB
"""Free space below which a run fails soon, and below which it may."""
MOST_CLOCK_DIFFERENCE_S = 2.0


@dataclass(frozen=True)
class Finding:
    """One line of the screen."""

    name: str
    level: str
    """ok, warn or fail."""
    text: str
    """What was found and, where it is not ok, what to do."""


def python_version() -> Finding:
    """Whether this Python is the one that the lock was tested with."""
    text = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info[:2] != TESTED_PYTHON:
        return Finding(
            "python", WARN, f"{text}: the packages are tested together on 3.11. Make the environment with `make venv`."
        )
    return Finding("python", OK, text)


def home() -> Finding:
    """Whether there is a home folder that can be written."""
    try:
        folder = Path.home()
    except RuntimeError:
        return Finding(
            "home", FAIL, "HOME is not set and the user has no entry. Set HOME to a folder that you may write."
        )
    if not can_write(folder):
        return Finding(
            "home",
            WARN,
            f"{folder} cannot be written. Set HOME, or give output_dir=, evaluation.answers_dir=, FEDFINLORA_CACHE "
            "and HF_HOME.",
        )
    return Finding("home", OK, str(folder))


def folder(name: str, path: Path, variable: str) -> Finding:
    """Whether a folder can be written and has room. `variable` is what moves it."""
    if not can_write(path):
        return Finding(name, FAIL, f"{path} cannot be written. Set {variable} to a folder that can.")
    free = shutil.disk_usage(_there(path)).free
    text = f"{path}, {free / GIB:.1f} GiB free"
    if free < LEAST_DISK_BYTES:
        return Finding(name, FAIL, f"{text}: too little. Free space, or set {variable} to another disk.")
    if free < LITTLE_DISK_BYTES:
        return Finding(name, WARN, f"{text}: a long run may need more. Free space, or set {variable} to another disk.")
    return Finding(name, OK, text)


def temporary() -> Finding:
    try:
        return folder("tmp", Path(tempfile.gettempdir()), "TMPDIR")
    except OSError:
        return Finding(
            "tmp",
            FAIL,
            "no temporary folder can be written, or its disk is full. Set TMPDIR to a folder with free space.",
        )


def working_directory() -> Finding:
    """Whether a file in it, in the checkout or in PYTHONPATH has a library's name."""
    try:
        here = Path.cwd()
    except OSError:
        return Finding("directory", FAIL, "the working directory was deleted. Change to another folder.")
    if found := shadowing(imported_folders()):
        return Finding(
            "directory", FAIL, f"{words_for(found)} Rename or move it, or take its folder out of PYTHONPATH."
        )
    if found := shadowing([here]):
        return Finding(
            "directory",
            WARN,
            f"{words_for(found)} Our commands do not import from here, other Python programs do. Rename it.",
        )
    return Finding("directory", OK, str(here))


def language() -> Finding:
    """Whether output can hold what is printed."""
    encoding = getattr(sys.stdout, "encoding", None) or locale.getpreferredencoding(False)
    if "utf" not in encoding.lower():
        return Finding(
            "locale",
            WARN,
            f"the terminal's encoding is {encoding}: other letters are printed as ?. Set PYTHONIOENCODING=utf-8.",
        )
    return Finding("locale", OK, encoding)


def proxies(environment: Mapping[str, str]) -> Finding:
    """Whether the proxy variables can be used. Their values may hold passwords and are not shown."""
    names = [name for kind in PROXIES for name in (kind, kind.upper()) if environment.get(name, "").strip()]
    for name in names:
        if trouble := proxy_trouble(environment[name].strip()):
            return Finding(
                "proxies", WARN, f"{name} cannot be used ({trouble}). Set it to http://HOST:PORT, or unset it."
            )
    return Finding("proxies", OK, f"{', '.join(names)}; never for this machine" if names else "none")


def ray_address(environment: Mapping[str, str]) -> Finding:
    """Whether another's Ray cluster is named."""
    if environment.get("RAY_ADDRESS"):
        return Finding(
            "ray",
            WARN,
            "RAY_ADDRESS is set; our commands ignore it, plain `flwr run` would join that cluster. Unset it.",
        )
    return Finding("ray", OK, "a cluster of its own for each simulation")


def threads(environment: Mapping[str, str]) -> Finding:
    """Whether OMP_NUM_THREADS is a number of threads."""
    value = environment.get("OMP_NUM_THREADS", "")
    if value and not all(part.strip().isdecimal() and int(part) for part in value.split(",")):
        return Finding(
            "threads", WARN, f"OMP_NUM_THREADS={value[:20]!r} is no number and is ignored. Set it to one, or unset it."
        )
    return Finding(
        "threads", OK, f"OMP_NUM_THREADS={value}" if value else f"all of {len(os.sched_getaffinity(0))} cores"
    )


def device(asked: str, environment: Mapping[str, str]) -> Finding:
    """Whether the device that is asked for is there: torch is imported only where the driver finds a GPU."""
    there = max(gpu_traces(), driver_gpus())
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    usable = 0
    if driver_gpus() and asked != "cpu":
        import torch

        usable = torch.cuda.device_count()
    hidden = (
        f" (CUDA_VISIBLE_DEVICES={visible!r} hides {there - usable} of {there})"
        if visible is not None and usable < there
        else ""
    )
    number = int(asked.partition(":")[2] or 0) if asked.partition(":")[2].isdecimal() or ":" not in asked else 0
    if asked.startswith("cuda") and usable <= number:
        return Finding(
            "device",
            FAIL,
            f"model.device={asked}, but {usable} GPUs can be used{hidden}. Set model.device=auto, or change "
            "CUDA_VISIBLE_DEVICES.",
        )
    if there and asked == "auto" and not usable:
        return Finding(
            "device",
            WARN,
            f"no GPU of {there} can be used{hidden}: the CPU will be, far slower. Look at the driver (in a "
            "container: --gpus all; under WSL: libcuda.so.1 in /usr/lib/wsl/lib), install a CUDA build of torch, "
            "or unset CUDA_VISIBLE_DEVICES.",
        )
    return Finding(
        "device",
        OK,
        f"{usable} GPUs" if usable and asked != "cpu" else f"CPU, {len(os.sched_getaffinity(0))} cores{hidden}",
    )


def ports(numbers: Sequence[int] = FLOWER_PORTS) -> Finding:
    """Whether a local port can be had at all, and Flower's usual ones are free."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError as error:
        return Finding(
            "ports",
            FAIL,
            f"no port of 127.0.0.1 can be had ({error.strerror}). Allow local connections; a run needs them.",
        )
    taken = [str(number) for number in numbers if not _is_free(number)]
    if taken:
        return Finding(
            "ports",
            WARN,
            f"in use: {', '.join(taken)}. simulate chooses others; give `coordinator init --port` a free one.",
        )
    return Finding("ports", OK, f"{numbers[0]} to {numbers[-1]} are free")


def clock(seconds: float = 0.05) -> Finding:
    """Whether wall clock, monotonic clock and file times go together."""
    wall, steady = time.time(), time.monotonic()
    try:
        with tempfile.NamedTemporaryFile() as file:
            apart = abs(os.stat(file.name).st_mtime - time.time())
    except OSError:
        apart = 0.0
    time.sleep(seconds)
    drift = abs((time.time() - wall) - (time.monotonic() - steady))
    if drift > 0.5 or apart > MOST_CLOCK_DIFFERENCE_S:
        return Finding(
            "clock",
            WARN,
            f"it jumps: {drift:.1f} s against the monotonic clock, {apart:.1f} s against files. Let NTP set it.",
        )
    return Finding("clock", OK, time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def can_write(path: Path) -> bool:
    """Whether a file can be made in a folder, or the folder be made: rights alone do not tell."""
    there = _there(path)
    try:
        with tempfile.TemporaryFile(dir=there):
            return True
    except OSError:
        return False


def _there(path: Path) -> Path:
    """The nearest of a path and its parents that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
