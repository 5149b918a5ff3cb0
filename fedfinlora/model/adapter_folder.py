"""Adapter folders as other programs write them: PEFT from 0.10 on, alone or through trainers such as FinLoRA's.

Two questions are answered here without loading a base model: which of our settings computes the same as the folder's
adapter_config.json (`peft_settings`), and which tensors it holds, under the names that PEFT saves today
(`read_tensors`). What cannot be computed here is refused by the name of its key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedfinlora.config.frozen_ranks import earlier_fault
from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError, printable
from fedfinlora.files import read_json, read_mapping, sha256_of
from fedfinlora.model.peft_methods import METHODS
from fedfinlora.model.peft_methods.lora import A, B

if TYPE_CHECKING:
    import torch

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
PROVENANCE_FILE = "provenance.json"
"""A statement about the other two files, with their SHA-256 (`fedfinlora.provenance.release`)."""

_TO_SAFETENSORS = (
    'python -c "import torch; from safetensors.torch import save_file; save_file({name: tensor.contiguous() for name, '
    "tensor in "
    "torch.load('adapter_model.bin', weights_only=True, map_location='cpu').items()}, 'adapter_model.safetensors')\""
)
"""Converts a pickle in the current folder; `weights_only` keeps it from running anything."""

_MERGE = "Merge it into its base model with PEFT's merge_and_unload, save that and evaluate it with model.path=FOLDER."
"""The way out for what PEFT can compute and we cannot."""

_READ_KEYS = {"peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_dora", "use_rslora"}
"""Keys that `peft_settings` turns into ours or checks."""

_KEYS_WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
}
"""Keys that are not needed to compute with an adapter's tensors. Every key that is neither here nor above must be
empty, so that keys of later versions are refused.
"""

_EMPTY: tuple[Any, ...] = (None, False, "", "none", [], {})
_PLAIN_STARTS: tuple[Any, ...] = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base model's weights as they are; pissa, olora, corda, loftq and others
change them.
"""

_TENSOR_NAME = re.compile(
    r"(?P<layer>.+)\.(?:(?P<factor>lora_[AB])(?:\.[^.]+)?\.weight|(?P<magnitude>lora_magnitude_vector)(?:\.[^.]+)?(?:\.weight)?)"
)
"""`LAYER.lora_A.weight`, `LAYER.lora_A.default.weight`, `LAYER.lora_magnitude_vector`, the same with `.default`,
`.weight` or both.
"""
_MODEL_PREFIX = "base_model.model."


def check_as_written(folder: Path) -> None:
    """UserError where an adapter's files are not those that the statement next to them speaks of. A folder without a
    statement, and a file that is missing, pass.

    The statement may be forged: this finds a file that was edited, cut or copied here from elsewhere.
    """
    statement = folder / PROVENANCE_FILE
    if not statement.is_file():
        return
    try:
        subject = {one["name"]: one["digest"]["sha256"] for one in read_mapping(statement)["subject"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{statement} is damaged: it names no files. Bring back a copy of the folder.") from error
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        file = folder / name
        if file.is_file() and subject.get(name) != sha256_of(file.read_bytes()):
            raise UserError(
                f"{file} is not the file that {PROVENANCE_FILE} next to it speaks of: it was changed after its run. "
                f"Bring it back; to use it as it is, copy {CONFIG_FILE} and {WEIGHTS_FILE} alone to another folder."
            )


def check_factors(folder: Path) -> None:
    """UserError where a folder of LoRA factors is not whole: a factor without its partner, or of another rank than
    adapter_config.json says.
    """
    tensors, rank = read_tensors(folder), read_mapping(folder / CONFIG_FILE).get("r")
    factors = {name: tensor for name, tensor in tensors.items() if name.endswith((A, B))}
    for name, tensor in factors.items():
        mine, other = (A, B) if name.endswith(A) else (B, A)
        if name.removesuffix(mine) + other not in factors:
            raise UserError(
                f"{folder / WEIGHTS_FILE} is not whole: {name} has no {other.removeprefix('.')}. Bring it back."
            )
        found = tensor.shape[0 if mine == A else 1]
        if found != rank:
            raise UserError(
                f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE}: {name} has rank {found}, and r is {rank}. Bring "
                "both back from one run."
            )


def peft_settings(folder: Path, config: Config) -> PeftConfig:
    """Method, rank, alpha, dropout and target modules of a PEFT folder. UserError for what cannot be computed here, and
    for files that were changed after their run (`check_as_written`).

    Where the folder names its layers by a regular expression, by "all-linear" or with exceptions, the names of its
    tensors say which layers are meant.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"{folder} is no PEFT adapter: {CONFIG_FILE} is missing. {_where_adapters_are(folder)}")
    values = read_json(file)
    if not isinstance(values, dict):
        raise UserError(f"{file} is damaged: it holds no settings.")
    check_as_written(folder)
    own = next((name for name, kind in METHODS.items() if kind.peft_type == values.get("peft_type") != "LORA"), None)
    if own:  # it has no scaling, and its dropout acts in training only
        targets = _target_modules(folder, file, values)
        here = config.peft
        return PeftConfig(own, _whole_number(file, values, "r"), here.alpha, here.dropout, target_modules=targets)
    _refuse_unsupported(file, values)
    flags = {key: True for key in ("use_dora", "use_rslora") if values.get(key)}
    method = next((name for name, kind in METHODS.items() if kind.saved_as == name and kind.flags == flags), None)
    if method is None:
        raise UserError(
            f"{file} has use_dora and use_rslora at once, which is not supported. Use an adapter with one of them."
        )
    return replace(
        config.peft,
        method=method,
        rank=_whole_number(file, values, "r"),
        alpha=_whole_number(file, values, "lora_alpha"),
        dropout=_dropout(values, config.peft.dropout),
        target_modules=_target_modules(folder, file, values),
        frozen_rank=0,
        trained_modules=(),
        loraplus_ratio=1.0,
        rows="",
    )


def check_start(config: Config) -> None:
    """UserError where the adapter in config.start_adapter is of another kind than the run's. Reads no tensors."""
    if not config.start_adapter:
        return
    found = peft_settings(Path(config.start_adapter), config)
    if config.peft.frozen_rank:
        if fault := earlier_fault(config.peft, found):
            raise UserError(f"start_adapter={config.start_adapter} {fault}")
        return
    differing = differing_settings(found, config.peft, {"method", "rank", "alpha", "target_modules"})
    if differing:
        raise UserError(f"start_adapter={config.start_adapter} is of another kind. Set {', '.join(differing)}.")


def differing_settings(found: PeftConfig, wanted: PeftConfig, names: Set[str]) -> list[str]:
    """Which of the named settings of a folder's adapter are not as wanted, as `peft.rank=4 (here 8)`: of the form in
    which the wanted adapter is saved, which has twice the rank of PiSSA's.
    """
    wanted = METHODS[wanted.method].saved(wanted)
    return [
        f"peft.{name}={there} (here {here})"
        for name, there, here in (
            ("method", found.method, METHODS[wanted.method].saved_as),
            ("rank", found.rank, wanted.rank),
            ("alpha", found.alpha, wanted.alpha),
            ("target_modules", sorted(found.target_modules), sorted(wanted.target_modules)),
        )
        if name in names and there != here
    ]


def start_files(config: Config) -> dict[str, str]:
    """The file that a run starts from and its SHA-256, for the manifest; none where the adapter is drawn."""
    file = Path(config.start_adapter) / WEIGHTS_FILE
    return (
        {f"start_adapter/{WEIGHTS_FILE}": sha256_of(file.read_bytes())}
        if config.start_adapter and file.is_file()
        else {}
    )


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor of a PEFT folder, float32 on the CPU, under the names of `fedfinlora.model.adapter.saved_name`.

    16-bit values become float32 exactly. UserError for a pickle, a damaged file and tensors that are not an adapter's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise UserError(_no_weights(folder))
    try:
        stored = load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is damaged ({error}). Take another copy of it, or another round's adapter.") from error
    tensors: dict[str, torch.Tensor] = {}
    for foreign_name, tensor in stored.items():
        stored_name = printable(foreign_name)
        name = plain_name(stored_name)
        if name.endswith(".weight") and "lora_" not in name:
            raise UserError(
                f"{file}: {stored_name} is no tensor of a LoRA adapter but a weight of the base model, which is not "
                f"supported. {_MERGE}"
            )
        if name in tensors:
            raise UserError(f"{file} holds two adapters: {name} is there twice. Save one adapter by itself.")
        if not tensor.is_floating_point() and not name.endswith(".shira_indices"):
            raise UserError(
                f"{file}: {stored_name} is of type {tensor.dtype}. Save the adapter in float32, float16 or bfloat16."
            )
        tensors[name] = tensor.float()
        if not bool(tensors[name].isfinite().all()):
            raise UserError(
                f"{file}: {stored_name} holds values that are not finite. Take another checkpoint of its training."
            )
    return tensors


def plain_name(stored_name: str) -> str:
    """The name under which PEFT saves a tensor today, for any version and adapter name it was saved under.

    >>> plain_name("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight")
    'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'
    >>> plain_name("model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight")
    'base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector'
    """
    found = _TENSOR_NAME.fullmatch(stored_name)
    if found is None:
        return stored_name
    layer = found["layer"] if found["layer"].startswith(_MODEL_PREFIX) else _MODEL_PREFIX + found["layer"]
    return f"{layer}.{found['magnitude']}" if found["magnitude"] else f"{layer}.{found['factor']}.weight"


def base_name(folder: Path) -> str:
    """The base model that a PEFT folder says it was made for; empty where it does not say."""
    file = folder / CONFIG_FILE
    values = read_json(file) if file.is_file() else {}
    name = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    return name if isinstance(name, str) else ""


def same_base(one: str, other: str) -> bool:
    """Whether two ids or folders name the same base model: a local copy keeps the last part of the hub's id.

    >>> same_base("meta-llama/Llama-3.1-8B-Instruct", "/models/Llama-3.1-8B-Instruct/")
    True
    """
    last = [name.rstrip("/").rsplit("/", 1)[-1].lower() for name in (one, other)]
    return last[0] == last[1]


def _refuse_unsupported(file: Path, values: Mapping[str, Any]) -> None:
    """UserError naming the first key whose value would change what the adapter computes."""
    kind, task = values.get("peft_type", "LORA"), values.get("task_type")
    if kind != "LORA":
        raise UserError(f"{file}: peft_type is {kind!r}. Only LORA adapters (with DoRA or rsLoRA) can be read.")
    if task not in (None, "CAUSAL_LM"):
        raise UserError(
            f"{file}: task_type is {task!r}. Only adapters of causal language models (CAUSAL_LM) can be read."
        )
    start = values.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise UserError(
            f"{file}: init_lora_weights is {start!r}, which may change the base model's weights too. Convert it to a "
            "plain LoRA first: "
            "PEFT's save_pretrained does it with path_initial_model_for_weight_conversion=FOLDER."
        )
    known = _READ_KEYS | _KEYS_WITHOUT_EFFECT | {"init_lora_weights"}
    for key in sorted(set(values) - known):
        if values[key] not in _EMPTY:
            raise UserError(
                f"{file}: {printable(key)} is set, which changes what the adapter computes and is not supported. "
                f"{_MERGE}"
            )


def _whole_number(file: Path, values: Mapping[str, Any], key: str) -> int:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer() or value < 1:
        raise UserError(
            f"{file}: {key} must be a whole number above 0, not {value!r}. Is this a LoRA adapter's folder?"
        )
    return int(value)


def _dropout(values: Mapping[str, Any], otherwise: float) -> float:
    """Dropout acts in training only, so a missing or odd value is no reason to refuse an adapter."""
    value = values.get("lora_dropout")
    return float(value) if isinstance(value, int | float) and 0 <= value < 1 else otherwise


def _target_modules(folder: Path, file: Path, values: Mapping[str, Any]) -> tuple[str, ...]:
    targets = values.get("target_modules")
    if isinstance(targets, list) and targets and all(isinstance(target, str) for target in targets):
        if not values.get("exclude_modules"):
            return tuple(sorted(targets))
    elif not (isinstance(targets, str) and targets):
        raise UserError(f"{file}: target_modules must name layers, not {targets!r}. Is this a LoRA adapter's folder?")
    return _layers_of(read_tensors(folder))


def _layers_of(names: Iterable[str]) -> tuple[str, ...]:
    """Target modules for the layers that have adapter tensors: `q_proj` if layers 0, 1, … n-1 all have one, else full
    paths.
    """
    paths = {found["layer"].removeprefix(_MODEL_PREFIX) for found in map(_TENSOR_NAME.fullmatch, names) if found}
    numbered: dict[str, dict[int, str]] = {}
    targets: set[str] = set()
    for path in paths:
        found = re.fullmatch(r".*\.layers\.(\d+)\..*?([^.]+)", path)
        if found:
            numbered.setdefault(found[2], {})[int(found[1])] = path
        else:
            targets.add(path)
    count = max((number for places in numbered.values() for number in places), default=-1) + 1
    for module, places in numbered.items():
        targets |= {module} if len(places) == count else set(places.values())
    return tuple(sorted(targets))


def _where_adapters_are(folder: Path) -> str:
    """Which folder to name instead: PEFT puts an adapter that is not called "default" into a folder of its own
    below.
    """
    below = sorted(found.parent.name for found in folder.glob(f"*/{CONFIG_FILE}")) if folder.is_dir() else []
    return f"It lies one level below: {', '.join(below)}." if below else "Name a folder such as RUN/adapters/final."


def _no_weights(folder: Path) -> str:
    if (folder / PICKLE_FILE).is_file():
        return (
            f"{folder} holds {PICKLE_FILE}, a pickle, which could run code of its own and is not read. If you trust "
            "where it comes "
            f"from, convert it in that folder: {_TO_SAFETENSORS}"
        )
    return f"{folder} is no PEFT adapter: {WEIGHTS_FILE} is missing. {_where_adapters_are(folder)}"
