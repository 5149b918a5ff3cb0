"""Compare adapters/final's statement of its origin with the run's chain, field by field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.files import read_json, read_mapping
from fedfinlora.model.adapter_folder import PROVENANCE_FILE
from fedfinlora.model.files import sha256_of_files
from fedfinlora.provenance.audits import as_audit
from fedfinlora.provenance.bom import differing
from fedfinlora.provenance.chain import AUDIT_FILE
from fedfinlora.provenance.findings import Ended, Findings
from fedfinlora.provenance.lines import CHAIN_FILE
from fedfinlora.provenance.release import FINAL, Origin, origin_of, read_statement
from fedfinlora.provenance.signatures import WrongSignature, canonical
from fedfinlora.run.privacy_card import privacy_card
from fedfinlora.run.records import RoundLine
from fedfinlora.run.typed import to_json


def check_release(run: Path, ended: Ended, rounds: Sequence[RoundLine], found: Findings) -> None:
    """Name each field that is not what the chain had come to when the run was completed."""
    file = run / FINAL / PROVENANCE_FILE
    try:
        said, _ = read_statement(run / FINAL)
        expected = _origin(run, ended, rounds, said, found)
    except WrongSignature:
        return  # whoever checks the adapter's own folder says what is wrong
    except UserError as error:  # it names the file, which is another's finding too
        found.checked.append(f"adapters/final: not compared with {CHAIN_FILE} ({error})")
        return
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found.add(file, f"it cannot be compared with {CHAIN_FILE} ({type(error).__name__})")
        return
    for name, _ in differing(expected.to_json(), said.to_json()):
        found.add(file, f"{name} is not what {CHAIN_FILE} and the files that it covers say")
    found.checked.append(f"adapters/final: its statement was compared with {CHAIN_FILE}, field by field")


def _card(config: Config, lines: Sequence[RoundLine], audit: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    card = privacy_card(config, lines, audit)
    return None if card is None else to_json(card)


def _origin(run: Path, ended: Ended, rounds: Sequence[RoundLine], said: Origin, found: Findings) -> Origin:
    config = ended.config
    lines = [line for line in rounds if line.round in ended.rounds]
    cards = [_card(config, lines), *(_card(config, lines, as_audit(audit)) for audit in ended.audits)]
    file = run / AUDIT_FILE
    if not ended.audits and file.is_file() and canonical(said.privacy) != canonical(cards[0]):
        cards.append(_card(config, lines, read_json(file)))
        found.not_proven(
            run / FINAL / PROVENANCE_FILE, f"what it says of an audit is in {AUDIT_FILE} alone, not in {CHAIN_FILE}"
        )
    # It has none, or one of those that were made before the run was completed.
    card = next((each for each in cards if canonical(each) == canonical(said.privacy)), cards[0])
    manifest = read_mapping(run / "manifest.json")
    base, files = said.base_model.sha256, manifest.get("model_files")
    if files:
        base = sha256_of_files(files)
    else:
        found.checked.append(
            "adapters/final: the base model's hash was not compared, the run's manifest does not have it"
        )
    expected = origin_of(run, config, lines, ended.run, ended.code_sha256, ended.previous, base, card)
    accepted = sorted({bank for one in ended.rounds.values() for bank in one.accepted})
    kept = ended.rounds[expected.of_round].adapter_sha256 if expected.of_round in ended.rounds else ""
    if not ended.version:
        found.checked.append(
            f"adapters/final: code.version was not compared, {CHAIN_FILE} is of a version that did not name it"
        )
    code = replace(expected.code, version=ended.version or said.code.version)
    # As the run's own version made it: a later one has settings that the run did not know.
    configuration = str(manifest.get("config_sha256", expected.configuration_sha256))
    expected = replace(expected, configuration_sha256=configuration)
    return replace(expected, banks=accepted, rounds=len(ended.rounds), adapter_sha256=kept, code=code)
