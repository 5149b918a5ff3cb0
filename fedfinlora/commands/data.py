"""`data check`: what is in a folder, before anybody trains on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.check import check_folder, render
from data.sources.layout import layout_of
from data.sources.listing import shown
from fedfinlora.base_checks import context_tokens
from fedfinlora.compose import compose
from fedfinlora.embedded import embedded_folder, is_embedded
from fedfinlora.errors import UserError


def check(root: Path, overrides: Sequence[str]) -> int:
    """Print the report; 1 when a file is unreadable, has bad rows or is another one's double.

    The folder is read as `dataset=` in the overrides says, else as a bank's own folder would be.
    """
    from transformers import AutoTokenizer

    named = {word.split("=")[0].lstrip("+~") for word in overrides}
    config = compose([*overrides, "dataset.root=."])  # which takes a folder's name with blanks, quotes or brackets for syntax
    if not root.is_dir() and not root.is_file():
        raise UserError(f"{shown(str(root))} is not a folder.")
    folder = str(embedded_folder(config.model.path)) if is_embedded(config.model.path) else config.model.path
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=config.model.revision)
    except (OSError, ValueError) as error:
        raise UserError(f"The tokenizer of {config.model.path} cannot be loaded: {str(error).splitlines()[0]}") from error

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        return list(tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    source = config.dataset.source if named & {"dataset", "dataset.source", "experiment"} else ""
    if source not in ("finlora", "jsonl"):
        source = layout_of(root)
    if source == "finlora" and not root.is_dir():
        raise UserError(f"{shown(str(root))} is not a folder: dataset=finlora reads folders, dataset=jsonl single files too.")
    report = check_folder(root, source, tokenize, context_tokens(config.model), config.dataset.columns)
    print(render(report))
    return 0 if report.ok else 1
