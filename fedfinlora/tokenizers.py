"""The tokenizer of a configured model without its weights, for counting tokens."""

from __future__ import annotations

from typing import Any

from fedfinlora.config import ModelConfig
from fedfinlora.embedded import embedded_folder, is_embedded
from fedfinlora.errors import UserError


def load_tokenizer(model: ModelConfig) -> Any:
    """The tokenizer that model.path names. UserError when it cannot be had."""
    from transformers import AutoTokenizer

    folder = str(embedded_folder(model.path)) if is_embedded(model.path) else model.path
    try:
        return AutoTokenizer.from_pretrained(folder, revision=model.revision)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"The tokenizer of {model.path} cannot be loaded: {reason} Name a folder or model that can be with model.path=."
        ) from error
