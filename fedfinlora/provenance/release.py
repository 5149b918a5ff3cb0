"""What goes with a finished adapter: its origin, its bill of materials, and the aggregator's signature over all of it.

`provenance.json` is an in-toto statement (v1) about the adapter's files, `bom.cdx.json` a CycloneDX 1.6 bill of
materials; `model.sig` covers both and the adapter, where there is a signing key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from fedfinlora import __version__
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.files import read_json, read_mapping, sha256_of, write_json
from fedfinlora.model.adapter_folder import CONFIG_FILE, PROVENANCE_FILE, WEIGHTS_FILE
from fedfinlora.model.files import model_sha256
from fedfinlora.provenance.bom import BOM_FILE, bom_of, check_bom
from fedfinlora.provenance.findings import first_names
from fedfinlora.provenance.folder import file_bytes, sha256_of_file
from fedfinlora.provenance.lines import CHAIN_FILE, Begin, UnknownLine, read_line
from fedfinlora.provenance.model_signature import SIGNATURE_FILE, STATEMENT, sign_folder
from fedfinlora.provenance.signatures import Signer, WrongSignature
from fedfinlora.run.folder import config_fingerprint
from fedfinlora.run.records import RoundLine, read_rounds
from fedfinlora.run.selection import choice

PREDICATE = "urn:fedfinlora:training:1"
FINAL = Path("adapters") / "final"


@dataclass(frozen=True)
class BaseModel:
    """The model that was trained on, as the configuration names it."""

    name: str
    path: str
    revision: str
    """"" where none is named."""
    sha256: str
    """Of its files (`fedfinlora.model.files`); "" where they could not be read."""


@dataclass(frozen=True)
class AdapterForm:
    method: str
    rank: int
    alpha: float
    target_modules: list[str]


@dataclass(frozen=True)
class Code:
    version: str
    """Of this package."""
    commit: str
    """Of git, with "+" where files differed from it."""
    source_sha256: str
    bundle_sha256: str
    """Of the app bundle that the banks were sent; "" where none was."""


@dataclass(frozen=True)
class Origin:
    """The predicate of the in-toto statement. In JSON each name is in camelCase."""

    run: str
    """The run's id."""
    base_model: BaseModel
    adapter: AdapterForm
    data: dict[str, str]
    """Data file -> SHA-256, of those that the aggregator has read."""
    code: Code
    configuration_sha256: str
    strategy: str
    rounds: int
    banks: list[str]
    """Names of those whose replies were accepted in any round, sorted."""
    adapter_sha256: str
    """Of the vector, little-endian float32."""
    of_round: int
    """The round that gave it."""
    chain_sha256: str
    """Of the last line of provenance.jsonl before the one that closes it."""
    privacy: dict[str, Any] | None
    """The privacy card; None for a run without privacy."""
    software: dict[str, str]
    """Package -> version."""

    def to_json(self) -> dict[str, Any]:
        """As it is in provenance.json."""
        return _camel(self)

    @classmethod
    def from_json(cls, values: Any) -> Origin:
        """WrongSignature that names what is missing, or too much."""
        parts = {"base_model": BaseModel, "adapter": AdapterForm, "code": Code}
        found = _fields_from(cls, values, "")
        return cls(
            **{name: _made(parts[name], value, f"{name}.") if name in parts else value for name, value in found.items()}
        )


def _camel(values: Any) -> dict[str, Any]:
    read = {item.name: getattr(values, item.name) for item in fields(values)}
    return {_camel_name(name): _camel(value) if is_dataclass(value) else value for name, value in read.items()}


def _camel_name(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def _made(kind: Any, values: Any, where: str) -> Any:
    return kind(**_fields_from(kind, values, where))


def _fields_from(kind: Any, values: Any, where: str) -> dict[str, Any]:
    names = {_camel_name(item.name): item.name for item in fields(kind)}
    if not isinstance(values, dict):
        raise WrongSignature(f"{where or 'the predicate'} is no JSON object")
    wrong = sorted(set(names) ^ set(values))
    if wrong:
        raise WrongSignature(f"it lacks, or has too much: {', '.join(where + name for name in wrong)}")
    return {names[key]: value for key, value in values.items()}


def write_release(run: Path, config: Config, signer: Signer | None) -> None:
    """Write statement, bill of materials and signature into adapters/final of a finished run."""
    folder = run / FINAL
    begun, head = _chain_of(run)
    card = run / "privacy.json"
    lines = read_rounds(run)
    origin = origin_of(
        run, config, lines, begun.run if begun else run.name, begun.code_sha256 if begun else "", head,
        _model_hash(config),
        read_json(card) if card.is_file() else None,
    )  # fmt: skip
    files = {name: sha256_of((folder / name).read_bytes()) for name in (CONFIG_FILE, WEIGHTS_FILE)}
    write_json(folder / PROVENANCE_FILE, statement_of(files, origin))
    write_json(folder / BOM_FILE, bom_of(run.name, files, origin.to_json()))
    (folder / SIGNATURE_FILE).unlink(missing_ok=True)
    if signer:
        sign_folder(folder, signer)


def origin_of(
    run: Path,
    config: Config,
    lines: Sequence[RoundLine],
    run_id: str,
    bundle_sha256: str,
    chain_sha256: str,
    model_sha256: str,
    card: dict[str, Any] | None,
) -> Origin:
    """Where a run's last adapter comes from. `lines` are those of rounds.jsonl, `card` is privacy.json."""
    manifest = read_mapping(run / "manifest.json")
    kept_round = choice(lines, config).final_round
    kept = next((line for line in lines if line.round == kept_round), RoundLine(0))
    return Origin(
        run=run_id,
        base_model=BaseModel(config.model.name, config.model.path, config.model.revision or "", model_sha256),
        adapter=AdapterForm(
            config.peft.method, config.peft.rank, config.peft.alpha, sorted(config.peft.target_modules)
        ),
        data=manifest["data_sha256"],
        code=Code(__version__, manifest["git_commit"], manifest["source_sha256"], bundle_sha256),
        configuration_sha256=config_fingerprint(config),
        strategy=config.strategy.name,
        rounds=len(lines),
        banks=sorted({entry.bank for line in lines for entry in line.banks if entry.is_ok}),
        adapter_sha256=kept.adapter_sha256,
        of_round=kept.round,
        chain_sha256=chain_sha256,
        privacy=card,
        software=manifest["versions"],
    )


def statement_of(files: Mapping[str, str], origin: Origin) -> dict[str, Any]:
    """An in-toto statement about files (name -> SHA-256)."""
    subject = [{"name": name, "digest": {"sha256": found}} for name, found in sorted(files.items())]
    return {"_type": STATEMENT, "subject": subject, "predicateType": PREDICATE, "predicate": origin.to_json()}


def read_statement(folder: Path) -> tuple[Origin, list[str]]:
    """(what a folder's provenance.json says, what in the bill of materials cannot be compared with it).

    WrongSignature unless it speaks of the adapter that lies there, and the bill follows from it.
    """
    file, bill = folder / PROVENANCE_FILE, folder / BOM_FILE
    try:
        statement = json.loads(file_bytes(file))
        if (statement["_type"], statement["predicateType"]) != (STATEMENT, PREDICATE):
            raise WrongSignature("it is another kind of statement")
        files = {str(one["name"]): str(one["digest"]["sha256"]) for one in statement["subject"]}
        if (
            sorted(files) != sorted((CONFIG_FILE, WEIGHTS_FILE))
            or statement_of(files, origin := Origin.from_json(statement["predicate"])) != statement
        ):
            raise WrongSignature(f"it does not speak of {CONFIG_FILE} and {WEIGHTS_FILE}")
    except OSError as error:
        raise WrongSignature(f"{error.filename} cannot be read ({error.strerror})") from error
    except WrongSignature as error:
        raise WrongSignature(f"{file}: {error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WrongSignature(f"{file} is damaged ({type(error).__name__})") from error
    try:
        for name, wanted in sorted(files.items()):
            if sha256_of_file(folder / name) != wanted:
                raise WrongSignature(f"{folder / name} is not the file that {PROVENANCE_FILE} speaks of")
        found = json.loads(file_bytes(bill))
        wrong, unknown = check_bom(found, files, origin.to_json())
        if wrong:
            raise WrongSignature(f"{bill} does not follow from {PROVENANCE_FILE}: {first_names(wrong)}")
    except OSError as error:
        raise WrongSignature(f"{error.filename} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WrongSignature(f"{bill} is damaged ({type(error).__name__})") from error
    return origin, unknown


def _model_hash(config: Config) -> str:
    """ "" where the files cannot be read any more."""
    try:
        return model_sha256(config.model)
    except UserError:
        return ""


def _chain_of(run: Path) -> tuple[Begin | None, str]:
    """(the first line of the chain, the hash of its last one)."""
    file = run / CHAIN_FILE
    lines = file.read_bytes().splitlines() if file.is_file() else []
    if not lines:
        return None, ""
    try:
        first = read_line(lines[0]).line
        return first if isinstance(first, Begin) else None, read_line(lines[-1]).sha256
    except (WrongSignature, UnknownLine) as error:
        raise UserError(f"{file} is damaged: {error}.") from error
