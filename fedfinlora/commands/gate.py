"""`gate`: train X-LoRA's gate over several adapters on public rows; `evaluate --route xlora` takes its folder."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from eval.xlora_gate import Gate, adapter_id, gated
from eval.xlora_model import GatedExpert
from fedfinlora.commands.asked_models import Expert, check_gated, check_one_base, folders_of, labels_of
from fedfinlora.commands.baseline_rows import pooled_rows
from fedfinlora.compose import compose
from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import ConfigError, UserError, plural
from fedfinlora.files import check_writable, made_as, make_private
from fedfinlora.model.adapter import trainable
from fedfinlora.model.adapter_folder import check_factors, peft_settings
from fedfinlora.model.loading import get_session
from fedfinlora.train.loop import StepReport, Stretch, train

NAME = "gate"
"""What the seed of its row order is drawn for."""


def train_gate(folder: Path, experts: Sequence[Expert], overrides: Sequence[str]) -> int:
    """Write the gate's folder and print how its loss went."""
    # the adapters' own settings are in their folders, and a gate has one round
    config = compose(["peft=lora", "num_server_rounds=1", *overrides])
    if config.privacy.mode != "none":
        raise ConfigError("gate trains without privacy: take public rows, and leave privacy out.")
    folders = folders_of([Path(expert.folder) for expert in experts])
    if len(folders) < len(experts):
        raise ConfigError("--adapter names one folder twice. Name each adapter once.")
    labels = labels_of(folders, experts)
    if len(labels) < 2:
        raise ConfigError("gate weighs several adapters: name two or more with --adapter.")
    settings = {label: peft_settings(place, config) for label, place in labels.items()}
    check_one_base("gate", labels, config.model.path)
    check_gated("gate", settings)
    for place in labels.values():
        check_factors(place)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already. Name a new folder for the gate.")
    was_there = folder.is_dir()
    make_private(folder)
    try:
        check_writable(folder)  # before the training
        gate = _trained(config, labels, settings)
        with made_as(folder):
            gate.save(folder, list(labels.values()))
    except BaseException:
        if not was_there:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    print(f"loss {gate.losses[0]:.3f} in the first step, {gate.losses[1]:.3f} in the last; gate: {folder}")
    named = [word for label, place in labels.items() for word in ("--adapter", f"{label}={place}")]
    words = ["evaluate", *named, "--route", "xlora", "--gate", str(folder)]
    print(f"next: python -m fedfinlora {shlex.join(words)}")
    return 0


def _trained(config: Config, labels: Mapping[str, Path], settings: Mapping[str, PeftConfig]) -> Gate:
    """The gate over the adapters of these folders, by label."""
    first = next(iter(settings.values()))
    config = replace(config, peft=first, banks=1, num_server_rounds=1)
    session = get_session(config)
    rows = pooled_rows(config, session)
    adapters = [GatedExpert(settings[label], place).loaded(config) for label, place in labels.items()]
    print(f"gate over {', '.join(labels)}: {len(rows.train)} rows, {plural(rows.steps, 'step')}", flush=True)
    with gated(session.model, adapters) as model:
        stretch = Stretch(0, rows.steps, rows.steps, rows.rows_per_step)
        done = train(model, rows.train, stretch, config.train, seed=config.seed, bank=NAME, on_step=_show)
        weight, bias = (trainable(model)[f"gate.layers.0.{name}"].detach().cpu().numpy() for name in ("weight", "bias"))
        return Gate(
            np.array(weight), np.array(bias), config.model.path, tuple(labels),
            tuple(adapter_id(place, settings[label]) for label, place in labels.items()), done.rows, done.steps,
            (done.step_losses[0], done.step_losses[-1]), config.seed,
        )  # fmt: skip


def _show(report: StepReport) -> None:
    if report.step == report.steps or report.step % 10 == 0:
        print(f"step {report.step}/{report.steps}: loss {report.loss:.3f}", flush=True)
