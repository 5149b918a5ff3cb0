"""`harness`: the benchmarks as tasks for lm-evaluation-harness, and the command that asks them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from eval.harness.tasks import PREFIX, is_of_tasks, write_tasks
from fedfinlora.compose import compose
from fedfinlora.errors import UserError
from fedfinlora.model.adapter_folder import CONFIG_FILE
from fedfinlora.model.embedded import embedded_folder, is_embedded


def harness(folder: Path, adapter: Path | None, overrides: Sequence[str]) -> int:
    """Write the tasks into `folder`; print how many rows each has, what has none, and the `lm_eval` command."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file. Name a folder for the tasks.")
    if folder.is_dir() and any(folder.iterdir()) and not is_of_tasks(folder):
        raise UserError(f"{folder} has other files already. Name an empty folder, or one that this command wrote.")
    if adapter is not None and (adapter / "adapters" / "final" / CONFIG_FILE).is_file():
        adapter = adapter / "adapters" / "final"
    if adapter is not None and not (adapter / CONFIG_FILE).is_file():
        what = "--adapter takes the folder of a PEFT adapter or of a finished run"
        raise UserError(f"{adapter} has no {CONFIG_FILE}: {what}.")
    config = compose(overrides)
    written = write_tasks(folder, config)
    for task, rows in written.tasks.items():
        print(f"{task}: {rows} rows")
    for key, reason in written.skipped.items():
        print(f"{key} is left out: {reason}")
    base = config.model.path
    model = f"pretrained={embedded_folder(base) if is_embedded(base) else base}"
    if adapter is not None:
        model += f",peft={adapter.absolute()}"
    words = ["lm_eval", "--model", "hf", "--model_args", model, "--include_path", str(folder), "--tasks", PREFIX]
    print(shlex.join([*words, *(["--apply_chat_template"] if config.dataset.chat_template else [])]))
    return 0
