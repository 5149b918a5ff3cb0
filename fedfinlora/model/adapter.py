"""The adapter as one flat float32 vector with a layout: what is sent, averaged, saved and loaded.

A layout lists every trainable tensor by the name that PEFT saves it under, with its shape and offset. Two sides may
exchange vectors only if their layout ids, the hash of that list, are equal.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedfinlora.config.model import ModelConfig
from fedfinlora.config.peft import PeftConfig
from fedfinlora.errors import UserError
from fedfinlora.files import write_bytes
from fedfinlora.model.adapter_folder import WEIGHTS_FILE, base_name, read_tensors, same_base
from fedfinlora.model.peft_methods import METHODS, method_of
from fedfinlora.model.peft_methods.lora import ADAPTER_NAME, plain_config
from fedfinlora.model.quantized import import_bitsandbytes

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("fedfinlora")

Vector = NDArray[np.float32]
"""Shape (layout.size,), float32."""

Scalar = TypeVar("Scalar", bound=np.generic)
FROZEN_ENTRIES = "frozen_entries"
"""Attribute of a trainable parameter that has entries without a gradient: (axis, how many at its end)."""
BLOCK = 2**18
"""Numbers that are worked on together where a whole vector in float64 would take too much memory."""


def blocks(size: int, most: int = BLOCK) -> Iterator[slice]:
    """The slices of at most `most` numbers of a vector of `size` numbers, one after the other.

    >>> list(blocks(2**18 + 1))
    [slice(0, 262144, None), slice(262144, 262145, None)]
    """
    return (slice(start, min(start + most, size)) for start in range(0, size, most))


def norm(vector: NDArray[Any]) -> float:
    """Euclidean norm of a vector of shape (size,), summed in float64."""
    parts = (vector[block].astype(np.float64) for block in blocks(vector.size))
    return math.sqrt(sum(float(part @ part) for part in parts))


class Factors(NamedTuple):
    """Where a layer's A, (rank, d_in), and B, (d_out, rank), are in the flat vector."""

    layer: str
    a: slice
    a_shape: tuple[int, ...]
    b: slice
    b_shape: tuple[int, ...]

    def of(self, vector: NDArray[Scalar]) -> tuple[NDArray[Scalar], NDArray[Scalar]]:
        """(A, B) of a vector of shape (size,), views and no copies."""
        return vector[self.a].reshape(self.a_shape), vector[self.b].reshape(self.b_shape)


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the trainable tensors, in the order in which they lie in the flat vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    frozen_sha256: str = ""
    """Of the tensors that the seed draws and no one trains or sends (A with peft.freeze_a): banks whose A differs have
    no common update.
    """

    @cached_property
    def size(self) -> int:
        """How many numbers the vector has."""
        return sum(prod(shape) for shape in self.shapes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor starts."""
        starts = [0]
        for shape in self.shapes:
            starts.append(starts[-1] + prod(shape))
        return tuple(starts[:-1])

    @cached_property
    def id(self) -> str:
        """SHA-256 of names, shapes and what is frozen, 16 hexadecimal digits."""
        frozen = [self.frozen_sha256] if self.frozen_sha256 else []
        text = json.dumps([list(self.names), [list(shape) for shape in self.shapes], *frozen], allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def layers(self) -> tuple[Factors, ...]:
        """The layers whose A and B are both trained; none with peft.freeze_a=true or peft=lora_xs, whose mean update is
        exact as it is.
        """
        where = {
            name: (slice(start, start + prod(shape)), shape)
            for name, shape, start in zip(self.names, self.shapes, self.offsets, strict=True)
        }
        pairs = ((name, name.replace(".lora_A.", ".lora_B.")) for name in self.names if ".lora_A." in name)
        return tuple(Factors(a.split(".lora_A.")[0], *where[a], *where[b]) for a, b in pairs if b in where)

    def views(self, vector: Vector) -> dict[str, Vector]:
        """Named views, no copies, into a vector of shape (size,)."""
        if vector.shape != (self.size,):
            raise ValueError(f"the vector has shape {vector.shape}, the layout wants ({self.size},)")
        return {
            name: vector[start : start + prod(shape)].reshape(shape)
            for name, shape, start in zip(self.names, self.shapes, self.offsets, strict=True)
        }


def saved_name(parameter_name: str) -> str:
    """The name under which PEFT saves a trainable parameter of `PeftModel.named_parameters()`."""
    name = parameter_name.replace(f".{ADAPTER_NAME}.", ".")
    return name.removesuffix(".weight") if name.endswith("lora_magnitude_vector.weight") else name


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Saved name -> trainable parameter, sorted by name."""
    found = {saved_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return dict(sorted(found.items()))


def frozen_tensors(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Saved name -> copy of each of the adapter's tensors that is not trained: A with peft.freeze_a, A and B of
    LoRA-XS, what PiSSA starts from.
    """
    return {
        saved_name(name): parameter.detach().float().cpu().numpy().copy()
        for name, parameter in model.named_parameters()
        if ".lora_" in name and not parameter.requires_grad
    }


def layout_of(model: nn.Module) -> Layout:
    """The layout of a PEFT model's trainable parameters."""
    parameters = trainable(model)
    drawn = method_of(parameters).drawn
    frozen = {name: tensor for name, tensor in frozen_tensors(model).items() if name.endswith(drawn)} if drawn else {}
    return Layout(
        tuple(parameters),
        tuple(tuple(parameter.shape) for parameter in parameters.values()),
        frozen_sha256(frozen),
    )


def frozen_sha256(tensors: Mapping[str, NDArray[np.float32]]) -> str:
    """SHA-256 of tensors in the order of their names; "" where there are none."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(np.ascontiguousarray(tensors[name], "<f4").tobytes())
    return digest.hexdigest() if tensors else ""


def read_adapter(model: nn.Module) -> Vector:
    """The trainable parameters as one float32 vector of shape (size,), a copy on the CPU."""
    import torch

    flat = torch.cat([parameter.detach().reshape(-1).float().cpu() for parameter in trainable(model).values()])
    return flat.numpy().copy()


def write_adapter(model: nn.Module, vector: Vector) -> None:
    """Set the trainable parameters from a vector of shape (size,)."""
    import torch

    parameters = trainable(model)
    views = Layout(tuple(parameters), tuple(tuple(each.shape) for each in parameters.values())).views(vector)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(views[name].copy()))


def peft_config_values(peft: PeftConfig, model: ModelConfig) -> dict[str, Any]:
    """The keyword arguments of `peft.LoraConfig` for our configuration."""
    return plain_config(peft, METHODS[peft.method].flags, model)


def save_adapter(
    folder: Path,
    vector: Vector,
    layout: Layout,
    peft: PeftConfig,
    model: ModelConfig,
    frozen: Mapping[str, NDArray[np.float32]] | None = None,
) -> None:
    """Write a folder that plain `PeftModel.from_pretrained` loads: adapter_config.json and adapter_model.safetensors.

    `frozen` holds the adapter's tensors that are not trained and so not in the vector.
    """
    from safetensors.numpy import save

    import_bitsandbytes()
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

    made = METHODS[peft.method].exported(layout.views(vector), frozen or {})
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in made.items()}  # written as it lies in memory
    method = METHODS[peft.method]
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(method.peft_type)]
    config = kind(**method.folder_config(peft, model), inference_mode=True).to_dict()
    write_bytes(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_bytes(
        folder / "adapter_config.json",
        (json.dumps(config, indent=2, sort_keys=True, default=sorted, allow_nan=False) + "\n").encode(),
    )


def load_adapter(
    folder: Path,
    layout: Layout,
    model: ModelConfig | None = None,
    frozen: Mapping[str, NDArray[np.float32]] | None = None,
) -> Vector:
    """Read a PEFT folder into a vector of shape (layout.size,). UserError if it is another adapter's, or its tensors
    that are not trained are not those in `frozen`. LoRA-XS's R is solved for, from the ordinary LoRA in the folder.

    With `model`, an adapter that names another base model is noticed: a warning if it fits all the same, else in the
    error.
    """
    tensors = read_tensors(folder)
    made_for = base_name(folder)
    other_base = model is not None and made_for != "" and not same_base(made_for, model.path)
    frozen, method = frozen or {}, method_of(layout.names)
    nothing = layout.views(np.zeros(layout.size, np.float32))
    shapes = {name: tensor.shape for name, tensor in method.exported(nothing, frozen).items()}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
        origin = (
            f" It was made for {made_for}, the model here is {model.path}." if model is not None and other_base else ""
        )
        raise UserError(
            f"{folder / WEIGHTS_FILE} does not fit this model and peft: {_misfit(tensors, shapes)}.{origin} "
            "Set model=, peft=, peft.rank= and peft.target_modules= as in its run."
        )
    arrays = method.imported({name: tensor.numpy() for name, tensor in tensors.items()}, frozen, folder / WEIGHTS_FILE)
    if model is not None and other_base:
        log.warning(
            "The adapter in %s was made for %s, the model here is %s: its shapes fit.", folder, made_for, model.path
        )
    return np.concatenate([arrays[name].reshape(-1) for name in layout.names])


def _misfit(tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The first difference between a folder's tensors and the expected shapes."""
    counts = f"it has {len(tensors)} tensors, {len(shapes)} are expected"
    for name in sorted(set(tensors) | set(shapes)):
        if name not in shapes:
            return f"{counts}; {name} is not part of the adapter"
        if name not in tensors:
            return f"{counts}; {name} is missing"
        if tuple(tensors[name].shape) != shapes[name]:
            return f"{counts}; {name} has shape {tuple(tensors[name].shape)}, expected {shapes[name]}"
    return counts
