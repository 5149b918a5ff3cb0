"""`gate`: train X-LoRA's gate over several adapters on public rows; `evaluate --route xlora` takes its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from eval.xlora_gate import Gate, adapter_id, gated
from eval.xlora_model import GatedExpert
from fedfinlora.commands.asked_models import Expert, check_gated, check_one_base, folders_of, labels_of
from fedfinlora.commands.baseline_rows import pooled_rows
from fedfinlora.compose import compose
from fedfinlora.errors import ConfigError, UserError, plural
from fedfinlora.files import made_as, make_private, unwritable
from fedfinlora.model.adapter import trainable
from fedfinlora.model.adapter_folder import WEIGHTS_FILE, peft_settings
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
    labels = labels_of(folders_of([Path(expert.folder) for expert in experts]), experts)
    if len(labels) < 2:
        raise ConfigError("gate weighs several adapters: name two or more with --adapter.")
    settings = {label: peft_settings(place, config) for label, place in labels.items()}
    check_one_base("gate", labels, config.model.path)
    check_gated("gate", settings)
    if without := [str(place) for place in labels.values() if not (place / WEIGHTS_FILE).is_file()]:
        raise UserError(f"{without[0]} is no PEFT adapter: {WEIGHTS_FILE} is missing.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already. Name a new folder for the gate.")
    make_private(folder)
    try:
        with TemporaryFile(dir=folder):  # what cannot be written is known before the training
            pass
    except OSError as error:
        raise unwritable(folder, error) from error
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
        gate = Gate(
            np.array(weight), np.array(bias), config.model.path, tuple(labels),
            tuple(adapter_id(place, settings[label]) for label, place in labels.items()), done.rows, done.steps,
            (done.step_losses[0], done.step_losses[-1]), config.seed,
        )  # fmt: skip
    with made_as(folder):
        gate.save(folder, list(labels.values()))
    print(f"loss {gate.losses[0]:.3f} in the first step, {gate.losses[1]:.3f} in the last; gate: {folder}")
    named = " ".join(f"--adapter {label}={place}" for label, place in labels.items())
    print(f"next: python -m fedfinlora evaluate {named} --route xlora --gate {folder}")
    return 0


def _show(report: StepReport) -> None:
    if report.step == report.steps or report.step % 10 == 0:
        print(f"step {report.step}/{report.steps}: loss {report.loss:.3f}", flush=True)
