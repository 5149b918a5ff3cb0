"""A deployed bank answers only what its coordinator has signed, signs its answers, and keeps both.

Nothing is kept of requests that are refused unread (`fedfinlora.privacy.history`), and configurations and
certificates take no more than KEPT_BYTES.

`state/signed/BANK.jsonl` has a line for each request as it came and one for each answer before it leaves, with their
signatures, each chained to the line before it (`fedfinlora.provenance.bank_record`); configurations and certificates
are next to it, once each, by their SHA-256. With it a bank proves later what it was asked and what it said (`python -m
fedfinlora verify ~/.fedfinlora/bank`). Withheld figures are not in it.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from client_app.facts import BankFacts
from fedfinlora.errors import UserError
from fedfinlora.files import unwritable, write_bytes
from fedfinlora.provenance.bank_record import Answered, Asked, Entry, append
from fedfinlora.provenance.evidence import answer_signed, request_statement
from fedfinlora.provenance.signatures import (
    REQUEST,
    Signer,
    WrongSignature,
    canonical,
    certified_key,
    check,
    load_signer,
)
from fedfinlora.wire.form import request_fault
from fedfinlora.wire.messages import BankError, check_request_form
from fedfinlora.wire.reasons import UNREAD

log = logging.getLogger("fedfinlora.bank")
NODE_KEY, AUTHORITY = "node-key", "authority"
"""In the node config, as `bank start` sets it: the bank's private key, and the ca.crt that it trusts."""
FOLDER = "signed"
KEPT_BYTES = 2**30
"""Of configurations and certificates, once each: 250,000 runs of an honest coordinator, 8,000 requests of one that pads
them.
"""
ATTEMPT = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class BankKeys:
    """What a bank signs with and whom it trusts."""

    signer: Signer
    authority: bytes
    """ca.crt."""


def bank_keys(node_config: Mapping[str, Any]) -> BankKeys | None:
    """The keys that the node config names; None where it names none, as in a simulation. BankError where they cannot be
    read.
    """
    if NODE_KEY not in node_config and AUTHORITY not in node_config:
        return None
    try:
        key, authority = Path(str(node_config[NODE_KEY])), Path(str(node_config[AUTHORITY]))
        return BankKeys(load_signer(key), authority.read_bytes())
    except (KeyError, OSError, UserError) as error:
        raise BankError("internal", f"the bank's key or the authority's certificate cannot be read: {error}") from error


def check_request(content: RecordDict, facts: BankFacts, keys: BankKeys | None) -> None:
    """BankError unless the coordinator signed just this request for just this bank. What was signed is kept before it
    is worked on.
    """
    if keys is None:
        return
    try:
        head = content.config_records["request"]
        statement = request_statement(content)
        signature, certificate = str(head.get("signature", "")), str(head.get("certificate", ""))
        if not signature:
            raise WrongSignature("it has no signature")
        check(certified_key(certificate, keys.authority), REQUEST, statement, signature)
        if statement.get("bank") != facts.name:
            raise WrongSignature("it is for another bank")
    except WrongSignature as error:
        raise BankError("unsigned", f"the request is not the coordinator's: {error}") from error
    except (KeyError, TypeError, ValueError, RecursionError, AttributeError) as error:
        raise BankError("unsigned", f"the request cannot be checked ({type(error).__name__})") from error
    check_request_form(content)
    attempt = statement.get("attempt")
    if not isinstance(attempt, str) or not ATTEMPT.fullmatch(attempt):
        raise BankError("unsigned", "the request's attempt is not a number of 32 hex digits")
    if _was_asked(facts, attempt):
        raise BankError(
            "unsigned",
            "the request was asked before: each try of a round has a number of its own, and is answered once",
        )
    folder = signed_file(facts).parent
    config = str(head["config"]).encode("utf-8", "surrogatepass")
    _once(folder / f"{statement['config-sha256']}.json", config)
    _once(folder / f"{hashlib.sha256(certificate.encode()).hexdigest()}.crt", certificate.encode())
    _note(
        facts,
        keys,
        Asked(statement, signature, hashlib.sha256(certificate.encode()).hexdigest()),
    )


def sign_answer(content: RecordDict, request: RecordDict, facts: BankFacts, keys: BankKeys | None) -> None:
    """Say in a reply what it answers, and sign it. A request of which nothing can be made is answered without its
    hash.
    """
    try:
        asked: Mapping[str, Any] = request_statement(request) if not request_fault(request) else {}
        canonical(asked)
    except (KeyError, TypeError, ValueError, RecursionError, AttributeError):
        asked = {}
    statement = answer_signed(content, asked, keys.signer if keys else None)
    if keys and content.config_records["reply"].get("code") != UNREAD:
        _note(facts, keys, Answered(statement, str(content.config_records["reply"]["signature"])))


def signed_file(facts: BankFacts) -> Path:
    """Where a bank keeps what was signed."""
    return facts.state_folder / FOLDER / f"{facts.name}.jsonl"


def _was_asked(facts: BankFacts, attempt: str) -> bool:
    """Whether a request with this attempt's number, 32 hex digits, is on record already."""
    file, wanted = signed_file(facts), f'"attempt":"{attempt}"'.encode()
    if not file.is_file() or not file.stat().st_size:
        return False
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(wanted) >= 0


def _once(file: Path, content: bytes) -> None:
    """Write a file that is named by its hash, if it is not there yet. BankError where there is no room for it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not file.exists():
            taken = sum(
                entry.stat().st_size for entry in os.scandir(file.parent) if entry.name.endswith((".json", ".crt"))
            )
            if taken + len(content) > KEPT_BYTES:
                raise BankError(
                    "disk",
                    f"{file.parent} has {taken:,} bytes of configurations, the most that is kept: archive the folder",
                )
            write_bytes(file, content)
    except OSError as error:
        raise BankError("disk", str(unwritable(file, error))) from error
    except UserError as error:
        raise error if isinstance(error, BankError) else BankError("disk", str(error)) from error


def _note(facts: BankFacts, keys: BankKeys, entry: Entry) -> None:
    """Append and sync one line."""
    file = signed_file(facts)
    try:
        append(file, entry, keys.signer)
    except OSError as error:
        raise BankError("disk", str(unwritable(file, error))) from error
    except UserError as error:
        raise BankError("disk", str(error)) from error
