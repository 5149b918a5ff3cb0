"""What a device can do at best: bytes copied a second and floating-point operations of one large matrix product."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.benches.gpu_setting import median_seconds

COPY_BYTES = {"cuda": 4 * 2**30, "cpu": 2**26}
PRODUCT_SIZE = {"cuda": 8192, "cpu": 512}
"""Rows and columns of the two matrices."""


def machine(device: torch.device) -> dict[str, Any]:
    """The section of `bench gpu`. A copy counts the bytes read and those written; the product is of drawn numbers."""
    size = PRODUCT_SIZE[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    source = torch.empty(COPY_BYTES[device.type] // 4, dtype=torch.float32, device=device).normal_()
    target = torch.empty_like(source)
    copy_s = median_seconds(device, partial(target.copy_, source))
    del source, target
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product_s = median_seconds(device, lambda: one @ other)
    found: dict[str, Any] = {
        "copy_bytes_per_s": 2 * COPY_BYTES[device.type] / copy_s,
        "product_flop_per_s": 2 * size**3 / product_s,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "memory_gib": properties.total_memory / 2**30,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    return found
