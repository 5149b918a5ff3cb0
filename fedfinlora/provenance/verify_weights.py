"""Compare a run's saved adapters and checkpoints with its chain: each holds its round's vector."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError, plural
from fedfinlora.files import read_json
from fedfinlora.model.adapter import Layout, frozen_sha256, norm
from fedfinlora.model.adapter_folder import CONFIG_FILE, WEIGHTS_FILE
from fedfinlora.model.peft_methods import METHODS
from fedfinlora.provenance.compared import differences
from fedfinlora.provenance.findings import Findings, Round
from fedfinlora.provenance.lines import CHAIN_FILE
from fedfinlora.provenance.rules import Rules, State
from fedfinlora.provenance.signatures import canonical
from fedfinlora.provenance.verify_frozen import FrozenRanks
from fedfinlora.provenance.verify_rounds import Norms
from fedfinlora.run.checkpoint import FILES, adapter_checksum, read_checkpoint
from fedfinlora.run.records import ROUNDS_FILE, RoundLine
from fedfinlora.run.selection import choice
from fedfinlora.run.typed import to_json
from fedfinlora.system.numbered import by_number, number_of

SAVED_BY_PEFT = {"peft_type": "LORA", "inference_mode": True, "init_lora_weights": True}
OF_PEFT = {
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
    "init_weights": True,
    "mask_type": "random",
}
"""What PEFT adds to adapter_config.json, the second by its version; all else, but for that, is null, false or empty.
"""
NO_ADAPTER = np.zeros(0, np.float32)
FACTORS = {".lora_A.": 0, ".lora_B.": 1}
"""Part of a tensor's name -> the axis that has the rank: A is (rank, d_in), B is (d_out, rank)."""


def adapter_size(run: Path) -> int:
    """How many numbers an adapter has, by the last checkpoint; 0 = not known."""
    for file in by_number(run / "state", FILES)[::-1]:
        with suppress(UserError):
            return int(read_checkpoint(file).arrays.get("adapter", NO_ADAPTER).size)
    return 0


def check_checkpoints(
    run: Path,
    rounds: Mapping[int, Round],
    started: str | None,
    lines: Sequence[RoundLine],
    state: State | None,
    found: Findings,
) -> None:
    """Each checkpoint holds its round's adapter and line; the last one also `state`, what the server's rule remembers
    after it, where that could be computed.
    """
    for file in by_number(run / "state", FILES):
        number = number_of(file)
        expected = rounds[number].adapter_sha256 if number in rounds else started if number == 0 else None
        try:
            saved = read_checkpoint(file)
        except UserError as error:
            found.add(file, f"it cannot be read: {error}")
            continue
        if (saved.round, adapter_checksum(saved.arrays.get("adapter", NO_ADAPTER))) != (number, expected):
            found.add(file, f"it does not hold round {number} and the adapter that {CHAIN_FILE} has of it")
        if saved.closed and 0 < number <= len(lines):
            found.differs(differences(to_json(lines[number - 1]), dict(saved.line), file, ROUNDS_FILE, "line"))
        if state is not None and number == max(rounds) and not _same_arrays(state.arrays, saved.arrays):
            found.add(file, "what the server's rule remembers is not what the kept deltas give")


def _same_arrays(expected: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    own = {name: array for name, array in found.items() if name != "adapter"}
    return sorted(own) == sorted(expected) and all(np.array_equal(own[name], array) for name, array in expected.items())


@dataclass(frozen=True)
class SavedNorms:
    """Euclidean norms that the saved adapters give."""

    steps: Mapping[int, Norms]
    """Round -> its step, where the adapter before it is kept as well."""
    lengths: Mapping[str, float]
    """SHA-256 of an adapter -> its norm."""


def check_adapters(
    run: Path,
    rounds: Mapping[int, Round],
    started: str | None,
    lines: Sequence[RoundLine],
    rules: Rules,
    found: Findings,
) -> SavedNorms:
    """The saved adapter of each round is just that round's; the final one is that of the last round, or of the best
    one; and none has moved a rank that peft.frozen_rank or peft.trained_modules leaves as it is. `started` is the
    SHA-256 of the first adapter.
    """
    checked, kept = 0, 0
    norms, lengths = dict[int, Norms](), dict[str, float]()
    frozen = FrozenRanks(run, started, rules, found)
    last: tuple[int, Any] = (0, None)
    folders = {_number_of(folder): folder for folder in (run / "adapters").glob("round_*")}
    for entry in sorted((run / "adapters").glob("*")):
        if entry.name not in ("final", "best") and _number_of(entry) not in rounds.keys() | {0}:
            found.add(entry, "the run has no such adapter")
    for number in sorted(folders.keys() & rounds.keys()):
        if rounds[number].config is None:
            continue
        kept += 1
        vector = _of_round(folders[number], rounds[number], f"it is not the adapter in {CHAIN_FILE}", found)
        if vector is not None:
            checked += 1
            if last[0] == number - 1 and last[1] is not None:
                norms[number] = _step_between(last[1], vector)
            last = number, vector
            lengths.setdefault(rounds[number].adapter_sha256, norm(vector))
            frozen.compare(folders[number], rounds[number], vector)
    if rounds and (config := rounds[max(rounds)].config):
        chosen = choice(lines[: max(rounds)], config)
        is_over = (run / "adapters" / "final").is_dir()  # until then "best" may be of a round that is not closed yet
        for folder, chosen_round, what in (
            ("final", chosen.final_round, "the final"),
            ("best", chosen.best_round, "the best"),
        ):
            one = rounds.get(chosen_round or 0)
            if is_over and one is None and folder == "best" and (run / "adapters" / folder).is_dir():
                found.add(run / "adapters" / folder, "no round was validated, so none was the best")
            if is_over and (run / "adapters" / folder / WEIGHTS_FILE).is_file() and one is not None:
                said = (
                    f"it is not the adapter of round {chosen_round}, which {CHAIN_FILE} and rounds.jsonl say is "
                    f"{what} one"
                )
                _of_round(run / "adapters" / folder, one, said, found)
    if kept:
        config = rounds[max(rounds)].config
        if config is not None and not METHODS[config.peft.method].whole:
            found.not_proven(
                run / "adapters",
                f"peft={config.peft.method} is saved as what it equals in PEFT, and the chain has what was trained: "
                + ("of the rest only the form was compared" if checked else "its numbers are not compared with it"),
            )
        elif config is not None and config.peft.freeze_a:
            found.not_proven(
                run / "adapters", "A is frozen, so the chain does not have it; of A only the form was compared"
            )
        found.checked.append(f"adapters: {checked} of {kept} saved adapters are their round's, number for number")
    frozen.sum_up()
    return SavedNorms(norms, lengths)


def _step_between(before: Any, after: Any) -> Norms:
    """The norm of a step from two adapters, each of which was rounded to float32."""
    length = norm(after.astype(np.float64) - before)
    return Norms(length, 2 * 2.0**-23 * max(norm(after), norm(before)))


def _of_round(folder: Path, one: Round, what: str, found: Findings) -> Any:
    """The round's vector if a folder holds it. LoRA-XS is saved as the LoRA that it equals: of it only the form is
    compared.
    """
    assert one.config is not None
    file, config = folder / WEIGHTS_FILE, one.config
    tensors = _tensors(file, found)
    if not tensors:
        return None
    _check_form(folder, tensors, config, found)
    method = METHODS[config.peft.method]
    if not method.whole:
        of_method = method.recovered(tensors, config.peft)
        if of_method is None:  # LoRA-XS's R cannot be read off bit by bit
            return None
        return _vector_of(of_method, sorted(of_method), one, file, what, found)
    trained = [name for name in sorted(tensors) if not (config.peft.freeze_a and ".lora_A." in name)]
    shapes = tuple(tuple(tensors[name].shape) for name in trained)
    frozen = frozen_sha256({name: tensors[name] for name in tensors if name not in trained})
    layout = Layout(tuple(trained), shapes, frozen)
    if layout.id != one.line.request.get("layout-id", layout.id):
        found.add(file, f"its tensors have other names or shapes than the adapter that {CHAIN_FILE} speaks of")
    return _vector_of(tensors, trained, one, file, what, found)


def _vector_of(
    tensors: Mapping[str, Any], names: Sequence[str], one: Round, file: Path, what: str, found: Findings
) -> Any:
    """The tensors of these names as one vector, (size,) float32, if it is the round's; else None and a finding."""
    vector = np.concatenate([np.ascontiguousarray(tensors[name], "<f4").ravel() for name in names])
    if hashlib.sha256(vector.data).hexdigest() != one.adapter_sha256:
        found.add(file, what)
        return None
    return vector


def _tensors(file: Path, found: Findings) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        found.add(file, f"it is missing or damaged ({type(error).__name__})")
        return {}


def _check_form(folder: Path, tensors: Mapping[str, Any], config: Config, found: Findings) -> None:
    """adapter_config.json says what the configuration says, and each tensor is a factor of the rank at a trained
    module.
    """
    try:
        saved = read_json(folder / CONFIG_FILE)
    except UserError as error:
        found.add(folder / CONFIG_FILE, str(error))
        return
    method = METHODS[config.peft.method]
    expected = method.folder_config(config.peft, config.model)
    values = saved if isinstance(saved, dict) else {}
    by_peft = SAVED_BY_PEFT if method.peft_type == "LORA" else {"peft_type": method.peft_type, "inference_mode": True}
    expected = {**expected, **by_peft}
    other = [name for name, value in expected.items() if canonical(values.get(name)) != canonical(value)]
    more = {name: value for name, value in values.items() if name not in expected and value}
    other += [name for name, value in more.items() if value != OF_PEFT.get(name) and name != "peft_version"]
    if other:
        found.add(folder / CONFIG_FILE, f"{', '.join(other)}: not what the configuration in {CHAIN_FILE} says")
    odd = [
        name
        for name, tensor in tensors.items()
        if (tensor.dtype != np.float32 and not name.endswith(".shira_indices"))
        or not _is_factor(name, tensor.shape, config)
    ]
    if odd:
        found.add(
            folder / WEIGHTS_FILE,
            f"no float32 factors of rank {config.peft.rank}: {plural(len(odd), 'tensor')} at "
            f"{', '.join(config.peft.target_modules)}",
        )


def _is_factor(name: str, shape: tuple[int, ...], config: Config) -> bool:
    parts, method = name.split("."), METHODS[config.peft.method]
    rank = method.saved(config.peft).rank
    if name.startswith("base_model.model.") and any(module in parts for module in config.peft.target_modules):
        if "lora_magnitude_vector" in name:
            return config.peft.method == "dora" and len(shape) == 1
        if method.peft_type != "LORA":
            return name.endswith(method.saved_ends)
        return any(part in name and len(shape) == 2 and shape[axis] == rank for part, axis in FACTORS.items())
    return False


def _number_of(folder: Path) -> int:
    digits = folder.name.rpartition("_")[2]
    return int(digits) if digits.isdigit() else -1
