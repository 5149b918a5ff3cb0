"""`evaluate`: the shared evaluator on an adapter folder or on the base model; a run folder of its own with mode "evaluate"."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.evaluate import data_files
from eval.evaluate import evaluate as evaluate_model
from eval.report import write_run_report
from fedfinlora.adapter import load_adapter, write_adapter
from fedfinlora.compose import compose
from fedfinlora.config import Config
from fedfinlora.errors import UserError
from fedfinlora.models import get_session, initial_adapter
from fedfinlora.progress import EventWriter, ProgressDisplay
from fedfinlora.runfolder import new_run_folder, read_json, write_config, write_manifest, write_result
from fedfinlora.runs import OpenRun, run_result


def evaluate(overrides: Sequence[str], adapter: Path | None) -> int:
    """Write eval/base or eval/final, result.json and report.html."""
    config = compose(overrides)
    if adapter is not None:
        config = _with_adapter_settings(config, adapter, overrides)
    label = "base" if adapter is None else "final"
    name = config.run_name or f"{time.strftime('%Y%m%d-%H%M%S')}-{config.model.name}-evaluate-{label}"
    config = replace(config, run_name=name)
    folder = new_run_folder(config)
    run = OpenRun(folder, config, name, None)
    write_config(folder, config)
    print(f"run folder: {folder}", flush=True)
    started = time.monotonic()
    with ProgressDisplay() as display, EventWriter(folder / "progress.jsonl") as log:

        def events(event: str, **fields: Any) -> None:
            log.write(event, **fields)
            display.handle({"t": time.time(), "event": event, **fields})

        method = "none" if adapter is None else config.peft.method
        events(
            "run_start", run=name, model=config.model.name, peft=method, strategy="none", rounds=0, banks=0, run_dir=str(folder),
            mode="evaluate",
        )  # fmt: skip
        events("phase", name="loading model")
        session = get_session(config)
        vector = initial_adapter(session, config) if adapter is None else load_adapter(adapter, session.layout)
        write_adapter(session.model, vector)
        write_manifest(folder, config, data_files(config))
        events("phase", name=f"evaluating {label}")
        summary = evaluate_model(session, config, label, folder, events)
        if not summary["scores"]:
            reason = next(iter(summary["skipped"].values()), "evaluation.benchmarks names none")
            raise UserError(f"Nothing was scored: {reason}")
        write_result(folder, run_result(run, "completed", "", time.monotonic() - started, "evaluate"))
        report = write_run_report([folder], folder / "report.html")
        events("run_done", status="completed", reason="", run_dir=str(folder), report=str(report))
    print(f"report: {report}")
    return 0


def _with_adapter_settings(config: Config, adapter: Path, overrides: Sequence[str]) -> Config:
    """Rank, alpha, method and targets from the folder's adapter_config.json, unless named on the command line."""
    file = adapter / "adapter_config.json"
    if not file.is_file():
        raise UserError(
            f"{adapter} is no PEFT adapter: adapter_config.json is missing. Name a folder such as RUN/adapters/final."
        )
    if any(word.startswith("peft") for word in overrides):
        return config
    values = read_json(file)
    try:
        method = "dora" if values.get("use_dora") else "rslora" if values.get("use_rslora") else "lora"
        rank, alpha, targets = int(values["r"]), int(values["lora_alpha"]), values["target_modules"]
        if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
            raise TypeError("target_modules is no list of names")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file} does not say what is needed ({error}). Give peft.rank=, peft.alpha= and peft.target_modules=[…] on the command line."
        ) from error
    peft = replace(config.peft, method=method, rank=rank, alpha=alpha, target_modules=tuple(sorted(targets)))
    return replace(config, peft=peft)
