"""What is signed in a round: statements of request and reply, and the evidence that the server collects of them."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedfinlora.errors import UserError
from fedfinlora.provenance.enrolled import ENROLLED, SIGNING
from fedfinlora.provenance.lines import Attempt, BankPart
from fedfinlora.provenance.signatures import (
    REPLY,
    REQUEST,
    Signer,
    WrongSignature,
    canonical,
    check,
    digest,
    load_signer,
    public_key_of,
)
from fedfinlora.wire.messages import RejectedReply, check_reply_form

if TYPE_CHECKING:
    from flwr.app import RecordDict

NOT_SIGNED = ("signature", "certificate")
"""Keys of a request's or reply's head that carry its signature."""
NO_DELTA = hashlib.sha256(b"").hexdigest()
MOST_STATEMENT_BYTES = 2**15
"""Of a reply without its arrays, as canonical JSON; a usual one has 1.2 KB."""


def request_statement(content: RecordDict, adapter_sha256: str | None = None) -> dict[str, Any]:
    """What a request says: its whole head, the configuration and the adapter by their SHA-256 (`adapter_sha256` saves
    hashing the same adapter for each bank). KeyError.
    """
    values = {key: value for key, value in dict(content.config_records["request"]).items() if key not in NOT_SIGNED}
    config = hashlib.sha256(str(values.pop("config", "")).encode("utf-8", "surrogatepass")).hexdigest()
    adapter = adapter_sha256 or arrays_sha256(content.array_records["adapter"])
    return {**values, "config-sha256": config, "adapter-sha256": adapter}


def reply_statement(content: RecordDict) -> dict[str, Any]:
    """What a reply says: its whole head, all figures, and the delta by the SHA-256 of its bytes as sent."""
    head = {key: value for key, value in dict(content.config_records["reply"]).items() if key not in NOT_SIGNED}
    figures = dict(content.metric_records["figures"]) if "figures" in content.metric_records else {}
    arrays: Mapping[str, Any] = content.array_records.get("delta", {})
    return {"reply": head, "figures": figures, "delta-sha256": arrays_sha256(arrays)}


def arrays_sha256(arrays: Mapping[str, Any]) -> str:
    """SHA-256 of a vector's bytes, little-endian float32, from its parts."""
    found = hashlib.sha256()
    for name in sorted(arrays, key=lambda name: (len(name), name)):
        found.update(arrays[name].data)
    return found.hexdigest()


def answer_signed(content: RecordDict, request: Mapping[str, Any], signer: Signer | None) -> dict[str, Any]:
    """Bank side: add to a reply which request it answers, and the bank's signature if it has a key. Returns the
    statement.
    """
    from flwr.app import ConfigRecord

    head = dict(content.config_records["reply"])
    head |= {key: request[key] for key in ("run", "round", "attempt") if key in request} | {"request": digest(request)}
    content.config_records["reply"] = ConfigRecord(head)
    statement = reply_statement(content)
    if signer:
        content.config_records["reply"] = ConfigRecord({**head, "signature": signer.sign(REPLY, statement)})
    return statement


@dataclass(frozen=True)
class ServerKeys:
    """What the server signs with, and whose signatures it knows."""

    signer: Signer | None = None
    banks: Mapping[str, str] | None = None
    """Bank -> its enrolled public key in OpenSSH's form. None where no coordinator keeps such keys: replies are then
    not signed.
    """


def server_keys() -> ServerKeys:
    """From the environment that `coordinator start` gives its ServerApps; none in a simulation."""
    signing, enrolled = os.environ.get(SIGNING), os.environ.get(ENROLLED)
    signer = load_signer(Path(signing), Path(signing).with_suffix(".crt")) if signing else None
    if not enrolled:
        return ServerKeys(signer)
    banks = {}
    for file in sorted((Path(enrolled).parent / "enrolled").glob("*.pub")):
        try:
            banks[file.stem] = " ".join(file.read_text("ascii").split()[:2])
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read: enroll the bank again.") from error
    return ServerKeys(signer, banks)


@dataclass
class RoundEvidence:
    """One attempt at a round: signs what is asked, checks what is answered, and becomes a line of the chain."""

    keys: ServerKeys
    run: str
    round: int
    start_sha256: str
    """Of the adapter before the round."""
    code_sha256: str = ""
    """Of the app bundle (`fedfinlora.deployment.app_bundle.code_sha256`)."""
    attempt: str = field(default_factory=lambda: secrets.token_hex(16))
    """Drawn for each attempt: an answer to another attempt at the same round is not accepted."""
    banks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def ask(self, contents: Mapping[str, RecordDict]) -> None:
        """Put attempt, bank and signature into each bank's request."""
        from flwr.app import ConfigRecord

        hashes: dict[int, str] = {}
        for bank, content in contents.items():
            arrays = content.array_records["adapter"]
            if id(arrays) not in hashes:
                hashes[id(arrays)] = arrays_sha256(arrays)
            head = {
                **content.config_records["request"],
                "attempt": self.attempt,
                "bank": bank,
                "code-sha256": self.code_sha256,
            }
            content.config_records["request"] = ConfigRecord(head)
            statement = request_statement(content, hashes[id(arrays)])
            self.banks[bank] = {"request": statement}
            if self.keys.signer:
                signature = self.keys.signer.sign(REQUEST, statement)
                self.banks[bank]["request_signature"] = signature
                content.config_records["request"] = ConfigRecord(
                    {**head, "signature": signature, "certificate": self.keys.signer.certificate}
                )

    def check(self, bank: str, content: RecordDict) -> None:
        """RejectedReply unless this is what the bank answers to just this request.

        What a bank has signed is kept, without its arrays, accepted or not: a wrong answer can be shown later as its
        own.
        """
        try:
            statement = reply_statement(content)
            signature = str(content.config_records["reply"].get("signature", ""))
            size_bytes = len(canonical(statement))
        except (KeyError, TypeError, ValueError, RecursionError, AttributeError) as error:
            if self.keys.banks is None:
                return  # `fedfinlora.wire.messages.unpack_reply` says what is wrong
            raise RejectedReply("signature", "The reply is not signed.") from error
        own = self.banks[bank]
        if size_bytes > MOST_STATEMENT_BYTES:  # else one bank fills the run's folder
            raise RejectedReply("malformed", f"The reply's head and figures have {size_bytes:,} bytes.")
        if self.keys.banks is not None:
            self._check_signature(bank, statement, signature)
        check_reply_form(content)  # what has no name on the wire is not kept
        run = own["request"].get("run")
        if statement["reply"].get("run", run) != run:  # a text of the bank's own
            raise RejectedReply("signature", "The reply answers another request than this round's.")
        if statement["reply"].get("bank", bank) != bank:  # likewise
            raise RejectedReply("malformed", "The reply names another bank.")
        if self.keys.banks is not None:
            own |= {**statement, "reply_signature": signature}
        head = statement["reply"]
        if self.keys.banks is None and head.get("status") != "ok":
            return
        if head.get("request") != digest(own["request"]):
            raise RejectedReply("signature", "The reply answers another request than this round's.")
        own |= statement

    def _check_signature(self, bank: str, statement: Mapping[str, Any], signature: str) -> None:
        assert self.keys.banks is not None
        if not signature:
            raise RejectedReply("signature", "The reply is not signed.")
        if bank not in self.keys.banks:
            raise RejectedReply("signature", "No key of this bank is enrolled.")
        try:
            check(public_key_of(self.keys.banks[bank]), REPLY, statement, signature)
        except WrongSignature as error:
            raise RejectedReply("signature", f"The reply is not what the bank signed: {error}.") from error

    def outcome(self, bank: str, code: str) -> None:
        """The code of the refusal; "" if the answer was accepted."""
        self.banks[bank]["code"] = code

    def line(self, adapter_sha256: str, weights: Mapping[str, float] | None) -> Attempt:
        """For `Chain.append`. Weights are in the mean of those accepted; None where it is private."""
        requests = [bank["request"] for bank in self.banks.values()]
        common = {
            key: value
            for key, value in (requests[0] if requests else {}).items()
            if all(key in one and one[key] == value for one in requests)
        }
        parts = {
            name: BankPart(
                request={key: value for key, value in bank["request"].items() if key not in common},
                code=bank["code"],
                request_signature=bank.get("request_signature", ""),
                reply=bank.get("reply"),
                figures=bank.get("figures", {}),
                delta_sha256=bank.get("delta-sha256", ""),
                reply_signature=bank.get("reply_signature", ""),
            )
            for name, bank in sorted(self.banks.items())
        }
        return Attempt(self.run, self.round, self.attempt, self.start_sha256, common, parts, weights, adapter_sha256)
