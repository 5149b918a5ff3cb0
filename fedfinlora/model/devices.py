"""Which device a model runs on, and what is set there before its first use.

GPUs are counted by the CUDA driver itself (cuDeviceGetCount), which knows CUDA_VISIBLE_DEVICES, MIG, containers and
WSL; a look at /dev knows none of them. What is set for CUDA, and what is guaranteed there: docs/adr/0035-on-gpus.md.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedfinlora.config.model import SPREADS
from fedfinlora.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

DRIVER_LIBRARIES = ("libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1")
"""Names of the CUDA driver's library; under WSL it may lie outside of the loader's path."""
GPU_TRACES = ("nvidia[0-9]*", "dxg")
"""Names in /dev that a GPU leaves: NVIDIA's driver on Linux, WSL's DirectX."""
BFLOAT16_CAPABILITY = (8, 0)
"""The first compute capability that computes in bfloat16 (Ampere); older ones emulate it, slower than float32."""
ALLOCATOR = "expandable_segments:True"
"""Packs differ in length: with growing segments their tensors leave no gaps between them that none fits."""
SHARE_STEP = 10_000
"""Ray counts fractions of a GPU in steps of 1 / SHARE_STEP."""
GPU_SHARE = "FEDFINLORA_WORKERS_PER_GPU"
"""Environment variable: how many simulated banks train on one GPU at the same time."""


def pick_device(name: str) -> torch.device:
    """The torch device for model.device; UserError when it is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"model.device={name!r} is no device of torch. Use auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"model.device={name}, but torch sees no CUDA device. Use model.device=auto or install a CUDA build of "
            "torch."
        )
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The torch dtype for model.dtype: auto is bfloat16 on GPUs that compute in it and float32 elsewhere."""
    import torch

    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    has_it = device.type == "cuda" and has_bfloat16(torch.cuda.get_device_capability(device))
    return torch.bfloat16 if has_it else torch.float32


def has_bfloat16(capability: tuple[int, int]) -> bool:
    """Whether a GPU of this compute capability (major, minor) computes in bfloat16 itself.

    torch.cuda.is_bf16_supported() is also true where it is emulated (V100, T4).

    >>> [has_bfloat16(capability) for capability in ((7, 0), (7, 5), (8, 0), (9, 0), (12, 0))]
    [False, False, True, True, True]
    """
    return capability >= BFLOAT16_CAPABILITY


def before_cuda_starts() -> None:
    """Set how torch's allocator takes memory, unless the environment says so: it is read once, at the first tensor."""
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", ALLOCATOR)


def prepare_cuda() -> None:
    """No attention by cuDNN: it makes a plan for each new shape, 0.4 to 1 s, and packs bring new shapes at each
    step.
    """
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


def placement(device_map: str, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is given so that the model gets where it is wanted: all of it on `device`, or spread over
    the GPUs as model.device_map says.

    >>> import torch
    >>> placement("", torch.device("cpu")), placement("balanced", torch.device("cuda"))
    ({}, {'device_map': 'balanced'})
    """
    if device_map in SPREADS:
        return {"device_map": device_map}
    if device_map:
        return {"device_map": json.loads(device_map)}
    return {} if device.type == "cpu" else {"device_map": {"": device}}


def devices_of(model: nn.Module) -> list[torch.device]:
    """The devices that hold parameters of a model, in the order of its layers."""
    return list(dict.fromkeys(parameter.device for parameter in model.parameters()))


def cuda_of(devices: Iterable[torch.device]) -> list[torch.device]:
    """Those that have a random generator of their own besides the CPU's."""
    return [device for device in devices if device.type == "cuda"]


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device now; on GPUs with what torch holds in reserve."""
    if device.type == "cuda":
        import torch

        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserve
    import psutil

    return int(psutil.virtual_memory().available)


def banks_on_a_gpu() -> int:
    """How many simulated banks train on one GPU at the same time."""
    return max(1, int(os.environ.get(GPU_SHARE, "") or 1))


def release_cached(devices: Iterable[torch.device]) -> None:
    """Hand the memory that torch holds in reserve on GPUs back to the driver."""
    import torch

    if cuda_of(devices):
        torch.cuda.empty_cache()


# --- how many GPUs there are -----------------------------------------------------------------------


@cache
def driver_gpus() -> int:
    """GPUs that CUDA gives to this process; 0 where there is no driver. Takes no memory on them."""
    for name in DRIVER_LIBRARIES:
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        count = ctypes.c_int(0)
        if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return count.value
    return 0


def usable_gpus(visible: str | None, there: int) -> int:
    """GPUs for processes that get one each, where the driver gives `there` to this one under CUDA_VISIBLE_DEVICES.

    CUDA gives one MIG slice to a process, however many are named; each simulated bank is a process of its own.

    >>> usable_gpus(None, 4), usable_gpus("MIG-a,MIG-b,MIG-c", 1), usable_gpus("", 0)
    (4, 3, 0)
    """
    named = [each.strip() for each in visible.split(",")] if visible else []
    if there and named and all(each.startswith("MIG-") for each in named):
        return len(dict.fromkeys(named))
    return there


def gpus_here(environment: Mapping[str, str] = os.environ) -> int:
    """`usable_gpus` of this machine."""
    return usable_gpus(environment.get("CUDA_VISIBLE_DEVICES"), driver_gpus())


def gpu_traces(folder: Path = Path("/dev")) -> int:
    """Devices of GPUs in /dev, whether CUDA can use them or not."""
    return sum(len(list(folder.glob(pattern))) for pattern in GPU_TRACES)


class ActorResources(NamedTuple):
    """What Ray reserves so that exactly so many banks train at the same time."""

    cpus: int
    """Of one bank."""
    all_cpus: int
    gpus: float
    """Of one bank: whole GPUs, or a share of one."""

    @property
    def banks_per_gpu(self) -> int:
        return math.floor(1 / self.gpus) if 0 < self.gpus < 1 else 1


def actor_resources(workers: int, cores: int, gpus: int) -> ActorResources:
    """Resources with which Ray starts `workers` banks and no more.

    A share of a GPU is rounded down, so that the last bank fits as well; more than one GPU a bank must be whole ones.

    >>> actor_resources(6, 8, 1), actor_resources(3, 8, 4).gpus
    (ActorResources(cpus=1, all_cpus=6, gpus=0.1666), 1.0)
    """
    cpus = max(1, cores // workers)
    if gpus >= workers:
        share = float(gpus // workers)
    else:
        share = math.floor(SHARE_STEP / -(-workers // gpus)) / SHARE_STEP if gpus else 0.0
    return ActorResources(cpus, cpus * workers, share)
