"""The lines of provenance.jsonl, one frozen dataclass for each kind.

A line is canonical JSON: the fields of its kind, `kind`, the time `at` (UTC), `previous` (SHA-256 of the line before),
its own `sha256`, and, where a coordinator has a signing key, `signature`. A field with a default is of a later version
than its kind.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedfinlora.errors import UserError
from fedfinlora.provenance.signatures import WrongSignature, canonical, plain_canonical
from fedfinlora.run.typed import from_json, to_json

CHAIN_FILE = "provenance.jsonl"
PLACE_LAST = ("sha256", "signature")
"""Keys that are added to a line once it is written."""
FIRST = "0" * 64
"""`previous` of the first line, here and in a bank's record."""


@dataclass(frozen=True)
class Begin:
    """A run begins, or resumes after `round` rounds. Who may sign is in it."""

    run: str
    """The run's id."""
    round: int
    adapter_sha256: str
    """Of the adapter that the next round starts from."""
    config: str
    """The configuration as JSON."""
    code_sha256: str
    """Of the app bundle."""
    manifest_sha256: str
    certificate: str
    """The coordinator's, PEM; "" in a simulation, whose lines are not signed."""
    banks: Mapping[str, str] | None
    """Bank -> its enrolled public key in OpenSSH's form; None in a simulation."""
    version: str = ""
    """Of this package."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Path in the run's folder -> SHA-256, of what is written before the first round."""


@dataclass(frozen=True)
class BankPart:
    """What one bank was asked in an attempt at a round, and what it answered."""

    request: Mapping[str, Any]
    """What its request says besides what all requests of the attempt say."""
    code: str
    """Why the answer was rejected; "" if it was accepted."""
    request_signature: str = ""
    reply: Mapping[str, Any] | None = None
    """The head of its reply; None where nothing of it is kept."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    delta_sha256: str = ""
    reply_signature: str = ""

    @property
    def head(self) -> Mapping[str, Any]:
        """The head of its reply; {} where nothing of it is kept."""
        return self.reply or {}

    @property
    def statement(self) -> dict[str, Any]:
        """What the bank has signed (`fedfinlora.provenance.evidence.reply_statement`)."""
        return {"reply": self.head, "figures": self.figures, "delta-sha256": self.delta_sha256}


@dataclass(frozen=True)
class Attempt:
    """One attempt at a round. Written before the round's checkpoint, so a round that a crash undid is there twice; the
    later one counts.
    """

    run: str
    round: int
    attempt: str
    """32 hex digits; an answer to another attempt at the same round does not count."""
    start_sha256: str
    """Of the adapter before the round."""
    request: Mapping[str, Any]
    """What all requests of the attempt say."""
    banks: Mapping[str, BankPart]
    weights: Mapping[str, float] | None
    """Bank -> its weight in the mean; None where the mean is private."""
    adapter_sha256: str
    """Of the adapter after the round."""

    @property
    def accepted(self) -> list[str]:
        """Banks whose replies were averaged, sorted."""
        return sorted(bank for bank, part in self.banks.items() if part.code == "")


@dataclass(frozen=True)
class Saved:
    """What lies on the disk once a round is closed."""

    run: str
    round: int
    files: Mapping[str, str]
    """Path -> SHA-256, of the files of this round."""
    line_sha256: str
    """SHA-256 of the canonical JSON of the round's line of rounds.jsonl; "" before the first round."""


@dataclass(frozen=True)
class End:
    run: str
    status: str
    """completed, stopped or failed."""
    files: Mapping[str, str]
    """Path -> SHA-256, of every file that does not change any more."""
    report_sha256: str = ""
    """Of report.html, which may be written again later."""


@dataclass(frozen=True)
class Audited:
    """The run was audited; the privacy card shows the sentence of the last such line."""

    run: str
    config_sha256: str
    """Of the configuration in the `begin` before."""
    sentence: str
    files: Mapping[str, str]
    """audit.json, and what else the audit wrote, -> SHA-256."""


Line = Begin | Attempt | Saved | End | Audited
KINDS: dict[str, type[Line]] = {"begin": Begin, "round": Attempt, "saved": Saved, "end": End, "audit": Audited}
KIND_OF = {kind: name for name, kind in KINDS.items()}
DELTA = ("delta_sha256", "delta-sha256")
"""A bank signs its statement with a hyphen in this name."""


class UnknownLine(Exception):
    """A line that this version does not know."""


@dataclass(frozen=True)
class Sealed:
    """A line in its place in the chain."""

    line: Line
    at: str
    """When it was written, UTC."""
    previous: str
    sha256: str
    signature: str = ""


def values_of(line: Line) -> dict[str, Any]:
    """A line as JSON, without its place in the chain."""
    values = {"kind": KIND_OF[type(line)], **to_json(line)}
    if isinstance(line, Attempt):
        values["banks"] = {bank: _part_values(part) for bank, part in line.banks.items()}
    return values


def _part_values(part: BankPart) -> dict[str, Any]:
    values = to_json(part)
    values[DELTA[1]] = values.pop(DELTA[0])
    replied = part.reply is not None
    of_reply = {"reply", "figures", DELTA[1]}
    return {
        name: value
        for name, value in values.items()
        if (replied or name not in of_reply) and (value != "" or name == "code")
    }


def read_values(line: bytes) -> dict[str, Any]:
    """A line's JSON object. WrongSignature unless it is canonical JSON whose own hash is right."""
    try:
        values = json.loads(line)
        if plain_canonical(values) != line:
            raise WrongSignature("it is not written as this program writes it")
        if hashlib.sha256(_hashed(line, values)).hexdigest() != values["sha256"]:
            raise WrongSignature("its hash is not that of its content")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WrongSignature(f"it cannot be read ({type(error).__name__})") from error
    return values  # type: ignore[no-any-return]


def _hashed(line: bytes, values: Mapping[str, Any]) -> bytes:
    """The bytes whose SHA-256 a line has: those of the line, without this hash and the signature."""
    content = line
    for name in PLACE_LAST:
        if name in values:
            member = f',"{name}":"{values[name]}"'.encode()
            if content.count(member) != 1:  # another part of the line has the same member
                return canonical({key: value for key, value in values.items() if key not in PLACE_LAST})
            content = content.replace(member, b"")
    return content


def read_line(line: bytes) -> Sealed:
    """A line in its place. WrongSignature as `read_values`; UnknownLine as `sealed_of`."""
    return sealed_of(read_values(line))


def sealed_of(values: Mapping[str, Any]) -> Sealed:
    """A line in its place. UnknownLine for a kind or a form that this version does not know."""
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UnknownLine(f"its kind is {str(kind)[:40]!r}, not one of {', '.join(KINDS)}")
    body = dict(values)
    if kind == "round" and isinstance(parts := body.get("banks"), Mapping):
        body["banks"] = {
            bank: {DELTA[0] if name == DELTA[1] else name: value for name, value in part.items()}
            if isinstance(part, Mapping)
            else part
            for bank, part in parts.items()
        }
    place = {name: values.get(name, "") for name in ("at", "previous", "sha256", "signature")}
    if wrong := [name for name, value in place.items() if not isinstance(value, str)]:
        raise UnknownLine(f"{wrong[0]} is no text")
    try:
        return Sealed(from_json(KINDS[kind], body, f"the line of kind {kind}"), **place)
    except UserError as error:
        raise UnknownLine(str(error).rstrip(".")) from error
