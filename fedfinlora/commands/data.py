"""`data check`: what is in a folder, before anybody trains on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.check import check_folder, render
from data.sources.layout import finlora_files
from fedfinlora.base_checks import context_tokens
from fedfinlora.compose import compose
from fedfinlora.embedded import embedded_folder, is_embedded
from fedfinlora.errors import UserError


def check(root: Path, overrides: Sequence[str]) -> int:
    """Print the report; 1 when a file is unreadable or has bad rows."""
    from transformers import AutoTokenizer

    config = compose(overrides)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder.")
    folder = str(embedded_folder(config.model.path)) if is_embedded(config.model.path) else config.model.path
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=config.model.revision)
    except (OSError, ValueError) as error:
        raise UserError(f"The tokenizer of {config.model.path} cannot be loaded: {str(error).splitlines()[0]}") from error

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        return list(tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    source = "finlora" if finlora_files(root, "train")[0] or finlora_files(root, "test")[0] else "jsonl"
    report = check_folder(root, source, tokenize, context_tokens(config.model))
    print(render(report))
    return 0 if report.ok else 1
