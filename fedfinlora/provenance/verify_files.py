"""Hold the other files of a run's folder against its chain: configuration, adapters, privacy card, and that none was added, changed or taken away."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedfinlora.adapter_folder import WEIGHTS_FILE
from fedfinlora.config import Config
from fedfinlora.errors import UserError
from fedfinlora.privacy.card import privacy_card
from fedfinlora.provenance.chain import CHAIN_FILE, files_of, is_covered
from fedfinlora.provenance.findings import Findings, Round
from fedfinlora.provenance.folder import contents_of
from fedfinlora.provenance.signatures import digest
from fedfinlora.runfolder import deciding_values, read_config, read_json, read_lines

MOST_NAMED = 12
"""Files that are not covered, of which the names are printed."""


def check_identity(run: Path, run_id: str, config: Config | None, found: Findings) -> None:
    """config.yaml and state/run.json are those of the chain."""
    identity = run / "state" / "run.json"
    try:
        if read_json(identity).get("run_id") != run_id:
            found.add(identity, f"it is of another run than {CHAIN_FILE}")
    except (UserError, AttributeError) as error:
        found.add(identity, str(error))
    try:
        own = read_config(run)
        if config is not None and digest(deciding_values(own)) != digest(deciding_values(config)):
            found.add(run / "config.yaml", f"it is not the configuration in {CHAIN_FILE}")
    except UserError as error:
        found.add(run / "config.yaml", str(error))


def check_adapters(run: Path, rounds: Mapping[int, Round], found: Findings) -> None:
    """The saved adapter of each round, where it is kept, holds just the round's vector; the final one is one of them."""
    checked, kept = 0, 0
    folders = {_number_of(folder): folder for folder in (run / "adapters").glob("round_*")}
    for number, one in sorted(rounds.items()):
        if number not in folders or one.config is None:
            continue
        kept += 1
        file = folders[number] / WEIGHTS_FILE
        sha256 = vector_sha256(file, one.config, found)
        if sha256 and sha256 != one.line["adapter_sha256"]:
            found.add(file, f"it is not the adapter in {CHAIN_FILE}")
        checked += sha256 == one.line["adapter_sha256"]
    final = run / "adapters" / "final" / WEIGHTS_FILE
    if final.is_file() and rounds and (config := rounds[max(rounds)].config) and config.peft.method != "lora_xs":
        sha256 = vector_sha256(final, config, found)
        if sha256 and sha256 not in [one.line["adapter_sha256"] for one in rounds.values()]:
            found.add(final, f"it is no adapter that {CHAIN_FILE} has")
    if kept:
        found.checked.append(f"adapters: {checked} of {kept} saved adapters are their round's, number for number")


def vector_sha256(file: Path, config: Config, found: Findings) -> str:
    """Of the vector that was saved there, as float32; "" where it cannot be read off."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        found.add(file, f"it is missing or damaged ({type(error).__name__})")
        return ""
    if config.peft.method == "lora_xs":  # saved as the LoRA that it equals: R cannot be read off bit by bit
        return ""
    trained = [name for name in sorted(tensors) if not (config.peft.freeze_a and ".lora_A." in name)]
    return hashlib.sha256(b"".join(np.ascontiguousarray(tensors[name], "<f4").tobytes() for name in trained)).hexdigest()


def _status(run: Path) -> str:
    """How the run ended: "stopped" and "failed" may be written by the command that followed it, after its server was gone."""
    try:
        return str(read_json(run / "result.json")["status"])
    except (UserError, KeyError, TypeError):
        return ""


def check_files(run: Path, lines: Sequence[tuple[str, Mapping[str, Any]]], found: Findings) -> None:
    """Every file that the last line names is as it was, and there is none that it would name and does not."""
    last = lines[-1][1] if lines else {}
    if last.get("kind") != "end":
        completed = (run / "result.json").is_file() and _status(run) not in ("stopped", "failed")
        for name, ended in (("result.json", completed), ("adapters/final", (run / "adapters/final").exists())):
            if ended:
                found.add(run / CHAIN_FILE, f"its last line is missing: {name} says that the run has ended")
        found.checked.append(f"files: {CHAIN_FILE} has no last line, as of a run that was broken off or is still running")
        return
    try:
        named, here = last["files"], files_of(run)
    except OSError as error:
        found.add(error.filename, f"cannot be read ({error.strerror})")
        return
    for name in sorted({*named, *here}):
        if name not in here:
            found.add(run / name, "it is missing")
        elif name not in named:
            found.add(run / name, "it was not there when the run ended")
        elif named[name] != here[name]:
            found.add(run / name, "it is not as it was when the run ended")
    others = [name for name in contents_of(run).files if not is_covered(name) and name not in (CHAIN_FILE, "privacy.json")]
    more = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
    not_covered = f"; not covered: {', '.join(others[:MOST_NAMED])}{more}" if others else ""
    found.checked.append(f"files: {len(set(named) & set(here))} of {len(named)} are there{not_covered}")


def check_card(run: Path, found: Findings) -> None:
    """privacy.json follows from configuration and rounds."""
    file, audited = run / "privacy.json", run / "audit.json"
    try:
        config, lines = read_config(run), read_lines(run / "rounds.jsonl")
        expected = privacy_card(config, lines, read_json(audited) if audited.is_file() else None)
        if bool(expected) != file.is_file():
            found.add(file, "it is missing" if expected else "this run has no privacy card")
        elif expected and digest(read_json(file)) != digest(expected):
            found.add(file, "it does not follow from config.yaml and rounds.jsonl")
    except UserError as error:
        if not any(str(error).startswith(str(run / name)) for name in ("config.yaml", "rounds.jsonl")):
            found.add(file, str(error))
    except (KeyError, TypeError, ValueError):
        found.add(file, "it does not follow from config.yaml and rounds.jsonl")


def _number_of(folder: Path) -> int:
    digits = folder.name.rpartition("_")[2]
    return int(digits) if digits.isdigit() else -1
