"""Compare audit.json with the audits in the chain, and the privacy card with configuration, rounds and audit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedfinlora.config.values import to_plain_group
from fedfinlora.errors import UserError
from fedfinlora.files import read_json
from fedfinlora.provenance.audits import as_audit
from fedfinlora.provenance.chain import AUDIT_FILE, CARD_FILE
from fedfinlora.provenance.findings import Findings
from fedfinlora.provenance.folder import sha256_of_file
from fedfinlora.provenance.lines import CHAIN_FILE, Audited
from fedfinlora.provenance.signatures import digest
from fedfinlora.run.folder import read_config
from fedfinlora.run.privacy_card import privacy_card
from fedfinlora.run.records import RoundLine
from fedfinlora.run.typed import to_json


def check_audit(run: Path, audits: Sequence[Audited], found: Findings) -> bool:
    """audit.json is the last one that the chain has, and speaks of this run. True also where there is none at all."""
    file = run / AUDIT_FILE
    if not audits:
        if not file.is_file():
            return True
        found.not_proven(
            file,
            f"{CHAIN_FILE} has no audit: anyone who can write to this folder may have made it. `audit --run {run}` "
            "enters one",
        )
        return False
    last = audits[-1]
    if not file.is_file():
        found.add(file, f"it is missing, and {CHAIN_FILE} has an audit")
        return False
    if sha256_of_file(file) != last.files.get(AUDIT_FILE):
        found.add(file, f"it is not the audit that {CHAIN_FILE} has")
        return False
    values, config = read_json(file), read_config(run)
    own = {
        "sentence": last.sentence,
        "privacy": to_plain_group(config.privacy),
        "model": config.model.name,
        "rounds": config.num_server_rounds,
    }
    for name in (name for name, value in own.items() if digest(values.get(name)) != digest(value)):
        found.add(file, f"its {name} is not the run's")
    found.checked.append(f"{AUDIT_FILE}: it is the audit in {CHAIN_FILE}")
    return True


def check_card(
    run: Path, lines: Sequence[RoundLine], audits: Sequence[Audited], bound: bool, ended: bool, found: Findings
) -> None:
    """privacy.json follows from configuration, rounds and the chain's last audit. `bound`: audit.json is what the chain
    has. `ended`: so is the card; a run that was broken off has none, or that of an earlier end.
    """
    file = run / CARD_FILE
    try:
        config = read_config(run)
        expected = privacy_card(config, lines, as_audit(audits[-1]) if audits else None)
        if not ended and expected and not file.is_file():
            return
        if bool(expected) != file.is_file():
            found.add(file, "it is missing" if expected else "this run has no privacy card")
            return
        if not expected or digest(read_json(file)) == digest(to_json(expected)):
            return
        with_audit = None if bound or audits else privacy_card(config, lines, _unbound(run))
        if with_audit and digest(read_json(file)) == digest(to_json(with_audit)):
            found.not_proven(file, f"what it says of an audit is in {AUDIT_FILE} alone, not in {CHAIN_FILE}")
        elif not ended:
            found.not_proven(
                file, "it does not follow from the rounds until now, which came after it, or it was changed"
            )
        else:
            found.add(file, "it does not follow from config.yaml and rounds.jsonl")
    except UserError as error:
        if not str(error).startswith(str(run / "config.yaml")):
            found.add(file, str(error))


def _unbound(run: Path) -> dict[str, Any]:
    return {"sentence": str(read_json(run / AUDIT_FILE)["sentence"])}
