"""Check what a bank keeps of its requests and answers, offline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from fedfinlora.provenance.bank_record import Answered, Asked, check_links, entry_of
from fedfinlora.provenance.findings import Findings, lines_of, naming, no_other_kinds, time_of
from fedfinlora.provenance.folder import contents_of, file_bytes, sha256_of_file
from fedfinlora.provenance.lines import UnknownLine
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
from fedfinlora.provenance.verify_history import check_history, check_home

SUFFIXES = {"config-sha256": ".json", "certificate-sha256": ".crt"}


@dataclass
class Record:
    asked: dict[str, Asked] = field(default_factory=dict)
    """Hash of a request's statement -> the request."""
    answered: list[Answered] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    """Names of configurations and certificates that its lines speak of."""
    policies: list[tuple[str, str]] = field(default_factory=list)
    """(time of an update that was answered, UTC; SHA-256 of the policy that it was made under)."""
    begun: str = ""
    """Time of its first line, UTC; "" where there is none."""
    last: str = ""
    """Hash of the request that is its last line; "" where that is none."""


def verify_bank(
    home: Path, name: str, authority: bytes, public_key: str, policy_sha256: str, data: Path | None = None
) -> Findings:
    """Check a bank's record, and compare it with its history and its ledger. `policy_sha256` is that of bank.yaml as it
    is now; `data` is where its rows are, which is not looked at.
    """
    found = Findings()
    folder = home / "state" / "signed"
    if folder.is_dir() and not no_other_kinds(folder, found):
        return found
    file = folder / f"{name}.jsonl"
    record = Record()
    with naming(file, found):
        lines = lines_of(file, found) if file.is_file() else []
        record = _record(file, name, lines, authority, public_key, found)
    with naming(folder, found):
        _check_folder(folder, name, record, found)
    with naming(home / "state" / "history", found):
        check_history(home, name, record.asked, record.answered, record.begun, record.last, found)
    with naming(home, found):
        check_home(home, name, data, found)
    who = openssh_text(public_key_of(public_key))[-16:]
    found.checked.append(
        f"{file}: {len(record.asked)} requests signed by the coordinator, {len(record.answered)} answers signed by "
        f"{name} ({who})"
    )
    found.checked += _policy_words(record.policies, policy_sha256)
    asked = list(record.asked.values())
    for run in sorted({str(one.asked.get("run")) for one in asked}):
        rounds = ", ".join(str(one.asked.get("round")) for one in asked if str(one.asked.get("run")) == run)
        found.checked.append(f"run {run}: rounds {rounds}")
    return found


def _policy_words(policies: Sequence[tuple[str, str]], now: str) -> list[str]:
    """Under which policy the bank has answered, and whether bank.yaml still is that one; another is no fault.

    >>> _policy_words([("t1", "a"), ("t2", "a"), ("t3", "b")], "c")[-1]
    'bank.yaml: it was changed after the last answer of t3: the policy of that one was b, now it is c'
    """
    if not policies:
        return []
    said = [
        f"policy {sha256[:16]}: answers from {group[0]} to {group[-1]}"
        for sha256, group in ((key, [at for at, _ in own]) for key, own in groupby(policies, key=lambda one: one[1]))
    ]
    at, last = policies[-1]
    if last == now:
        return [*said, "bank.yaml: it is the policy of the last answer"]
    return [
        *said,
        f"bank.yaml: it was changed after the last answer of {at}: the policy of that one was {last[:16]}, now it "
        f"is {now[:16]}",
    ]


def _record(
    file: Path, name: str, lines: Sequence[bytes], authority: bytes, public_key: str, found: Findings
) -> Record:
    record = Record()
    for number, text in enumerate(lines, 1):
        where = f"{file}, line {number}"
        try:
            values = json.loads(text)
            entry = entry_of(values)
            record.begun = record.begun or str(values["time"])
            if isinstance(entry, Asked):
                _asked(where, file.parent, name, entry, str(values["time"]), authority, record, found)
            else:
                check(public_key_of(public_key), REPLY, entry.answered, entry.signature)
                record.answered.append(entry)
                record.last = ""
                if policy := entry.head.get("policy-sha256"):
                    record.policies.append((str(values["time"]), str(policy)))
                if entry.head["status"] == "ok" and entry.head["request"] not in record.asked:
                    found.add(where, "the request that it answers is missing")
        except OSError as error:
            found.add(error.filename, f"cannot be read ({error.strerror})")
        except (WrongSignature, UnknownLine) as error:
            found.add(where, str(error))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            found.add(where, f"it cannot be read ({type(error).__name__})")
    found.wrong += [f"{file}, line {number}: {what}" for number, what in check_links(lines, public_key)]
    return record


def _asked(
    where: str, folder: Path, name: str, entry: Asked, at: str, authority: bytes, record: Record, found: Findings
) -> None:
    names = {kind: f"{sha256}{SUFFIXES[kind]}" for kind, sha256 in _hashes(entry).items()}
    record.files |= set(names.values())
    record.last = digest(entry.asked)
    if record.last in record.asked:
        found.add(where, "the request is there twice")
    record.asked[record.last] = entry
    certificate = file_bytes(folder / names["certificate-sha256"])
    check(certified_key(certificate, authority, time_of(at)), REQUEST, entry.asked, entry.signature)
    for kind, sha256 in _hashes(entry).items():
        if sha256_of_file(folder / names[kind]) != sha256:
            found.add(folder / names[kind], "it is not the file that its name says")
    if entry.asked["bank"] != name:
        found.add(where, f"the request was not to {name}")


def _hashes(entry: Asked) -> dict[str, str]:
    return {"config-sha256": str(entry.asked["config-sha256"]), "certificate-sha256": entry.certificate_sha256}


def _check_folder(folder: Path, name: str, record: Record, found: Findings) -> None:
    """Every file next to the record is one that it speaks of."""
    known = {f"{name}.jsonl", f"{name}.lock", *record.files}
    for other in contents_of(folder).files if folder.is_dir() else ():
        stem, _, suffix = other.rpartition(".")
        if other in known:
            continue
        if f".{suffix}" in SUFFIXES.values() and sha256_of_file(folder / other) == stem:
            found.not_proven(folder / other, "no line of the record speaks of it")
        elif suffix == "jsonl":
            found.not_proven(folder / other, f"it is a record under another name than {name}, and was not looked at")
        elif suffix != "lock":
            found.add(folder / other, "it is no part of a bank's record")
