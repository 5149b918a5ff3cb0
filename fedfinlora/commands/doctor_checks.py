"""What of a machine would make a run fail: each check looks at one thing, says what to do, and changes nothing."""

from __future__ import annotations

import locale
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from fedfinlora.model.devices import driver_gpus, gpu_traces
from fedfinlora.run.origin import PROJECT_ROOT
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
INSTALL = (
    "Run `make venv`" if (PROJECT_ROOT / "Makefile").is_file() else "Install the wheel again with its extra [train]"
)
_PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)\s*(?:;\s*([^\\]+))?", re.MULTILINE)


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


def wanted_packages(root: Path = PROJECT_ROOT) -> tuple[str, dict[str, str]]:
    """(where it is written, package -> exact version; "" where any will do): a checkout's lock, else the wheel's."""
    locked = {name: _pinned(root / name) for name in ("locks/run.txt", "constraints.txt") if (root / name).is_file()}
    if "locks/run.txt" in locked:
        return "locks/run.txt", locked["locks/run.txt"]
    try:
        wanted = metadata.requires("fedfinlora") or []
    except metadata.PackageNotFoundError:
        return next(iter(locked.items()), ("nothing", {}))
    names = [
        _normal(re.split(r"[\s\[<>=!~;(]", line, maxsplit=1)[0])
        for line in wanted
        if "extra ==" not in line or "'train'" in line.replace('"', "'")
    ]
    source, versions = next(iter(locked.items()), ("the package's metadata", {}))
    return source, {name: versions.get(name, "") for name in names}


def _pinned(file: Path) -> dict[str, str]:
    """Package -> exact version of the lines of a lock that apply here."""
    found = _PINNED.findall(file.read_text("utf-8"))
    return {_normal(package): version for package, version, marker in found if _applies(marker)}


def packages(wanted: Mapping[str, str], source: str, installed: Mapping[str, str]) -> Finding:
    """Compare what is installed with what is wanted.

    >>> packages({"torch": "2.13.0", "peft": "0.21.2"}, "locks/run.txt", {"torch": "2.12.1"}).text
    'missing: peft; another version than in locks/run.txt: torch 2.12.1 (2.13.0). Run `make venv`.'
    """
    missing = sorted(name for name in wanted if name not in installed)
    other = sorted(
        f"{name} {installed[name]} ({version})"
        for name, version in wanted.items()
        if version and name in installed and installed[name].split("+")[0] != version.split("+")[0]
    )
    parts = [f"missing: {_some(missing)}"] if missing else []
    parts += [f"another version than in {source}: {_some(other)}"] if other else []
    if not parts:
        return Finding("packages", OK, f"{len(wanted)} as in {source}")
    return Finding("packages", FAIL if missing else WARN, f"{'; '.join(parts)}. {INSTALL}.")


def installed_packages() -> dict[str, str]:
    """Package -> version of all that this Python finds."""
    return {_normal(each.metadata["Name"] or ""): each.version for each in metadata.distributions()}


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


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _applies(marker: str) -> bool:
    if not marker.strip():
        return True
    try:
        from packaging.markers import InvalidMarker, Marker
    except ImportError:
        return False
    try:
        return Marker(marker.strip()).evaluate()
    except InvalidMarker:
        return False


def _some(items: Iterable[str], most: int = 6) -> str:
    listed = list(items)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
