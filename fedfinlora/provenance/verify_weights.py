"""Compare the saved adapters of a run with its chain: each holds its round's vector, in the form that the configuration says."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedfinlora.adapter import peft_config_values
from fedfinlora.adapter_folder import CONFIG_FILE, WEIGHTS_FILE
from fedfinlora.config import Config
from fedfinlora.errors import UserError
from fedfinlora.provenance.findings import Findings, Round
from fedfinlora.provenance.lines import CHAIN_FILE
from fedfinlora.provenance.signatures import canonical
from fedfinlora.run.records import read_rounds
from fedfinlora.runfolder import read_json
from fedfinlora.selection import choice

FACTORS = {".lora_A.": 0, ".lora_B.": 1}
"""Part of a tensor's name -> the axis that has the rank: A is (rank, d_in), B is (d_out, rank)."""


def check_adapters(run: Path, rounds: Mapping[int, Round], found: Findings) -> None:
    """The saved adapter of each round, where it is kept, is just that round's; the final one is that of the last round, or of the best one."""
    checked, kept = 0, 0
    folders = {_number_of(folder): folder for folder in (run / "adapters").glob("round_*")}
    for number, one in sorted(rounds.items()):
        if number not in folders or one.config is None:
            continue
        kept += 1
        checked += _is_of_round(folders[number], one, f"it is not the adapter in {CHAIN_FILE}", found)
    final = run / "adapters" / "final"
    if (final / WEIGHTS_FILE).is_file() and rounds and (config := rounds[max(rounds)].config):
        last = choice([line for line in read_rounds(run) if line.round in rounds], config).final_round
        if last is not None and last in rounds:
            _is_of_round(
                final,
                rounds[last],
                f"it is not the adapter of round {last}, which {CHAIN_FILE} and rounds.jsonl say is the final one",
                found,
            )
    if kept:
        found.checked.append(f"adapters: {checked} of {kept} saved adapters are their round's, number for number")


def _is_of_round(folder: Path, one: Round, what: str, found: Findings) -> bool:
    """Whether a folder holds the round's vector. LoRA-XS is saved as the LoRA that it equals: of it only the form is compared."""
    assert one.config is not None
    file, config = folder / WEIGHTS_FILE, one.config
    tensors = _tensors(file, found)
    if not tensors:
        return False
    _check_form(folder, tensors, config, found)
    if config.peft.method == "lora_xs":  # R cannot be read off bit by bit
        return False
    trained = [name for name in sorted(tensors) if not (config.peft.freeze_a and ".lora_A." in name)]
    content = b"".join(np.ascontiguousarray(tensors[name], "<f4").tobytes() for name in trained)
    is_same = hashlib.sha256(content).hexdigest() == one.line.adapter_sha256
    if not is_same:
        found.add(file, what)
    return is_same


def _tensors(file: Path, found: Findings) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        found.add(file, f"it is missing or damaged ({type(error).__name__})")
        return {}


def _check_form(folder: Path, tensors: Mapping[str, Any], config: Config, found: Findings) -> None:
    """adapter_config.json says what the configuration says, and each tensor is a factor of the rank at a module that is trained."""
    try:
        saved = read_json(folder / CONFIG_FILE)
    except UserError as error:
        found.add(folder / CONFIG_FILE, str(error))
        return
    expected = peft_config_values(config.peft, config.model)
    other = [
        name
        for name, value in expected.items()
        if not isinstance(saved, dict) or canonical(saved.get(name)) != canonical(value)
    ]
    if other:
        found.add(folder / CONFIG_FILE, f"{', '.join(other)}: not what the configuration in {CHAIN_FILE} says")
    odd = [name for name, tensor in tensors.items() if not _is_factor(name, tensor.shape, config)]
    if odd:
        found.add(
            folder / WEIGHTS_FILE,
            f"{len(odd)} tensors are no factors of rank {config.peft.rank} at {', '.join(config.peft.target_modules)}",
        )


def _is_factor(name: str, shape: tuple[int, ...], config: Config) -> bool:
    parts = name.split(".")
    if name.startswith("base_model.model.") and any(module in parts for module in config.peft.target_modules):
        if "lora_magnitude_vector" in name:
            return config.peft.method == "dora" and len(shape) == 1
        return any(part in name and len(shape) == 2 and shape[axis] == config.peft.rank for part, axis in FACTORS.items())
    return False


def _number_of(folder: Path) -> int:
    digits = folder.name.rpartition("_")[2]
    return int(digits) if digits.isdigit() else -1
