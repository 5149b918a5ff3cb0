"""The base model with its adapter: loaded and quantized once per process (`fedfinlora.model.quantized`), checked before
use.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fedfinlora.config.model import ModelConfig
from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.adapter import (
    Layout,
    Vector,
    frozen_tensors,
    layout_of,
    load_adapter,
    peft_config_values,
    read_adapter,
    trainable,
    write_adapter,
)
from fedfinlora.model.adapter_folder import check_start
from fedfinlora.model.attention import use_packed_attention
from fedfinlora.model.base_checks import (
    check_attention,
    check_packing,
    check_quantization,
    check_vocabulary,
    context_tokens,
)
from fedfinlora.model.devices import before_cuda_starts, devices_of, pick_device, pick_dtype, placement, prepare_cuda
from fedfinlora.model.embedded import embedded_folder, is_embedded
from fedfinlora.model.hub_faults import first_line, hub_fault
from fedfinlora.model.memory_models import ARCHITECTURES, build
from fedfinlora.model.peft_methods import METHODS
from fedfinlora.model.peft_methods.lora import ADAPTER_NAME, mark_rates
from fedfinlora.model.quantized import (
    compute_in_base_dtype,
    import_bitsandbytes,
    quantization_config,
    steady_on_cpu,
    unpack_on_gpus,
)
from fedfinlora.model.quiet import quiet_libraries, without_progress_bars
from fedfinlora.model.stacked import stacked_start
from fedfinlora.seeds import derive_seed
from fedfinlora.system.web import check_hub

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

log = logging.getLogger("fedfinlora")

MOST_THREADS = 1024


@dataclass(frozen=True)
class Session:
    """A base model with one adapter, its tokenizer and the adapter's layout. Shared by all that runs in a process."""

    model: nn.Module
    """A peft.PeftModel."""
    tokenizer: Any
    layout: Layout
    device: torch.device
    load_s: float
    """Wall time of loading the base model; 0 when it was in memory already."""
    untrained: Vector
    """(layout.size,) float32: the adapter as it was built, for what is not drawn: DoRA's magnitudes are norms of the
    base's weights.
    """
    frozen: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Saved name -> the adapter's tensors that are not trained: A with peft.freeze_a, A and B with peft=lora_xs."""


_bases: dict[tuple[Any, ...], tuple[nn.Module, Any]] = {}
_sessions: dict[tuple[Any, ...], Session] = {}
base_loads = 0
"""How many times this process has loaded a base model."""


def get_session(config: Config) -> Session:
    """The session for a configuration: from memory if this process has it. Only the adapter's values differ between its
    users.
    """
    import dataclasses

    model_config, peft_config = config.model, config.peft
    method = METHODS[peft_config.method]
    what_is_loaded = ("path", "revision", "quantization", "int8_threshold", "unpack", "dtype", "device", "device_map")
    base_key = tuple(getattr(model_config, name) for name in what_is_loaded)
    key = (*base_key, peft_config, config.seed if method.is_fixed_by_seed(peft_config) else None)
    if key in _sessions:
        _set_threads(model_config)
        return dataclasses.replace(_sessions[key], load_s=0.0)
    started = time.monotonic()
    if base_key not in _bases:
        _bases.clear()
        _sessions.clear()
        _bases[base_key] = load_base(model_config)
    load_s = time.monotonic() - started
    base, tokenizer = _bases[base_key]
    for other in list(_sessions):  # one adapter at a time lies in the base's layers
        cast(Any, _sessions.pop(other).model).unload()
    model = add_adapter(base, model_config, peft_config, config.seed)
    method.start(model, config.seed)
    session = Session(
        model,
        tokenizer,
        layout_of(model),
        next(model.parameters()).device,
        load_s,
        read_adapter(model),
        frozen_tensors(model),
    )
    self_test(session)
    _sessions[key] = session
    return session


def forget() -> None:
    """Let go of every model that this process keeps."""
    _sessions.clear()
    _bases.clear()


def load_base(config: ModelConfig) -> tuple[nn.Module, Any]:
    """Load and quantize the base model, frozen, in eval mode, and its tokenizer. UserError says what to do when it
    cannot.
    """
    global base_loads
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    without_progress_bars()
    before_cuda_starts()
    import_bitsandbytes()
    _set_threads(config)
    device = pick_device(config.device)
    if device.type == "cuda":
        prepare_cuda()
    dtype = pick_dtype(config.dtype, device)
    folder = str(embedded_folder(config.path)) if is_embedded(config.path) else config.path
    options: dict[str, Any] = {"dtype": dtype, "revision": config.revision}
    quantization = quantization_config(config, dtype)
    if quantization is not None:
        options["quantization_config"] = quantization
    options |= placement(config.device_map, device)
    if not is_embedded(config.path) and not os.path.isdir(os.path.expanduser(folder)):
        check_hub()
    model: Any
    try:
        check_quantization(config)
        check_attention(config)
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=config.revision)
        if config.path in ARCHITECTURES:
            model = build(Path(folder), device, dtype, quantization)
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, **options)
    except UserError:
        raise
    except Exception as error:  # a download's errors are of three HTTP libraries
        known = isinstance(error, OSError | ValueError | ImportError | SafetensorError)
        if not known and not hub_fault(error, config.path):
            raise
        raise UserError(unreachable(config, error)) from error
    base_loads += 1
    model.requires_grad_(False)
    model.eval()
    model.config.use_cache = False
    # Else adapters would name a cache folder of this machine as their base.
    model.name_or_path = model.config.name_or_path = config.path
    check_vocabulary(model, tokenizer, config.path)
    use_packed_attention(model)
    if device.type == "cpu":
        steady_on_cpu(model, config.unpack)
    else:
        unpack_on_gpus(model, config.unpack)
    check_packing(model, config.path, context_tokens(config))
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"The tokenizer of {config.path} has no end-of-sequence token, so answers could not end. Choose another "
            "model."
        )
    return model, tokenizer


def add_adapter(base: nn.Module, model_config: ModelConfig, peft_config: PeftConfig, seed: int) -> nn.Module:
    """Put a fresh adapter into the base model (`fedfinlora.model.peft_methods`)."""
    import torch
    from peft import LoraConfig, get_peft_model

    _check_targets(base, model_config, peft_config)
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.default_generator.manual_seed(derive_seed(seed, "adapter"))  # torch.manual_seed reseeds CUDA too
        try:
            model = get_peft_model(
                base,
                LoraConfig(**peft_config_values(peft_config, model_config)),
                adapter_name=ADAPTER_NAME,  # type: ignore[arg-type]
            )
        except ValueError as error:
            raise UserError(
                f"peft.target_modules={list(peft_config.target_modules)} does not fit {model_config.name}: {error} "
                "Llama's layers are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj."
            ) from error
    for parameter in trainable(model).values():
        parameter.data = parameter.data.float()
    method = METHODS[peft_config.method]
    try:
        method.build(model, peft_config)
        mark_rates(model, peft_config.loraplus_ratio)
    except UserError:
        cast(Any, model).unload()
        raise
    if any(device.type == "cuda" for device in devices_of(model)) and not method.flags.get("use_dora"):
        compute_in_base_dtype(model)
    return model.eval()


def _check_targets(base: nn.Module, model_config: ModelConfig, peft_config: PeftConfig) -> None:
    """UserError for a name in peft.target_modules that no linear layer has: PEFT passes over it where another one has a
    layer.
    """
    import torch

    layers = base.named_modules()
    # An adapter that could not be taken off has left its layers' own ones one level below.
    linear = [
        name.removesuffix(".base_layer")
        for name, module in layers
        if isinstance(module, torch.nn.Linear) and "lora_" not in name
    ]
    there = sorted({name.rsplit(".", 1)[-1] for name in linear})
    wrong = [
        target
        for target in peft_config.target_modules
        if not any(name == target or name.endswith(f".{target}") for name in linear)
    ]
    if wrong:
        raise UserError(
            f"peft.target_modules: {model_config.name} has no linear layer {', '.join(wrong)}. It has "
            f"{', '.join(there)}."
        )


def initial_adapter(session: Session, config: Config) -> Vector:
    """The start of every run: the adapter as drawn from the seed, independent of earlier training.

    Returns a vector of shape (layout.size,) float32 (`fedfinlora.model.peft_methods`).
    """
    method = METHODS[config.peft.method]
    method.start(session.model, config.seed)
    start = read_adapter(session.model)
    untrained = session.layout.views(session.untrained)
    for name, view in session.layout.views(start).items():
        if not name.endswith(method.drawn):
            view[:] = untrained[name]
    write_adapter(session.model, start)
    return start


def first_adapter(session: Session, config: Config) -> Vector:
    """Where a run starts: the adapter in config.start_adapter, else the initial one. (layout.size,) float32; UserError
    if it does not fit.
    """
    start = initial_adapter(session, config)
    if not config.start_adapter:
        return METHODS[config.peft.method].first(session, config, start)
    check_start(config)
    if config.peft.frozen_rank:
        return stacked_start(start, session.layout, config)
    return load_adapter(Path(config.start_adapter), session.layout, config.model, session.frozen)


def self_test(session: Session) -> None:
    """Raise UserError unless this model trains and evaluates alike, also after an evaluation.

    With the adapter as it is: every trainable tensor receives a finite gradient, some of it non-zero; logits in train()
    without dropout equal those in eval(); and gradients are the same before and after one evaluation. A few tokens,
    some 0.2 s.
    """
    import torch

    model = session.model
    token_ids = torch.arange(3, 11, device=session.device).unsqueeze(0) % model.config.vocab_size  # type: ignore[union-attr, operator]
    parameters = list(trainable(model).values())

    def gradients_and_logits() -> tuple[list[torch.Tensor | None], torch.Tensor]:
        logits = model(input_ids=token_ids).logits.float()
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], token_ids[0, 1:])
        return list(torch.autograd.grad(loss, parameters, allow_unused=True)), logits.detach()

    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    shares = [module.p for module in dropouts]
    for module in dropouts:
        module.p = 0.0
    try:
        model.train()
        before, train_logits = gradients_and_logits()
        model.eval()
        with torch.no_grad():
            eval_logits = model(input_ids=token_ids).logits.float()
        model.train()
        after, logits_after = gradients_and_logits()
    finally:
        model.eval()
        for module, share in zip(dropouts, shares, strict=True):
            module.p = share
    advice = "This quantization is not usable on this machine: try model.quantization=none."
    for gradients, when in ((before, "before"), (after, "after")):
        missing = sum(gradient is None for gradient in gradients)
        if missing:
            raise UserError(
                f"{missing} of {len(gradients)} adapter tensors get no gradient {when} an evaluation. {advice}"
            )
        total = sum(float(gradient.float().norm()) for gradient in gradients if gradient is not None)
        if not 0 < total < float("inf"):
            raise UserError(f"The adapter's gradient norm is {total} {when} an evaluation. {advice}")
    limit = 1e-3 if next(model.parameters()).dtype == torch.float32 and session.device.type == "cpu" else 0.1

    def spread(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one - other).norm() / one.norm().clamp(min=1e-12))

    def flat(gradients: list[torch.Tensor | None]) -> torch.Tensor:
        return torch.cat([gradient.float().reshape(-1) for gradient in gradients if gradient is not None])

    for what, difference in (
        ("logits in training and in evaluation", spread(train_logits, eval_logits)),
        ("logits before and after an evaluation", spread(train_logits, logits_after)),
        ("gradients before and after an evaluation", spread(flat(before), flat(after))),
    ):
        if not difference <= limit:
            raise UserError(f"This model's {what} differ by {difference:.2g} (relative). {advice}")


def _set_threads(config: ModelConfig) -> None:
    import torch

    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    threads = config.threads or (int(given) if given.isdecimal() and int(given) else len(os.sched_getaffinity(0)))
    if threads > MOST_THREADS:  # far more than that, and the process is ended by what starts them
        raise ConfigError(f"model.threads={threads} is above {MOST_THREADS:,}. Use 0 for all cores of this machine.")
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def unreachable(config: ModelConfig, error: Exception) -> str:
    """One line on why a model did not load, and what to do."""
    reason = first_line(error)
    if os.path.exists(os.path.expanduser(config.path or "no folder")):
        return (
            f"The folder {config.path} does not load as a model: {reason}. It needs config.json, *.safetensors and "
            "a tokenizer."
        )
    if not re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", config.path):
        return (
            f"model.path: {config.path[:200]!r} is no folder here, and no name of a model on the hub. "
            "model=smollm2-135m needs neither."
        )
    if fault := hub_fault(error, config.path, licence_url=config.licence_url):
        return f"{fault} model=smollm2-135m needs no network."
    return (
        f"The model {config.path} cannot be loaded: {reason}. Choose another one, or download it elsewhere and give "
        "the folder: "
        "model.path=/path/to/folder. model=smollm2-135m needs no network."
    )
