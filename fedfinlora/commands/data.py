"""`data check`: what is in a folder, before anybody trains on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data.catalog import BENCHMARKS, select
from data.check import check_folder, render
from data.check_text import ALL_ROWS
from data.encode import encode_prompts, encode_targets, least_tokens
from data.rows import Row
from data.sources.layout import layout_of
from data.sources.listing import shown
from fedfinlora.compose import compose
from fedfinlora.config.words import typed_keys
from fedfinlora.errors import ConfigError, UserError, choose
from fedfinlora.model.base_checks import context_tokens
from fedfinlora.model.embedded import embedded_folder, is_embedded

_OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w.@:/-]*=|~[A-Za-z_][\w.]*\Z")


def root_and_overrides(words: Sequence[str]) -> tuple[Path, list[str]]:
    """The one folder (or file) among the words of a command line, and the others. A word like key=value is a folder
    only where there is one of that name, and no other word is a folder.
    """
    overrides = [word for word in words if _OVERRIDE.match(word)]
    roots = [word for word in words if word not in overrides]
    roots = roots or [word for word in overrides if Path(word).expanduser().exists()]
    if not roots:
        raise ConfigError("No folder to look at; usage: python -m fedfinlora data check ROOT [key=value …]")
    if len(roots) > 1:
        raise ConfigError(
            f"data check looks at one folder, not at {' and '.join(shown(word) for word in roots)}. "
            "Settings have the form key=value, such as model=tiny-random."
        )
    return Path(roots[0]), [word for word in words if word != roots[0]]


def check(root: Path, overrides: Sequence[str]) -> int:
    """Print the report; 1 when a file is unreadable, has bad rows or is a double. dataset.tasks and
    evaluation.benchmarks say which train and test rows are looked at.

    The folder is read as `dataset=` in the overrides says, else as a bank's own folder would be. The word show=all
    lists every bad and every long row.
    """
    from transformers import AutoTokenizer

    all_rows = ALL_ROWS in overrides
    overrides = [word for word in overrides if word != ALL_ROWS]

    named = typed_keys(overrides)
    config = compose(
        [*overrides, "dataset.root=."]
    )  # which takes a folder's name with blanks, quotes or brackets for syntax
    if not root.is_dir() and not root.is_file():
        raise UserError(f"{shown(str(root))} is not a folder.")
    folder = str(embedded_folder(config.model.path)) if is_embedded(config.model.path) else config.model.path
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=config.model.revision)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The tokenizer of {config.model.path} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error

    def prompts(texts: Sequence[str]) -> list[tuple[int, ...]]:
        return encode_prompts(tokenizer, texts, config.dataset.chat_template)

    source = config.dataset.source if named & {"dataset", "dataset.source", "experiment"} else ""
    if source not in ("finlora", "jsonl"):
        source = layout_of(root)
    if source == "finlora" and not root.is_dir():
        raise UserError(
            f"{shown(str(root))} is not a folder: dataset=finlora reads folders, dataset=jsonl single files too."
        )
    window = context_tokens(config.model)

    def least(row: Row) -> int:
        return least_tokens(tokenizer, row, window, config.dataset.chat_template)

    targets = partial(encode_targets, tokenizer)
    for task in config.dataset.tasks if source == "finlora" else ():
        choose(task, BENCHMARKS, "task")
    tests = (
        [benchmark.key for benchmark in select(config.evaluation.benchmarks)]
        if config.evaluation.benchmarks != ("all",)
        else []
    )
    wanted = {"train": config.dataset.tasks, "test": tests}
    report = check_folder(root, source, prompts, window, config.dataset.columns, targets, least, wanted)
    print(render(report, all_rows))
    return 0 if report.ok else 1
