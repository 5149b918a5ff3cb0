"""Opening a run's folder, new or to resume, and summing it up."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.files import made_as, read_json, write_json
from fedfinlora.run.checkpoint import Checkpoint, load_checkpoint, restore_rounds
from fedfinlora.run.evaluation import read_evaluation
from fedfinlora.run.events import RunDone, RunStart
from fedfinlora.run.folder import (
    ROUND_LABEL,
    SERVER_LOCK,
    config_fingerprint,
    deciding_values,
    hold_run,
    new_run_folder,
    read_config,
    write_config,
)
from fedfinlora.run.privacy_card import privacy_card
from fedfinlora.run.records import PrivacyCard, PrivacySummary, RoundLine, RunResult, WallTimes, read_rounds
from fedfinlora.run.resuming import check_same, record
from fedfinlora.run.selection import choice
from fedfinlora.system.locks import Lock

DataFiles = Callable[[Config], Mapping[str, str]]
"""File -> SHA-256 of all that a configuration reads."""
SavedFiles = Callable[[Path], Mapping[str, str]]
"""Path in a run's folder -> SHA-256 of what its rounds have saved."""


@dataclass(frozen=True)
class OpenRun:
    """A run's folder, ready to train in."""

    folder: Path
    config: Config
    run_id: str
    """The folder's name and a random part: banks keep their optimiser states under it."""
    checkpoint: Checkpoint | None
    """Where to resume; None at the start."""
    lock: Lock | None = None
    """Held by who trains in it."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it, and let others have it in the end."""
        with self.lock or nullcontext(), made_as(self.folder):
            yield

    def start_event(self, mode: str, strategy: str, banks: int, bank_names: tuple[str, ...] = ()) -> RunStart:
        """The first event of an attempt to train."""
        return RunStart(
            run=self.folder.name,
            model=self.config.model.name,
            peft=self.config.peft.method,
            strategy=strategy,
            rounds=self.config.num_server_rounds,
            banks=banks,
            bank_names=bank_names,
            run_dir=str(self.folder),
            mode=mode,
            process=os.getpid(),
            resumed_after_round=self.checkpoint.round if self.checkpoint else None,
        )

    def done_event(self, status: str, reason: str, report: str | Path = "") -> RunDone:
        return RunDone(status=status, reason=reason, run_dir=str(self.folder), report=str(report))


def open_run(
    config: Config, banks: int, mode: str, data_files: DataFiles = lambda config: {}, saved: SavedFiles = lambda run: {}
) -> OpenRun:
    """Make a new run's folder, or open the one to resume, and hold it until `OpenRun.held` ends. UserError when a
    resumed run was configured otherwise, or began with other files (`data_files`: file -> SHA-256 of what a
    configuration reads), or another trains in the folder.
    """
    folder = Path(config.resume) if config.resume else new_run_folder(config)
    if config.resume:
        read_config(folder)  # it is a run's folder: nothing is written to any other
    lock = hold_run(folder, SERVER_LOCK)
    try:
        with made_as(folder):
            opened = (
                _resumed(config, folder, mode, data_files, saved)
                if config.resume
                else _begun(replace(config, banks=banks), folder, mode)
            )
    except BaseException:
        lock.release()
        raise
    return replace(opened, lock=lock)


def _begun(config: Config, folder: Path, mode: str) -> OpenRun:
    run_id = f"{folder.name}-{secrets.token_hex(4)}"
    write_config(folder, config)
    write_json(
        folder / "state" / "run.json", {"run_id": run_id, "mode": mode, "config_sha256": config_fingerprint(config)}
    )
    return OpenRun(folder, config, run_id, None)


def _resumed(config: Config, folder: Path, mode: str, data_files: DataFiles, saved: SavedFiles) -> OpenRun:
    former = read_config(folder)
    identity = read_json(folder / "state" / "run.json")
    if identity.get("mode") != mode:
        raise UserError(
            f"{folder} is a {identity.get('mode')} run, not a {mode} one: resume it by that command and "
            f"resume={folder}."
        )
    anyway = config.resume_anyway
    config = resumed_configuration(folder, replace(config, banks=former.banks))
    checkpoint = load_checkpoint(folder, saved(folder))
    differences = check_same(folder, replace(config, resume_anyway=anyway), data_files(config))
    record(folder, checkpoint.round, differences)
    restore_rounds(folder, checkpoint)
    return OpenRun(folder, config, identity["run_id"], checkpoint)


def resumed_configuration(folder: Path, asked: Config) -> Config:
    """The configuration to resume with: the run's own, but for what decides no number, which is as asked and kept in
    config.yaml. UserError that lists the other differences.
    """
    own = read_config(folder)
    if config_fingerprint(asked) != config_fingerprint(own):
        raise UserError(
            f"{folder} was started with another configuration: {', '.join(differences(own, asked))}. "
            f"Resume with the same settings, or with resume={folder} alone, which takes them from the run."
        )
    config = replace(
        asked,
        output_dir=own.output_dir,
        run_name=own.run_name,
        resume=own.resume,
        overwrite=own.overwrite,
        resume_anyway=False,
    )
    if config != own:
        write_config(folder, config)
    return config


def differences(one: Config, other: Config) -> list[str]:
    """The keys that decide numbers and differ, as `key: 1 -> 2`."""
    first, second = deciding_values(one), deciding_values(other)
    return [f"{key}: {first[key]} -> {second[key]}" for key in first if first[key] != second[key]]


def run_result(
    run: OpenRun,
    status: str,
    reason: str,
    wall_s: float,
    mode: str = "federated",
    lines: Sequence[RoundLine] | None = None,
) -> RunResult:
    """result.json from the run's folder. `lines` are those of rounds.jsonl where they were read already."""
    lines, config = read_rounds(run.folder) if lines is None else lines, run.config
    evaluations = {label: read_evaluation(run.folder, label) for label in _labels(run.folder)}
    chosen = choice(lines, config)
    if not (run.folder / "adapters" / "final").is_dir():
        chosen = replace(chosen, final_round=None)
    banks = [bank for line in lines for bank in line.banks]
    private = config.privacy.in_the_bank
    synthetic = config.dataset.source == "sample"
    return RunResult(
        mode=mode,
        status=status,
        reason=reason,
        run=run.folder.name,
        run_dir=str(run.folder),
        model=config.model.name,
        quantization=config.model.quantization,
        peft=config.peft.method,
        strategy=config.strategy.name if mode == "federated" else mode,
        rounds=len(lines),
        best_round=chosen.best_round,
        validation_score=chosen.validation_score,
        final_round=chosen.final_round,
        stopped_early_after_round=chosen.stopped_early_after_round,
        banks=config.banks,
        seed=config.seed,
        config_sha256=config_fingerprint(config),
        rows_trained=None if private else sum(bank.rows for bank in banks),
        steps_trained=sum(bank.steps for bank in banks),
        tokens_trained=None if private else sum(bank.tokens for bank in banks),
        wall_s=WallTimes(
            total=wall_s,
            train=sum(line.timings.train_s for line in lines),
            evaluate=sum(line.timings.evaluate_s + line.timings.validate_s for line in lines)
            + sum(seconds for found in evaluations.values() for seconds in found.seconds.values()),
            aggregate=sum(line.timings.aggregate_s for line in lines),
        ),
        bytes_up=sum(line.bytes_up for line in lines),
        bytes_down=sum(line.bytes_down for line in lines),
        bytes_saved=sum(line.sync.bytes_saved for line in lines if line.sync),
        privacy=_summary_of(privacy_card(config, lines)),
        synthetic=[*evaluations.values()][-1].synthetic if evaluations else synthetic,
        scores={label: found.scores for label, found in evaluations.items()},
        skipped={key: reason for found in evaluations.values() for key, reason in found.skipped.items()},
    )


def _summary_of(card: PrivacyCard | None) -> PrivacySummary | None:
    return PrivacySummary(card.mode, card.unit, card.epsilon, card.delta, card.void) if card else None


def _labels(folder: Path) -> list[str]:
    """Base and final first, then the others by name; without scores by round."""
    labels = [file.parent.name for file in (folder / "eval").glob("*/metrics.json")]
    order = {"base": 0, "final": 1}
    return sorted(
        (label for label in labels if not ROUND_LABEL.fullmatch(label)), key=lambda label: (order.get(label, 2), label)
    )


def asked_otherwise(overrides: Sequence[str]) -> list[str]:
    """The words of a resumed run that ask for a configuration of its own; output_dir only says where it lies."""
    return [
        word for word in overrides if word.split("=")[0].lstrip("+") not in ("resume", "resume_anyway", "output_dir")
    ]


def configuration_of(folder: Path, asked: Config | None, anyway: bool = False) -> Config:
    """To resume `folder` with: its own, or the one asked for, which `open_run` then compares with its own."""
    own = read_config(folder.expanduser())
    return replace(
        asked or own, resume=str(folder.expanduser().absolute()), resume_anyway=anyway or (asked or own).resume_anyway
    )
