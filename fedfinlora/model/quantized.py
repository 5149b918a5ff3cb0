"""Quantization of the base model by bitsandbytes: LLM.int8 (Dettmers et al. 2022) or NF4 with double quantization
(Dettmers et al. 2023).

On CPUs two of its habits are taken away: NF4 layers repack their weights at the first evaluation, after which nothing
trains and no error is raised; and int8 layers compute training and evaluation differently. See
docs/adr/0003-quantization-on-cpus.md. On GPUs LoRA's products are made in the base's arithmetic, and NF4 layers are
unpacked where there is room: a product then needs no dequantization.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from fedfinlora.config.model import ModelConfig
from fedfinlora.model.devices import banks_on_a_gpu, free_bytes
from fedfinlora.model.peft_methods.lora import ADAPTER_NAME

if TYPE_CHECKING:
    import torch
    from torch import nn


UNPACKED_SHARE = 0.25
"""Of the memory: what unpacked weights may take."""


def quantization_config(config: ModelConfig, dtype: torch.dtype) -> Any:
    """transformers' BitsAndBytesConfig, None without quantization."""
    if config.quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    if config.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=config.int8_threshold)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def import_bitsandbytes() -> None:
    """Import bitsandbytes without torch's compiler behind it, which takes 0.9 of a process's 5 seconds until its model
    is loaded.

    bitsandbytes compiles four functions on import, which neither CPUs nor CUDA call; here they are compiled when
    called. Its advice, on CPUs with AVX512-BF16, to install kernels from the hub is not passed on: they are not in
    constraints.txt.

    transformers' base of all models, which every caller imports next, comes along, without the garbage collector, which
    frees nothing and takes a tenth of the time.
    """
    import torch

    if importlib.util.find_spec("bitsandbytes") is None:  # an image without it still computes unquantized models
        return
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # int8's inputs are cast to float16 by its design; it warns at every product.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    compile_now = torch.compile

    def compile_later(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled = functools.cache(lambda: compile_now(function, **options))
        return lambda *arguments, **values: compiled()(*arguments, **values)

    collects = gc.isenabled()
    gc.disable()
    try:
        torch.compile = compile_later  # type: ignore[assignment]
        try:
            import bitsandbytes  # noqa: F401
        finally:
            torch.compile = compile_now
        import transformers.modeling_utils  # noqa: F401
    finally:
        if collects:
            gc.enable()


def steady_on_cpu(model: nn.Module, unpack: str) -> None:
    """Make bitsandbytes' layers compute the same in training and evaluation on a CPU, for every CPU.

    int8 layers, and nf4 layers where `unpack` says so, become ordinary linear layers that hold the quantized values.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    packed = [module for module in model.modules() if isinstance(module, Linear4bit)]
    needed_bytes = sum(4 * module.in_features * module.out_features for module in packed)
    unpacks = unpack == "yes" or (unpack == "auto" and needed_bytes <= UNPACKED_SHARE * _memory_bytes())
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False  # no repacking: it would end all training without an error
            if unpacks:
                _replace(model, name, _dequantized(module), module.bias)
        elif isinstance(module, Linear8bitLt):
            scales = cast(Any, module.weight).SCB.float() / 127.0  # (rows,): the largest absolute weight of each output
            weight = (module.weight.data.float() * scales.unsqueeze(1)).to(cast(Any, model).dtype)
            _replace(model, name, weight, module.bias)


def unpack_on_gpus(model: nn.Module, unpack: str) -> None:
    """Turn nf4 layers into ordinary ones that hold the same values in the base's arithmetic, where `unpack` says so;
    auto: where these need at most UNPACKED_SHARE of what is free on each GPU now, divided by the banks on it.
    """
    if unpack == "no" or importlib.util.find_spec("bitsandbytes") is None:
        return
    from bitsandbytes.nn.modules import Linear4bit

    modules = [(name, module) for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    packed = {name: module for name, module in modules if not module.weight.is_meta}  # meta: offloaded by accelerate
    needed_bytes: dict[torch.device, int] = {}
    for module in packed.values():
        weights = module.in_features * module.out_features
        device = module.weight.device
        needed_bytes[device] = needed_bytes.get(device, 0) + weights * cast(Any, model).dtype.itemsize
    banks = banks_on_a_gpu()
    fits = all(needed <= UNPACKED_SHARE * free_bytes(device) / banks for device, needed in needed_bytes.items())
    if unpack == "auto" and not fits:
        return
    for name, module in packed.items():
        _replace(model, name, _dequantized(module).to(cast(Any, model).dtype), module.bias)


def _dequantized(layer: Any) -> torch.Tensor:
    """(out, in): the values of a Linear4bit."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def _replace(model: nn.Module, name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Put a frozen ordinary linear layer with these values in the place of a quantized one."""
    import torch

    plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    plain.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        plain.bias = torch.nn.Parameter(bias.data.to(weight.dtype), requires_grad=False)
    model.set_submodule(name, plain)


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def compute_in_base_dtype(model: nn.Module) -> None:
    """Let a LoRA adapter multiply in the arithmetic of what it is given, bfloat16 on GPUs; its weights, gradients and
    updates stay float32.

    PEFT casts the inputs of every adapted layer to float32 instead, and keeps these copies for the backward pass.
    """
    for module in list(model.modules()):
        if ADAPTER_NAME not in getattr(module, "lora_A", {}):
            continue
        adapted = cast(Any, module)
        adapted.cast_input_dtype_enabled = False
        for factors in (adapted.lora_A, adapted.lora_B):
            for name, layer in list(factors.named_modules()):
                if type(layer).__name__ == "Linear":
                    factors.set_submodule(name, _casting(layer))


def _casting(layer: nn.Linear) -> nn.Linear:
    """The same layer, whose weight is cast to the type of its input in each pass."""
    import torch

    made = _casting_linear()(layer.in_features, layer.out_features, bias=False, device="meta", dtype=torch.float32)
    made.weight = layer.weight
    return cast("nn.Linear", made)


@functools.cache
def _casting_linear() -> Any:
    import torch

    class CastingLinear(torch.nn.Linear):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(values, self.weight.to(values.dtype))

    return CastingLinear
