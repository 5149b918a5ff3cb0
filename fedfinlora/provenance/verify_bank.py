"""Check what a bank keeps of the requests that it got and of its answers: who signed each, offline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedfinlora.provenance.bank_record import check_links
from fedfinlora.provenance.findings import Findings, no_other_kinds
from fedfinlora.provenance.folder import file_bytes
from fedfinlora.provenance.signatures import (
    REPLY,
    REQUEST,
    WrongSignature,
    certified_key,
    check,
    digest,
    openssh_text,
    public_key_of,
)


def verify_bank(home: Path, name: str, authority: bytes, public_key: str) -> Findings:
    """Check what a bank keeps of requests and answers: each request is signed by a coordinator of the authority, each answer by the bank."""
    found = Findings()
    file = home / "state" / "signed" / f"{name}.jsonl"
    if file.parent.is_dir() and not no_other_kinds(file.parent, found):
        return found
    asked: dict[str, Mapping[str, Any]] = {}
    answers = 0
    try:
        lines = file_bytes(file).split(b"\n")
    except OSError as error:
        found.wrong.append(f"{file}: cannot be read ({error.strerror})")
        return found
    if lines.pop():
        found.wrong.append(f"{file}: its last line is cut off")
    for number, text in enumerate(lines, 1):
        where = f"{file}, line {number}"
        try:
            line = json.loads(text)
            if "asked" in line:
                certificate = (file.parent / f"{line['certificate-sha256']}.crt").read_bytes()
                at = datetime.strptime(line["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
                check(certified_key(certificate, authority, at), REQUEST, line["asked"], line["signature"])
                config = file.parent / f"{line['asked']['config-sha256']}.json"
                if hashlib.sha256(config.read_bytes()).hexdigest() != line["asked"]["config-sha256"]:
                    found.wrong.append(f"{config}: it is not the configuration that its name says")
                if line["asked"]["bank"] != name:
                    found.wrong.append(f"{where}: the request was not to {name}")
                asked[digest(line["asked"])] = line["asked"]
            else:
                check(public_key_of(public_key), REPLY, line["answered"], line["signature"])
                answers += 1
                if line["answered"]["reply"]["status"] == "ok" and line["answered"]["reply"]["request"] not in asked:
                    found.wrong.append(f"{where}: the request that it answers is missing")
        except OSError as error:
            found.wrong.append(f"{error.filename}: cannot be read ({error.strerror})")
        except WrongSignature as error:
            found.wrong.append(f"{where}: {error}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            found.wrong.append(f"{where}: it cannot be read ({type(error).__name__})")
    found.wrong += [f"{file}, line {number}: {what}" for number, what in check_links(lines, public_key)]
    runs = sorted({str(one["run"]) for one in asked.values()})
    found.checked.append(
        f"{file}: {len(asked)} requests signed by the coordinator, {answers} answers signed by {name} ({openssh_text(public_key_of(public_key))[-16:]})"
    )
    found.checked += [
        f"run {run}: rounds {', '.join(str(one['round']) for one in asked.values() if one['run'] == run)}" for run in runs
    ]
    return found
