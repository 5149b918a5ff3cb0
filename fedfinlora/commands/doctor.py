"""`doctor`: what would go wrong with a run on this machine, one line each with what to do."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from email.utils import parsedate_to_datetime
from pathlib import Path

from data.sources.load import load_rows
from fedfinlora.commands import doctor_checks as machine
from fedfinlora.commands.doctor_checks import FAIL, GIB, OK, WARN, Finding
from fedfinlora.commands.doctor_packages import installed_packages, packages, wanted_packages
from fedfinlora.compose import compose
from fedfinlora.config.model import ModelConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError, printable
from fedfinlora.model.devices import gpus_here
from fedfinlora.model.embedded import cache_folder, is_embedded
from fedfinlora.model.files import counted_files, model_folder
from fedfinlora.system.web import HUB, client_for

HUB_TIMEOUT_S = 2.0
PROCESS_BYTES = GIB // 2
"""Resident memory of a process with torch and transformers before its model is loaded: `centralized model=tiny-random`
peaks at 0.46 GiB.
"""
LINEAR_BYTES = {"none": 4.0, "int8": 1.0, "nf4": 4.127 / 8}
"""A linear layer's weight in memory, by quantization: float32, 8 bits, or 4 bits and 0.127 of their scales (Dettmers et
al. 2023, section 3).
"""
NEVER_QUANTIZED = ("embed", "norm", "lm_head")
"""Parts of the names of tensors that stay in float32."""
ITEM_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1}
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def doctor(overrides: Sequence[str], as_json: bool = False) -> int:
    """Print the findings; 0 unless one of them is `fail`."""
    findings = examine(overrides)
    failed = any(finding.level == FAIL for finding in findings)
    if as_json:
        found = {"schema_version": 1, "ok": not failed, "findings": [asdict(each) for each in findings]}
        print(json.dumps(found, indent=2, allow_nan=False))
        return int(failed)
    for finding in findings:
        print(f"{finding.level:<4}  {finding.name:<10}  {printable(finding.text)}")
    return int(failed)


def examine(overrides: Sequence[str]) -> list[Finding]:
    """All checks, in the order of the screen."""
    source, wanted = wanted_packages()
    found = [
        machine.python_version(),
        packages(wanted, source, installed_packages()),
        machine.working_directory(),
    ]
    found.append(machine.home())
    try:
        config: Config | None = compose(overrides)
        found.append(Finding("settings", OK, "the configuration composes"))
    except (UserError, RuntimeError, OSError, ImportError) as error:
        config = None
        found.append(Finding("settings", FAIL, f"{error}"))
    if config is not None:
        found += [machine.device(config.model.device, os.environ), _memory(config)]
        found.append(machine.folder("runs", Path(config.output_dir), "output_dir=FOLDER"))
        found.append(machine.folder("answers", Path(config.evaluation.answers_dir), "evaluation.answers_dir=FOLDER"))
    found += _caches()
    found += [machine.temporary(), machine.language(), machine.proxies(os.environ), machine.threads(os.environ)]
    found += [machine.ray_address(os.environ), machine.ports(), machine.clock()]
    found += _hub(config)
    if config is not None:
        found.append(_rows(config))
    return found


def _caches() -> list[Finding]:
    try:
        ours = machine.folder("cache", cache_folder(), "FEDFINLORA_CACHE")
        hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    except RuntimeError:
        return [Finding("cache", FAIL, "no home folder is known. Set HOME, or FEDFINLORA_CACHE and HF_HOME.")]
    theirs = machine.folder("hub cache", hub, "HF_HOME")
    return [ours, replace(theirs, level=WARN) if theirs.level == FAIL else theirs]


def _memory(config: Config) -> Finding:
    """Available memory against the weights of all processes that hold the model."""
    import psutil

    from fedfinlora.deployment.simulated_banks import simulated_workers

    available = int(psutil.virtual_memory().available)
    weights = _parameters(config.model)
    if weights is None:
        return Finding(
            "memory",
            OK,
            f"{available / GIB:.1f} GiB available; the model's files are not on this machine, so its size is not known",
        )
    linear, other = weights
    one = int(linear * _linear_bytes(config.model, linear) + other * LINEAR_BYTES["none"]) + PROCESS_BYTES
    processes = 1 + simulated_workers(config)
    text = (
        f"{available / GIB:.1f} GiB available, about {processes * one / GIB:.1f} for the server and {processes - 1} "
        "simulated banks at once"
    )
    if one > available:
        return Finding(
            "memory",
            FAIL,
            f"{text}; one process alone needs {one / GIB:.1f}. Take a smaller model, or model.quantization=nf4.",
        )
    if processes * one > available:
        return Finding(
            "memory", WARN, f"{text}. Set workers={max(1, int(available // one) - 1)}, or take a smaller model."
        )
    return Finding("memory", OK, text)


def _linear_bytes(model: ModelConfig, weights: int) -> float:
    """Of a linear weight. On a CPU int8 and, as model.unpack says, nf4 become float32 (`steady_on_cpu`)."""
    import psutil

    packed = LINEAR_BYTES[model.quantization]
    if model.device not in ("auto", "cpu") or (model.device == "auto" and gpus_here() > 0):
        return packed
    fits = 4 * weights * LINEAR_BYTES["none"] <= psutil.virtual_memory().total
    unpacks = model.quantization == "int8" or model.unpack == "yes" or (model.unpack == "auto" and fits)
    return LINEAR_BYTES["none"] if unpacks else packed


def _parameters(model: ModelConfig) -> tuple[int, int] | None:
    """(weights of linear layers, all others) by the headers of the model's files; None where they are not here."""
    try:
        files = [file for file in counted_files(model_folder(model, local_only=True)) if file.suffix == ".safetensors"]
        counts = [count for file in files for count in _weights_in(file)]
    except (UserError, OSError, ValueError, KeyError, TypeError, struct.error):
        return None
    others = sum(count for name, count in counts if any(part in name for part in NEVER_QUANTIZED))
    return (sum(count for _, count in counts) - others, others) if counts else None


def _weights_in(file: Path) -> list[tuple[str, int]]:
    """(tensor, how many numbers) of a safetensors file: eight bytes with the length of a JSON header."""
    with open(file, "rb") as stream:
        [length] = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(min(length, 2**26)))
    header.pop("__metadata__", None)
    return [
        (name, (each["data_offsets"][1] - each["data_offsets"][0]) // ITEM_BYTES.get(each["dtype"], 1))
        for name, each in header.items()
    ]


def _needs_hub(config: Config | None) -> bool:
    if config is None or is_embedded(config.model.path):
        return False
    try:
        model_folder(config.model, local_only=True)
    except (UserError, OSError):
        return True
    return False


def _hub(config: Config | None) -> list[Finding]:
    """Whether the hub answers within HUB_TIMEOUT_S, what it says of the token, and how far its clock is away."""
    needed = _needs_hub(config)
    bad = FAIL if needed else OK
    local = "Give model.path=FOLDER." if needed else "only local models and data"
    offline = [name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    if offline:
        return [Finding("hub", bad, f"offline, as {offline[0]} says: {local}")]
    token = os.environ.get("HF_TOKEN", "").strip()
    answers: list[tuple[int, str] | str] = []

    def ask() -> None:
        import httpx

        url = f"{(os.environ.get('HF_ENDPOINT') or HUB).rstrip('/')}/api/whoami-v2"
        try:
            with client_for(url, HUB_TIMEOUT_S) as client:
                reply = client.get(url, headers={"authorization": f"Bearer {token}"} if token else {})
                answers.append((reply.status_code, reply.headers.get("date", "")))
        except UserError as error:
            answers.append(str(error))
        except (httpx.HTTPError, ValueError, OSError):
            answers.append("")

    asking = threading.Thread(target=ask, daemon=True)  # a name's resolution has no timeout
    asking.start()
    asking.join(HUB_TIMEOUT_S)
    answer = answers[0] if answers else ""
    if isinstance(answer, str):
        return [Finding("hub", WARN if answer and not needed else bad, answer or f"offline: {local}")]
    status, date = answer
    found = [Finding("hub", OK, "reachable")]
    if status == 401 and token:
        found = [
            Finding(
                "hub",
                FAIL if needed else WARN,
                "reachable, but refuses HF_TOKEN. Set HF_TOKEN to a valid token, or unset it.",
            )
        ]
    try:
        ahead_s = time.time() - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return found
    if abs(ahead_s) > 5:
        found.append(
            Finding(
                "time",
                WARN,
                f"this clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the hub's. Let NTP "
                "set it.",
            )
        )
    return found


def _rows(config: Config) -> Finding:
    if config.dataset.source == "hub" and not config.dataset.root:
        return Finding("rows", OK, "from the hub; not read here")
    try:
        loaded = load_rows(replace(config.dataset, on_bad_row="skip"), "train", config.dataset.tasks, config.seed)
    except (UserError, OSError) as error:
        return Finding("rows", FAIL, str(error))
    text = f"{len(loaded.rows)} train rows, {len(loaded.bad_rows)} bad"
    return Finding(
        "rows", WARN if loaded.bad_rows else OK, f"{text}; `data check` names them" if loaded.bad_rows else text
    )
