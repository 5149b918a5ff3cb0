"""The tokenizer of a configured model without its weights, for counting tokens."""

from __future__ import annotations

import os
from typing import Any

from fedfinlora.config.model import ModelConfig
from fedfinlora.errors import UserError
from fedfinlora.model.embedded import embedded_folder, is_embedded
from fedfinlora.model.hub_faults import first_line, hub_fault


def load_tokenizer(model: ModelConfig) -> Any:
    """The tokenizer that model.path names. UserError when it cannot be had."""
    from transformers import AutoTokenizer

    folder = str(embedded_folder(model.path)) if is_embedded(model.path) else model.path
    try:
        return AutoTokenizer.from_pretrained(folder, revision=model.revision)
    except Exception as error:  # of three HTTP libraries
        fault = "" if os.path.exists(folder) else hub_fault(error, model.path, licence_url=model.licence_url)
        if not fault and not isinstance(error, OSError | ValueError):
            raise
        raise UserError(
            fault
            or (
                f"The tokenizer of {model.path} cannot be loaded: {first_line(error)} Name a folder or model that can "
                "be with model.path=."
            )
        ) from error
