"""What goes with a finished adapter: where it comes from, its bill of materials, and the aggregator's signature over all of it.

`provenance.json` is an in-toto statement (v1) about the adapter's files: base model, data, code, configuration, banks, rounds, privacy card.
`bom.cdx.json` is a CycloneDX 1.6 bill of materials of a machine-learning model. `model.sig` (`fedfinlora.provenance.model_signature`) covers both
and the adapter; without a signing key, as in a simulation, it is not there.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedfinlora import __version__
from fedfinlora.adapter_folder import CONFIG_FILE, WEIGHTS_FILE
from fedfinlora.config import Config
from fedfinlora.errors import UserError
from fedfinlora.model_files import model_sha256
from fedfinlora.provenance.chain import CHAIN_FILE, read_line
from fedfinlora.provenance.model_signature import SIGNATURE_FILE, STATEMENT, sign_folder
from fedfinlora.provenance.signatures import Signer, WrongSignature
from fedfinlora.runfolder import config_fingerprint, read_json, read_lines, sha256_of, write_json
from fedfinlora.selection import choice

PROVENANCE_FILE, BOM_FILE = "provenance.json", "bom.cdx.json"
PREDICATE = "urn:fedfinlora:training:1"
FINAL = Path("adapters") / "final"


def write_release(run: Path, config: Config, signer: Signer | None) -> None:
    """Write statement, bill of materials and signature into adapters/final of a finished run. UserError where the disk does not take it."""
    folder = run / FINAL
    predicate = predicate_of(run, config)
    files = {name: sha256_of((folder / name).read_bytes()) for name in (CONFIG_FILE, WEIGHTS_FILE)}
    write_json(folder / PROVENANCE_FILE, statement_of(files, predicate))
    write_json(folder / BOM_FILE, bom_of(run.name, files, predicate))
    (folder / SIGNATURE_FILE).unlink(missing_ok=True)
    if signer:
        sign_folder(folder, signer)


def predicate_of(run: Path, config: Config) -> dict[str, Any]:
    """Where a run's last adapter comes from, out of the run's folder."""
    manifest = read_json(run / "manifest.json")
    lines = read_lines(run / "rounds.jsonl")
    card = run / "privacy.json"
    begun, head = _chain_of(run)
    kept_round = choice(lines, config)["final_round"]
    kept: dict[str, Any] = next((line for line in lines if line["round"] == kept_round), {})
    return {
        "run": begun.get("run", run.name),
        "baseModel": {"name": config.model.name, "path": config.model.path, "revision": config.model.revision or "", "sha256": _model_hash(config)},
        "adapter": {"method": config.peft.method, "rank": config.peft.rank, "alpha": config.peft.alpha, "targetModules": sorted(config.peft.target_modules)},
        "data": manifest["data_sha256"],
        "code": {"version": __version__, "commit": manifest["git_commit"], "sourceSha256": manifest["source_sha256"], "bundleSha256": begun.get("code_sha256", "")},
        "configurationSha256": config_fingerprint(config),
        "strategy": config.strategy.name,
        "rounds": len(lines),
        "banks": sorted({entry["bank"] for line in lines for entry in line["banks"] if entry["status"] == "ok"}),
        "adapterSha256": kept.get("adapter_sha256", ""),
        "ofRound": kept.get("round", 0),
        "chainSha256": head,
        "privacy": read_json(card) if card.is_file() else None,
        "software": manifest["versions"],
    }  # fmt: skip


def statement_of(files: Mapping[str, str], predicate: Mapping[str, Any]) -> dict[str, Any]:
    """An in-toto statement about files (name -> SHA-256)."""
    subject = [{"name": name, "digest": {"sha256": found}} for name, found in sorted(files.items())]
    return {"_type": STATEMENT, "subject": subject, "predicateType": PREDICATE, "predicate": dict(predicate)}


def check_statement(folder: Path) -> dict[str, Any]:
    """The predicate of a folder's provenance.json. WrongSignature unless it speaks of the adapter that lies there."""
    file = folder / PROVENANCE_FILE
    try:
        statement = json.loads(file.read_bytes())
        if (statement["_type"], statement["predicateType"]) != (STATEMENT, PREDICATE):
            raise WrongSignature(f"{file} is another kind of statement")
        files = {str(one["name"]): str(one["digest"]["sha256"]) for one in statement["subject"]}
        predicate: dict[str, Any] = statement["predicate"]
        if sorted(files) != sorted((CONFIG_FILE, WEIGHTS_FILE)) or not isinstance(predicate, dict):
            raise WrongSignature(f"{file} does not speak of {CONFIG_FILE} and {WEIGHTS_FILE}")
        for name, wanted in sorted(files.items()):
            if sha256_of((folder / name).read_bytes()) != wanted:
                raise WrongSignature(f"{folder / name} is not the file that {PROVENANCE_FILE} speaks of")
    except OSError as error:
        raise WrongSignature(f"{error.filename} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WrongSignature(f"{file} is damaged ({type(error).__name__})") from error
    return predicate


def bom_of(name: str, files: Mapping[str, str], predicate: Mapping[str, Any]) -> dict[str, Any]:
    """A CycloneDX 1.6 bill of materials of the adapter: the base model, the data files and the libraries that it was trained with."""
    base, data = predicate["baseModel"], predicate["data"]
    version = str(predicate["run"])
    parts = [
        {
            "type": "machine-learning-model", "bom-ref": "base-model", "name": base["name"], "version": base["revision"] or "unversioned",
            **_hashes(base["sha256"]), "properties": [{"name": "fedfinlora:path", "value": base["path"]}],
        },
        *({"type": "data", "bom-ref": f"data:{file}", "name": file, **_hashes(found)} for file, found in sorted(data.items())),
        *(
            {"type": "library", "bom-ref": f"pkg:pypi/{package}@{number}", "name": package, "version": number, "purl": f"pkg:pypi/{package}@{number}"}
            for package, number in sorted(predicate["software"].items())
        ),
    ]  # fmt: skip
    privacy = predicate["privacy"]
    facts = {
        "run": version, "rounds": predicate["rounds"], "banks": ", ".join(predicate["banks"]), "strategy": predicate["strategy"],
        "configurationSha256": predicate["configurationSha256"], "sourceSha256": predicate["code"]["sourceSha256"],
        "privacy": f"{privacy['mode']}, {privacy['unit']}, epsilon {privacy['epsilon']}, delta {privacy['delta']}" if privacy else "none",
    }  # fmt: skip
    adapter = {
        "type": "machine-learning-model", "bom-ref": "adapter", "name": name, "version": version, **_hashes(files[WEIGHTS_FILE]),
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"}, "task": "text-generation", "architectureFamily": "transformer",
                "modelArchitecture": f"{base['name']} with {predicate['adapter']['method']} of rank {predicate['adapter']['rank']}",
                "datasets": [{"ref": f"data:{file}"} for file in sorted(data)],
            },
            **({"considerations": {"technicalLimitations": list(privacy["limits"])}} if privacy else {}),
        },
        "properties": [{"name": f"fedfinlora:{key}", "value": str(value)} for key, value in facts.items()],
    }  # fmt: skip
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{version} {files[WEIGHTS_FILE]}')}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "fedfinlora", "version": __version__}]},
            "component": adapter,
        },
        "components": parts,
        "dependencies": [
            {"ref": "adapter", "dependsOn": [str(part["bom-ref"]) for part in parts]},
            *({"ref": str(part["bom-ref"])} for part in parts),
        ],
    }


def _hashes(sha256: str) -> dict[str, Any]:
    return {"hashes": [{"alg": "SHA-256", "content": sha256}]} if sha256 else {}


def _model_hash(config: Config) -> str:
    """Of the base model's files; "" where they cannot be read any more."""
    try:
        return model_sha256(config.model)
    except UserError:
        return ""


def _chain_of(run: Path) -> tuple[dict[str, Any], str]:
    """(the first line of the chain, the hash of its last one); ({}, "") where there is none."""
    file = run / CHAIN_FILE
    lines = file.read_bytes().splitlines() if file.is_file() else []
    if not lines:
        return {}, ""
    try:
        return read_line(lines[0]), str(read_line(lines[-1])["sha256"])
    except WrongSignature as error:
        raise UserError(f"{file} is damaged: {error}.") from error
