"""Checks of a base model before use: it computes packed rows as it computes them alone, and is what was asked for.

Rows are packed end to end and attend by ranges of keys (`fedfinlora.model.attention`). That is the model's attention
where each token sees all tokens before it. A layer that looks back a fixed number of tokens, caps or biases its scores,
or keeps a state would give another result; such models are refused by name, and a comparison with plain rows finds the
others.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedfinlora.config.model import ModelConfig
from fedfinlora.errors import UserError
from fedfinlora.model.embedded import embedded_folder, is_embedded

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

WINDOWS = ("sliding_window", "attention_chunk_size")
"""Names in a model's configuration for how many tokens a layer looks back."""
FULL = "full_attention"
COMMON_TOKENS, OWN_TOKENS = 48, (5, 9, 17)
"""Rows of the comparison: tokens in common, and of each alone; fewer where the model's rows are shorter."""
FLOAT32_TOLERANCE, LOW_PRECISION_TOLERANCE = 1e-3, 0.1
"""Largest difference of packed and plain logits, as a share of their norm."""
NEAR_TIE = 0.05
"""In bfloat16 two tokens are equally likely where their logits differ by less than this share of the standard deviation
of all logits.
"""


def configuration_of(model: ModelConfig) -> Any:
    """The model's own configuration, config.json, without its weights. OSError or ValueError where it cannot be had."""
    folder = embedded_folder(model.path) if is_embedded(model.path) else Path(model.path).expanduser()
    file = folder / "config.json"
    changed_ns = file.stat().st_mtime_ns if file.is_file() else 0
    return _configuration(str(folder) if changed_ns else model.path, model.revision, changed_ns)


@lru_cache(maxsize=8)
def _configuration(folder: str, revision: str, changed_ns: int) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, revision=revision).get_text_config()


def context_tokens(model: ModelConfig) -> int:
    """The longest row in tokens: model.context_tokens, or the model's own number of positions where that is smaller.

    Without the model's configuration (a model behind a server) the setting alone.
    """
    try:
        positions = getattr(configuration_of(model), "max_position_embeddings", None)
    except (OSError, ValueError):
        positions = None
    return (
        min(model.context_tokens, positions) if isinstance(positions, int) and positions > 0 else model.context_tokens
    )


def check_quantization(model: ModelConfig) -> None:
    """UserError where the files are quantized already, in another way than model.quantization says: the run's record
    would be wrong.
    """
    stored = getattr(configuration_of(model), "quantization_config", None)
    if stored is None:
        return
    values: dict[str, Any] = stored if isinstance(stored, dict) else stored.to_dict()
    by_bitsandbytes = values.get("quant_method", "bitsandbytes") == "bitsandbytes"
    found = "int8" if values.get("load_in_8bit") else str(values.get("bnb_4bit_quant_type", "fp4"))
    found = found if by_bitsandbytes else str(values.get("quant_method"))
    if found != model.quantization:
        raise UserError(
            (
                f"The files of {model.path} are quantized already ({found}), so "
                f"model.quantization={model.quantization} "
                "would not be true. "
            )
            + (
                f"Set model.quantization={found}."
                if found in ("int8", "nf4")
                else "Take the model's files in full precision."
            )
        )


def check_attention(model: ModelConfig) -> None:
    """UserError, by name, for attention that packed rows do not have."""
    own = configuration_of(model)
    kinds = set(getattr(own, "layer_types", None) or [FULL])
    odd = kinds - {FULL, "sliding_attention", "chunked_attention"}
    if odd:
        raise UserError(
            f"{model.path} has layers of kind {', '.join(sorted(odd))}, which cannot take packed rows. Choose another "
            "model."
        )
    if getattr(own, "attn_logit_softcapping", None):
        raise UserError(
            f"{model.path} caps its attention's scores (attn_logit_softcapping), which is not computed here. Choose "
            "another model."
        )
    sizes = [
        getattr(own, name, None) for name in WINDOWS if name != WINDOWS[0] or getattr(own, "use_sliding_window", True)
    ]
    windows = [size for size in sizes if isinstance(size, int) and size > 0]
    all_full = getattr(own, "layer_types", None) and kinds == {FULL}
    if windows and not all_full and min(windows) < context_tokens(model):
        raise UserError(
            f"{model.path} looks back {min(windows)} tokens only, and rows may have {context_tokens(model)}. "
            f"Set model.context_tokens={min(windows)}; longer rows are then bad rows (dataset.on_bad_row)."
        )


def check_vocabulary(model: nn.Module, tokenizer: Any, path: str) -> None:
    """UserError where the tokenizer has tokens that the model does not know. One that was added for padding alone is
    never read.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator, union-attr]
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"The tokenizer of {path} has {tokenizer.vocab_size} tokens and the model {rows} embeddings: they do not "
            "belong together."
        )


def check_packing(model: nn.Module, path: str, most_tokens: int) -> None:
    """UserError unless packed rows have the logits of the same rows alone. Some 0.2 s for 135 million parameters."""
    import torch

    from fedfinlora.model.packing import Example, answer_logits, make_pack

    device = next(model.parameters()).device
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator, union-attr]
    common = [7 * place % vocabulary for place in range(min(COMMON_TOKENS, most_tokens // 2))]
    own = [min(tokens, max(4, most_tokens - len(common))) for tokens in OWN_TOKENS]
    rows = [
        common + [(11 * place + number) % vocabulary for place in range(tokens)] for number, tokens in enumerate(own, 1)
    ]
    examples = [Example(tuple(row[:-3]), tuple(row[-3:]), number) for number, row in enumerate(rows)]
    refused = f"{path} computes packed rows otherwise than the same rows alone"
    with torch.no_grad():
        try:
            pack = make_pack(examples, device)
            together = answer_logits(model, pack)
        except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            raise UserError(
                f"{path} cannot compute packed rows ({type(error).__name__}). Choose another model."
            ) from error
        alone = torch.cat([_plain_logits(model, rows[number], device) for number in pack.row_index])
    difference = float((together - alone).norm() / alone.norm().clamp(min=1e-12))
    precise = device.type == "cpu" and next(model.parameters()).dtype == torch.float32
    if not difference <= (FLOAT32_TOLERANCE if precise else LOW_PRECISION_TOLERANCE):
        raise UserError(
            f"{refused} (logits differ by {difference:.2g} of their norm), so its results would be wrong. Choose "
            "another model."
        )


def is_near_tie(logits: torch.Tensor, one: int, other: int, share: float = NEAR_TIE) -> bool:
    """Whether another product order may choose `other` instead of `one` from logits of shape (vocabulary,): they differ
    by less than `share` of the standard deviation of all.

    On CPUs packed and cached decoding give the tokens of plain decoding. On GPUs products of other shapes round
    otherwise: a difference is an error unless it begins at such a tie.
    """
    return bool((logits[one] - logits[other]).abs() < share * logits.float().std())


def _plain_logits(model: nn.Module, row: list[int], device: torch.device) -> torch.Tensor:
    """(3, vocabulary) float32: logits in front of the row's last three tokens."""
    import torch

    call: Callable[..., Any] = model
    logits: torch.Tensor = call(input_ids=torch.tensor([row[:-1]], device=device), use_cache=False).logits
    return logits[0, -3:].float()
