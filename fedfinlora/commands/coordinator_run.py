"""`coordinator plan|run`: what a run would ask of each bank, and a run with all that are connected."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eval.rows import data_files
from fedfinlora.compose import PROJECT_ROOT, compose
from fedfinlora.config.schema import Config
from fedfinlora.config.words import typed_keys
from fedfinlora.deployment.coordinator_home import (
    CONNECTION,
    SETTINGS,
    Coordinator,
    enrolled,
)
from fedfinlora.deployment.following import watch
from fedfinlora.deployment.plan import deployment_config, plan_text
from fedfinlora.deployment.run_list import note_run
from fedfinlora.errors import UserError
from fedfinlora.files import made_as, read_json, write_bytes
from fedfinlora.model.adapter_folder import start_files
from fedfinlora.run.folder import COMMAND_LOCK, SERVER_LOCK, hold_run, new_run_folder, read_config
from fedfinlora.run.origin import note_origin
from fedfinlora.run.resuming import check_same
from fedfinlora.system.locks import check_free
from server_app.door import check_settings_on_disk


def plan(home: Path, overrides: Sequence[str], out: Path | None, min_banks: int) -> int:
    """Write what `run` with these words would ask of each bank; on the terminal where no file is named."""
    banks = min_banks or (len(enrolled(home)) if (home / SETTINGS).is_file() else 0)
    text, said = plan_text(overrides, banks)
    for sentence in said:
        print(sentence, file=sys.stderr)
    if out is None:
        print(text, end="")
        return 0
    write_bytes(out, text.encode())
    print(f"plan: {out}. Give it to the banks: python -m fedfinlora bank try {out.name}")
    return 0


def run(home: Path, overrides: Sequence[str], min_banks: int) -> int:
    """Start a run with every bank that is connected, and follow it. Ctrl-C ends the display, not the run."""
    coordinator = Coordinator(home)
    if not coordinator.healthy():
        raise UserError("The coordinator is not running. Start it: python -m fedfinlora coordinator start")
    banks = min_banks or len(enrolled(home))
    if not banks:
        raise UserError("No bank is enrolled: python -m fedfinlora coordinator enroll node.key.pub --name BANK")
    config, said = (compose(overrides), []) if "resume" in typed_keys(overrides) else deployment_config(overrides)
    for sentence in said:
        print(sentence, flush=True)
    if config.resume:
        folder = Path(config.resume)
        config = replace(read_config(folder), resume=config.resume, resume_anyway=config.resume_anyway)
        check_same(folder, config, data_files(config) | start_files(config))
    else:
        check_settings_on_disk(config)
        folder = new_run_folder(config)
        strategy = replace(config.strategy, min_banks=config.strategy.min_banks or banks)
        config = replace(config, run_name=folder.name, overwrite=False, banks=banks, strategy=strategy)
    with hold_run(folder, COMMAND_LOCK), made_as(folder):
        check_free(folder / SERVER_LOCK, f"The run {folder}")
        return _run_in(folder, coordinator, config)


def _run_in(folder: Path, coordinator: Coordinator, config: Config) -> int:
    home = coordinator.home
    if not config.resume and not config.strategy.deadline_s:
        print(
            "warning: with strategy.deadline_s=0 a round waits for ever for an answer that was lost on its way",
            file=sys.stderr,
        )
    print(f"run folder: {folder}", flush=True)
    note_origin(folder)
    note_run(home, folder)
    link = coordinator.link(folder)
    run_id = link.start(config)
    print(
        f"flwr run {PROJECT_ROOT} {CONNECTION} --run-config {folder / 'state' / 'run-config.toml'}  (run {run_id})",
        flush=True,
    )
    try:
        watch(link, folder, run_id)
    except UserError as error:
        raise UserError(f"{error} {_how_to_resume(coordinator, folder)}") from error
    except KeyboardInterrupt:
        stop = f"FLWR_HOME={home / 'flwr'} flwr stop {run_id} {CONNECTION}"
        print(f"\nThe run continues without you, in {folder}. To end it: {stop}", file=sys.stderr)
        return 1
    result = read_json(folder / "result.json")
    if result["status"] != "completed":
        raise UserError(f"{result['reason']} {_how_to_resume(coordinator, folder)}")
    return 0


def _how_to_resume(coordinator: Coordinator, folder: Path) -> str:
    first = "" if coordinator.healthy() else "The coordinator is not running: start it again. "
    return f"{first}Resume with: python -m fedfinlora coordinator run resume={folder}"
