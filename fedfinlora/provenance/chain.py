"""What is signed in a round, and the chain of hashes that a run keeps of it: provenance.jsonl in the run's folder.

A line is canonical JSON. It has the SHA-256 of the line before, its own, and, where a coordinator has a signing key, its signature. `begin` opens
a run or its resumption: configuration, manifest, code and keys. `round` is one attempt at a round: what each bank was asked and answered, both by hash
and signature, and the adapter before and after. `end` has the hash of every file of the folder. A line costs about 2 KB and 1.2 KB a bank and round.

The line is written before the round's checkpoint, so a round that a crash undid is there twice; the later line counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedfinlora.deployment.enrolled import ENROLLED, SIGNING
from fedfinlora.errors import UserError
from fedfinlora.provenance.folder import contents_of, sha256_of_file
from fedfinlora.provenance.signatures import (
    LINE,
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
from fedfinlora.runfolder import unwritable, write_bytes
from fedfinlora.synced import append_synced
from fedfinlora.wire import RejectedReply, check_reply_form

if TYPE_CHECKING:
    from flwr.app import RecordDict

CHAIN_FILE, DELTAS = "provenance.jsonl", "deltas"
FIRST = "0" * 64
"""Hash of the line before the first."""
NOT_SIGNED = ("signature", "certificate")
"""Keys of a request's or reply's head that carry its signature."""
NO_DELTA = hashlib.sha256(b"").hexdigest()
MOST_STATEMENT_BYTES = 2**15
"""Of a reply without its arrays, as canonical JSON; an honest one has 1.2 KB."""


def request_statement(content: RecordDict, adapter_sha256: str | None = None) -> dict[str, Any]:
    """What a request says: its whole head, the configuration and the adapter by their SHA-256. KeyError where there is none of that.

    `adapter_sha256` saves hashing the same adapter for each bank.
    """
    values = {key: value for key, value in dict(content.config_records["request"]).items() if key not in NOT_SIGNED}
    config = hashlib.sha256(str(values.pop("config", "")).encode("utf-8", "surrogatepass")).hexdigest()
    adapter = adapter_sha256 or arrays_sha256(content.array_records["adapter"])
    return {**values, "config-sha256": config, "adapter-sha256": adapter}


def reply_statement(content: RecordDict) -> dict[str, Any]:
    """What a reply says: its whole head, all figures, and the delta by the SHA-256 of its bytes as sent; an error has neither."""
    head = {key: value for key, value in dict(content.config_records["reply"]).items() if key not in NOT_SIGNED}
    figures = dict(content.metric_records["figures"]) if "figures" in content.metric_records else {}
    arrays: Mapping[str, Any] = content.array_records.get("delta", {})
    return {"reply": head, "figures": figures, "delta-sha256": arrays_sha256(arrays)}


def arrays_sha256(arrays: Mapping[str, Any]) -> str:
    """SHA-256 over the bytes of a vector's parts, in their order: that of the whole vector's bytes, little-endian float32."""
    found = hashlib.sha256()
    for name in sorted(arrays, key=lambda name: (len(name), name)):
        found.update(arrays[name].data)
    return found.hexdigest()


def answer_signed(content: RecordDict, request: Mapping[str, Any], signer: Signer | None) -> dict[str, Any]:
    """Bank side: add to a reply which request it answers, and the bank's signature if it has a key. Returns the statement."""
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
    """Bank -> its enrolled public key in OpenSSH's form. None where no coordinator keeps such keys: replies are then not signed."""


def server_keys() -> ServerKeys:
    """From the environment that `coordinator start` gives its ServerApps; none in a simulation. UserError where a key cannot be read."""
    signing, enrolled = os.environ.get(SIGNING), os.environ.get(ENROLLED)
    signer = load_signer(Path(signing), Path(signing).with_suffix(".crt")) if signing else None
    if not enrolled:
        return ServerKeys(signer)
    banks = {}
    for file in sorted((Path(enrolled).parent / "enrolled").glob("*.pub")):
        try:
            banks[file.stem] = " ".join(file.read_text("ascii").split()[:2])
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read: enroll the bank anew.") from error
    return ServerKeys(signer, banks)


@dataclass
class RoundEvidence:
    """One attempt at a round, as it is being made: signs what is asked, checks what is answered, and ends as a line."""

    keys: ServerKeys
    run: str
    round: int
    start_sha256: str
    """Of the adapter before the round."""
    code_sha256: str = ""
    """Of the app bundle (`fedfinlora.deployment.app_bundle.code_sha256`)."""
    attempt: str = field(default_factory=lambda: secrets.token_hex(16))
    """Drawn anew whenever a round is tried: an answer to another try of the same round is not taken for one to this."""
    banks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def ask(self, contents: Mapping[str, RecordDict]) -> None:
        """Put attempt and bank into each bank's request, and the signature of all that it says."""
        from flwr.app import ConfigRecord

        hashes: dict[int, str] = {}
        for bank, content in contents.items():
            arrays = content.array_records["adapter"]
            if id(arrays) not in hashes:
                hashes[id(arrays)] = arrays_sha256(arrays)
            head = {**content.config_records["request"], "attempt": self.attempt, "bank": bank, "code-sha256": self.code_sha256}
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
        """RejectedReply unless this is what the bank answers to just this request. Nothing else of the reply was looked at before.

        What a bank has signed is kept, without its arrays, whatever becomes of it: a wrong answer can be shown later as its own.
        """
        try:
            statement = reply_statement(content)
            signature = str(content.config_records["reply"].get("signature", ""))
            size_bytes = len(canonical(statement))
        except (KeyError, TypeError, ValueError, RecursionError, AttributeError) as error:
            if self.keys.banks is None:
                return  # `fedfinlora.wire.unpack_reply` says what is wrong
            raise RejectedReply("signature", "The reply is not signed.") from error
        own = self.banks[bank]
        if size_bytes > MOST_STATEMENT_BYTES:  # else one bank fills the run's folder
            raise RejectedReply("malformed", f"The reply's head and figures have {size_bytes:,} bytes.")
        if self.keys.banks is not None:
            self._check_signature(bank, statement, signature)
        check_reply_form(content)  # what has no name on the wire is not kept
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
        """What became of a bank's answer: "" if it was accepted, else the code of the refusal."""
        self.banks[bank]["code"] = code

    def line(self, adapter_sha256: str, weights: Mapping[str, float] | None) -> dict[str, Any]:
        """The round's line, for `Chain.append`. Weights are in the mean of those accepted; None where the mean is private."""
        requests = [bank["request"] for bank in self.banks.values()]
        common = {
            key: value
            for key, value in (requests[0] if requests else {}).items()
            if all(key in one and one[key] == value for one in requests)
        }
        banks = {
            name: {**bank, "request": {key: value for key, value in bank["request"].items() if key not in common}}
            for name, bank in sorted(self.banks.items())
        }
        return {
            "kind": "round", "run": self.run, "round": self.round, "attempt": self.attempt, "start_sha256": self.start_sha256, "request": common,
            "banks": banks, "weights": weights, "adapter_sha256": adapter_sha256,
        }  # fmt: skip


class Chain:
    """provenance.jsonl of a run, to add lines to."""

    def __init__(self, folder: Path, signer: Signer | None = None) -> None:
        """Begin it, or go on after its last whole line: one that a crash cut off is taken away. UserError where it is damaged."""
        self.file, self._signer = folder / CHAIN_FILE, signer
        self._previous = FIRST
        try:
            content = self.file.read_bytes() if self.file.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if whole:
                self._previous = line_hash(whole.splitlines()[-1])
            if whole != content:
                os.truncate(self.file, len(whole))
        except OSError as error:
            raise UserError(f"{self.file} cannot be read ({error.strerror}).") from error
        except WrongSignature as error:
            raise UserError(f"{self.file} is damaged: {error}. `python -m fedfinlora verify {folder}` says more.") from error

    def append(self, values: Mapping[str, Any]) -> str:
        """Write one line and sync it; returns its hash. UserError where the disk does not take it."""
        body = {**values, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "previous": self._previous}
        found = digest(body)
        signed = {"signature": self._signer.sign(LINE, found)} if self._signer else {}
        content = canonical({**body, "sha256": found, **signed}) + b"\n"
        try:
            append_synced(self.file, content)
        except OSError as error:
            raise unwritable(self.file, error) from error
        self._previous = found
        return found


def line_hash(line: bytes) -> str:
    """The hash that a line has of itself. WrongSignature unless it is right and the line is written as `Chain` writes it."""
    return str(read_line(line)["sha256"])


def read_line(line: bytes) -> dict[str, Any]:
    """A line's values. WrongSignature unless it is canonical JSON whose own hash is right."""
    try:
        values = json.loads(line)
        if canonical(values) != line:
            raise WrongSignature("it is not written as this program writes it")
        body = {key: value for key, value in values.items() if key not in ("sha256", "signature")}
        if digest(body) != values["sha256"]:
            raise WrongSignature("its hash is not that of its content")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WrongSignature(f"it cannot be read ({type(error).__name__})") from error
    return values  # type: ignore[no-any-return]


def delta_file(run: Path, round_number: int, bank: str) -> Path:
    """Where a round's delta of a bank is kept with strategy.keep_deltas: its bytes as sent, little-endian float32."""
    return run / DELTAS / f"round_{round_number:06d}" / f"{bank}.f32"


def keep_delta(run: Path, round_number: int, bank: str, delta: Any) -> None:
    """Write a checked delta down, (size,) float32. UserError where the disk does not take it."""
    _keep(delta_file(run, round_number, bank), delta)


def start_file(run: Path) -> Path:
    """Where the adapter that the first round starts from is kept with strategy.keep_deltas."""
    return run / DELTAS / "start.f32"


def keep_start(run: Path, adapter: Any) -> None:
    """Write the run's first adapter down, (size,) float32."""
    _keep(start_file(run), adapter)


def _keep(file: Path, vector: Any) -> None:
    import numpy as np

    write_bytes(file, np.ascontiguousarray(vector, "<f4").tobytes())
    for path, mode in ((file, 0o600), (file.parent, 0o700)):
        path.chmod(mode)


# --- the first and the last line of a run ---------------------------------------------------------------------------------------------

LATER = ("provenance.jsonl", "progress.jsonl", "report.html", "privacy.json", "audit.json")
"""Files that are written after the last line, or by other commands later."""
OF_STATE = ("run.json", "origin.json")
"""Of the folder `state`, besides checkpoints: all else there is logs, locks and Flower's own."""


def files_of(run: Path) -> dict[str, str]:
    """Path in a run's folder -> SHA-256, of every file that does not change once the run has ended. OSError where one cannot be read."""
    return {name: sha256_of_file(run / name) for name in contents_of(run).files if is_covered(name)}


def is_covered(name: str) -> bool:
    """Whether the last line has the hash of a file of the run's folder.

    >>> is_covered("config.yaml"), is_covered("report.html"), is_covered("state/server.log"), is_covered("state/round_0001.safetensors")
    (True, False, False, True)
    >>> is_covered(".hidden"), is_covered("state/.hidden"), is_covered("state/flwr/.cache/x")
    (True, True, False)
    """
    if name in LATER:
        return False
    if not name.startswith("state/"):
        return True
    rest = name.removeprefix("state/")
    return rest in OF_STATE or rest.startswith(".") or (rest.startswith("round_") and rest.endswith(".safetensors"))


def begin_line(
    run: Path, run_id: str, config_json: str, code_sha256: str, keys: ServerKeys, round_number: int, adapter_sha256: str
) -> dict[str, Any]:
    """What a run begins or goes on with after `round_number` rounds; who may sign is in it, so that the folder can be checked anywhere."""
    manifest = run / "manifest.json"
    return {
        "kind": "begin", "run": run_id, "round": round_number, "adapter_sha256": adapter_sha256, "config": config_json, "code_sha256": code_sha256,
        "manifest_sha256": hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else "",
        "certificate": keys.signer.certificate if keys.signer else "", "banks": keys.banks,
    }  # fmt: skip


def end_line(run: Path, run_id: str, status: str) -> dict[str, Any]:
    """What a run has left."""
    return {"kind": "end", "run": run_id, "status": status, "files": files_of(run)}
