"""Opening a run's folder, new or to resume, and summing it up in result.json."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedfinlora.checkpoint import Checkpoint, load_checkpoint, restore_rounds
from fedfinlora.config import Config, to_plain
from fedfinlora.errors import UserError
from fedfinlora.runfolder import (
    config_fingerprint,
    new_run_folder,
    read_config,
    read_json,
    read_lines,
    write_config,
    write_json,
)


@dataclass(frozen=True)
class OpenRun:
    """A run's folder, ready to train in."""

    folder: Path
    config: Config
    run_id: str
    """The folder's name and a random part: banks keep their optimiser states under it."""
    checkpoint: Checkpoint | None
    """Where to go on; None at the start."""


def open_run(config: Config, banks: int, mode: str) -> OpenRun:
    """Make a new run's folder, or open the one to resume. UserError when a resumed run was configured otherwise."""
    if not config.resume:
        config = replace(config, banks=banks)
        folder = new_run_folder(config)
        run_id = f"{folder.name}-{secrets.token_hex(4)}"
        write_config(folder, config)
        write_json(folder / "state" / "run.json", {"run_id": run_id, "mode": mode, "config_sha256": config_fingerprint(config)})
        return OpenRun(folder, config, run_id, None)
    folder = Path(config.resume)
    former = read_config(folder)
    check_same_configuration(folder, former, replace(config, banks=former.banks))
    identity = read_json(folder / "state" / "run.json")
    if identity.get("mode") != mode:
        raise UserError(
            f"{folder} is a {identity.get('mode')} run, not a {mode} one: go on with it by that command and resume={folder}."
        )
    checkpoint = load_checkpoint(folder)
    restore_rounds(folder, checkpoint)
    return OpenRun(folder, former, identity["run_id"], checkpoint)


def check_same_configuration(folder: Path, former: Config, asked: Config) -> None:
    """UserError that lists the differences, unless the two give the same numbers."""
    if config_fingerprint(asked) != config_fingerprint(former):
        raise UserError(
            f"{folder} was started with another configuration: {', '.join(differences(former, asked))}. "
            f"Resume with the same settings, or with resume={folder} alone, which takes them from the run."
        )


def differences(one: Config, other: Config) -> list[str]:
    """The keys in which two configurations differ, as `key: 1 -> 2`."""

    def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        return found

    first, second = flat(to_plain(one)), flat(to_plain(other))
    ignored = ("output_dir", "run_name", "resume", "overwrite")
    return [f"{key}: {first[key]} -> {second[key]}" for key in first if first[key] != second[key] and key not in ignored]


def run_result(run: OpenRun, status: str, reason: str, wall_s: float, mode: str = "federated") -> dict[str, Any]:
    """The content of result.json from what lies in the run's folder."""
    lines = read_lines(run.folder / "rounds.jsonl")
    config = run.config
    scores: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    synthetic = config.dataset.source == "sample"
    evaluate_s = 0.0
    for label in ("base", "final"):
        file = run.folder / "eval" / label / "metrics.json"
        if file.is_file():
            metrics = read_json(file)
            scores[label], skipped = metrics["scores"], metrics["skipped"]
            synthetic = bool(metrics["synthetic"])
            evaluate_s += sum(metrics["seconds"].values())
    banks = [bank for line in lines for bank in line["banks"]]
    return {
        "mode": mode,
        "status": status,
        "reason": reason,
        "run": run.folder.name,
        "run_dir": str(run.folder),
        "model": config.model.name,
        "quantization": config.model.quantization,
        "peft": config.peft.method,
        "strategy": config.strategy.name if mode == "federated" else mode,
        "rounds": len(lines),
        "banks": config.banks,
        "seed": config.seed,
        "config_sha256": config_fingerprint(config),
        "rows_trained": sum(bank["rows"] for bank in banks),
        "steps_trained": sum(bank["steps"] for bank in banks),
        "tokens_trained": sum(bank["tokens"] for bank in banks),
        "wall_s": {
            "total": wall_s,
            "train": sum(line["timings"]["train_s"] for line in lines),
            "evaluate": evaluate_s,
            "aggregate": sum(line["timings"]["aggregate_s"] for line in lines),
        },
        "bytes_up": sum(line["bytes_up"] for line in lines),
        "bytes_down": sum(line["bytes_down"] for line in lines),
        "privacy": None,
        "synthetic": synthetic,
        "scores": scores,
        "skipped": skipped,
    }


def configuration_of(folder: Path, asked: Config | None) -> Config:
    """The configuration to resume `folder` with: its own, or the one asked for, which `open_run` then compares with its own."""
    own = read_config(folder.expanduser())
    return replace(asked or own, resume=str(folder.expanduser().absolute()))
