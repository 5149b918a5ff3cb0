"""What a training pass keeps in memory, and how to keep less: decoder layers are checkpointed (Chen et al. 2016), the
first ones first.

A checkpointed layer keeps its input only and runs forward once more when its turn comes: for the first layers, when the
others have given their memory back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary, WeakSet

from fedfinlora.errors import UserError
from fedfinlora.model.attention import Run, TreePlan, no_mask
from fedfinlora.model.devices import banks_on_a_gpu, cuda_of, devices_of, free_bytes

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedfinlora.model.packing import Pack

WORK_LAYERS = 1.0
"""What a backward pass needs besides what was kept, in activations of a layer: the gradients on their way through one.
"""
HELD_BACK = 0.45
"""What a CPU's heap holds back between tensors, as a share of the activations of all layers, however many are
checkpointed (docs/adr/0013-memory-of-a-training-pass.md).
"""
GIVEN_BACK_BYTES = 256 * 2**20
"""To hand back less is not worth the page faults of the next pass."""
GPU_LIMIT = 0.85
"""Share of a GPU's free memory that a pass may take: kernels' own workspaces and rounding take the rest."""
PROBE_TOKENS = (16, 48)
"""Lengths of the two passes that measure what a token keeps."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that a forward pass of one model keeps for its backward pass."""

    layers: int
    layer_bytes: float
    """A token in one layer that is not checkpointed."""
    input_bytes: int
    """A token in one checkpointed layer: its input."""
    key_bytes: int
    """A key and its value in one layer, where attention gathers a copy of them
    (`fedfinlora.model.attention.Run.keys`).
    """
    answer_bytes: int
    """A position with logits: the logits, their log-softmax and the gradients of both."""
    held_back: float
    """Share of the activations of all layers that is never free: HELD_BACK on CPUs, 0 elsewhere."""
    cast_bytes: int = 0
    """An entry of a mask in the model's arithmetic, where that is not the mask's own: it is cast once a pass."""

    def pass_bytes(self, pack: Pack, checkpointed: int) -> float:
        """Peak of the activations of one forward and backward pass over a pack, `checkpointed` layers being so."""
        runs = pack.plan.runs
        gathered = sum(end - start for run in runs if len(run.keys) > 1 for start, end in run.keys)
        masks = sum(
            run.mask.numel() * (run.mask.element_size() + self.cast_bytes) for run in runs if run.mask is not None
        )
        own = pack.tokens * self.layer_bytes
        kept = (max(self.layers - checkpointed, 1) + WORK_LAYERS) * (own + gathered * self.key_bytes)
        inputs = checkpointed * pack.tokens * self.input_bytes
        return kept + inputs + self.held_back * self.layers * own + len(pack.answer_ids) * self.answer_bytes + masks

    def layers_to_checkpoint(self, pack: Pack, limit_bytes: float) -> int | None:
        """The fewest layers to checkpoint so that a pass stays within the limit; None if all are too few."""
        return next((count for count in range(self.layers + 1) if self.pass_bytes(pack, count) <= limit_bytes), None)


_footprints: WeakKeyDictionary[nn.Module, Footprint] = WeakKeyDictionary()


def footprint(model: nn.Module) -> Footprint:
    """Measured on the model itself, with its quantization, adapter and dropout: what two short passes keep. Once
    per model. MemoryError where a GPU has no room for them next to the model.
    """
    import torch

    if model not in _footprints:
        try:
            _footprints[model] = _measure(model)
        except torch.OutOfMemoryError:
            raise MemoryError(
                f"out of memory: a pass of {max(PROBE_TOKENS)} tokens does not fit next to the model"
            ) from None
    return _footprints[model]


def _measure(model: nn.Module) -> Footprint:
    config = cast(Any, model).config
    layers = len(decoder_layers(model))
    item_bytes = cast(Any, model).dtype.itemsize
    short, long = PROBE_TOKENS
    token_bytes = (_kept_bytes(model, long) - _kept_bytes(model, short)) / (long - short)
    key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Footprint(
        layers=layers,
        layer_bytes=token_bytes / layers,
        input_bytes=config.hidden_size * item_bytes,
        key_bytes=2 * key_heads * width * item_bytes,
        answer_bytes=config.vocab_size * (12 + (2 * item_bytes if item_bytes < 4 else 0)),
        held_back=HELD_BACK if next(model.parameters()).device.type == "cpu" else 0.0,
        cast_bytes=item_bytes if item_bytes < 4 else 0,
    )


def _kept_bytes(model: nn.Module, tokens: int) -> int:
    """Bytes that a forward pass over so many tokens keeps for its backward pass, besides the model itself."""
    import torch

    device = next(model.parameters()).device
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    living: WeakSet[_Saved] = WeakSet()

    def keep(tensor: torch.Tensor) -> _Saved:
        saved = _Saved(tensor)
        living.add(saved)
        return saved

    plan = TreePlan((Run(0, tokens, ((0, tokens),), mask=None),))
    token_ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
    with (
        torch.enable_grad(),
        _inputs_of_int8(model) as inputs,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved.tensor),
    ):
        output = model(
            input_ids=token_ids, attention_mask=no_mask(device), plan=plan, logits_to_keep=1, use_cache=False
        )
    storages = [tensor.untyped_storage() for tensor in (*(saved.tensor for saved in living), *inputs)]
    kept = {storage.data_ptr(): storage.nbytes() for storage in storages if storage.data_ptr() not in own}
    del output
    return sum(kept.values())


@contextmanager
def _inputs_of_int8(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """The inputs that bitsandbytes' int8 layers keep for their backward pass as attributes, where autograd's hooks do
    not see them.
    """
    if find_spec("bitsandbytes") is None:
        yield []
        return
    from bitsandbytes.nn.modules import Linear8bitLt

    found: list[torch.Tensor] = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].requires_grad:
            found.append(inputs[0].detach())

    handles = [module.register_forward_pre_hook(note) for module in model.modules() if isinstance(module, Linear8bitLt)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class _Saved:
    """A tensor that the graph holds for its backward pass; it goes with that part of the graph, such as DoRA's norms,
    which are detached: their memory may be another tensor's before the pass ends.
    """

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def give_back_heap() -> None:
    """Give the C library's free heap back to the system (glibc's malloc_trim(3)), where that is at least
    GIVEN_BACK_BYTES.

    glibc keeps what was freed below anything in use: a training pass's activations, until the next round.
    """
    import ctypes

    class Mallinfo2(ctypes.Structure):  # mallinfo(3), since glibc 2.33
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in [
                "arena",
                "ordblks",
                "smblks",
                "hblks",
                "hblkhd",
                "usmblks",
                "fsmblks",
                "uordblks",
                "fordblks",
                "keepcost",
            ]
        ]

    library = ctypes.CDLL(None)
    trim, measure = getattr(library, "malloc_trim", None), getattr(library, "mallinfo2", None)
    if trim is None:  # another C library
        return
    if measure is not None:
        measure.restype = Mallinfo2
        if measure().fordblks < GIVEN_BACK_BYTES:
            return
    trim(ctypes.c_size_t(0))


def pass_limit_bytes(model: nn.Module) -> float:
    """What the activations of a pass may take: half of the free memory of a CPU, GPU_LIMIT of a GPU's, divided by the
    banks that train on it. Of a model on several GPUs, what all may take when the fullest has no more.
    """
    devices = devices_of(model)
    if not cuda_of(devices):
        return free_bytes(devices[0]) / 2
    where = [next(layer.parameters()).device for layer in decoder_layers(model)]
    workers = banks_on_a_gpu()
    return limit_of({device: GPU_LIMIT * free_bytes(device) / workers for device in devices}, where)


def limit_of(room_bytes: Mapping[torch.device, float], layer_devices: Sequence[torch.device]) -> float:
    """Bytes of all layers' activations when the first device is full: layers are alike, and lie on `layer_devices`.

    >>> import torch
    >>> one, two = torch.device("cuda:0"), torch.device("cuda:1")
    >>> limit_of({one: 30.0, two: 80.0}, [one, two, two, two]), limit_of({one: 30.0}, [one])
    (106.66666666666667, 30.0)
    """
    used = set(layer_devices)
    return min(room_bytes[device] * len(layer_devices) / layer_devices.count(device) for device in used)


def reset_peak(device: torch.device) -> None:
    """Let `peak_bytes` count from now on."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # no Linux, or not allowed: the peak is then that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Most memory in use since `reset_peak`: all of the process on CPUs, all tensors on GPUs."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):
        status = Path("/proc/self/status").read_text("ascii", "replace")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformers model that can be checkpointed one by one, in order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[nn.Module] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no layers that can be checkpointed. Choose a causal language model of "
            "transformers."
        )
    return layers


def checkpoint_first(layers: Sequence[nn.Module], count: int) -> None:
    """Checkpoint the first `count` layers from now on, and no others."""
    from torch.utils.checkpoint import checkpoint

    for number, layer in enumerate(layers):
        switched = cast(Any, layer)
        switched.gradient_checkpointing = number < count
        switched._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


@contextmanager
def own_checkpointing(layers: Sequence[nn.Module]) -> Iterator[None]:
    """After it, also after an error, the layers are as transformers made them."""
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("gradient_checkpointing", None)
            vars(layer).pop("_gradient_checkpointing_func", None)
