"""Walk through provenance.jsonl line by line: who asked what, who answered what, and that each round follows from the one before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfinlora.config import Config
from fedfinlora.config_values import build
from fedfinlora.errors import UserError
from fedfinlora.provenance.findings import Ended, Findings, Round, lines_of, time_of
from fedfinlora.provenance.folder import sha256_of_file
from fedfinlora.provenance.lines import (
    CHAIN_FILE,
    FIRST,
    Attempt,
    Audited,
    BankPart,
    Begin,
    End,
    Saved,
    Sealed,
    UnknownLine,
    read_values,
    sealed_of,
)
from fedfinlora.provenance.signatures import (
    LINE,
    REPLY,
    REQUEST,
    WrongSignature,
    certificate_key,
    certified_key,
    check,
    digest,
    public_key_of,
)
from fedfinlora.provenance.verify_rounds import weights_of_line

Placed = tuple[str, Sealed]
"""(file and line, the line)."""


@dataclass
class _Keys:
    """Whose signatures are to be found, as the last `begin` says."""

    coordinator: Any = None
    banks: Mapping[str, str] | None = None


class ChainCheck:
    """provenance.jsonl, and what it says once `walk` has been through it; that is then compared with the other files."""

    def __init__(self, run: Path, authority: bytes | None, enrolled: Mapping[str, str] | None, found: Findings) -> None:
        self.run, self.authority, self.enrolled, self.found = run, authority, enrolled, found
        self.file = run / CHAIN_FILE
        self.rounds: dict[int, Round] = {}
        self.started: str | None = None
        """SHA-256 of the adapter that the first round starts from."""
        self.run_id: str | None = None
        self.config: Config | None = None
        """As the last `begin` has it."""
        self.config_json = ""
        """The same, as it is written there."""
        self.audits: list[Audited] = []
        self.open_round = 0
        """The last attempt's round if no later line says that it was closed."""
        self.ended: Ended | None = None
        """At the last line that says that the run was completed."""

    def wrong(self, where: Path | str, what: str) -> None:
        self.found.add(where, what)

    def lines(self) -> list[Placed]:
        """Every line that is whole, follows the one before and is of a known kind. OSError."""
        placed: list[Placed] = []
        previous, number = FIRST, 0
        for number, line in enumerate(lines_of(self.file, self.found), 1):
            where = f"{self.file}, line {number}"
            try:
                values = read_values(line)
            except WrongSignature as error:
                self.wrong(where, str(error))
                break
            if values.get("previous") != previous:
                self.wrong(where, "it does not follow the line before it")
                break
            previous = values["sha256"]
            try:
                placed.append((where, sealed_of(values)))
            except UnknownLine as error:
                self.wrong(where, str(error))
        if not number:
            self.wrong(self.file, "it has no line")
        elif placed and not isinstance(placed[0][1].line, Begin):
            self.wrong(placed[0][0], "the chain does not begin with a line of kind begin")
        return placed

    def walk(self, lines: Sequence[Placed]) -> None:
        """Check the lines in their order, and remember the rounds that count."""
        keys, begin, first_code, begins = _Keys(), None, None, 0
        for where, sealed in lines:
            line = sealed.line
            try:
                if isinstance(line, Begin):
                    begins += 1
                    keys, begin = self._begin(where, line, sealed.at), line
                    self.config, self.config_json = build(json.loads(line.config)), line.config
                    self.run_id = self.run_id or line.run
                    first_code = line.code_sha256 if first_code is None else first_code
                self._signed_line(where, sealed, keys)
                if line.run != self.run_id:
                    self.wrong(where, "it is of another run")
                if isinstance(line, Attempt) and begin is not None:
                    self._round(where, line, keys, begin.code_sha256)
                    self.open_round = line.round
                if isinstance(line, Saved) and line.round == self.open_round:
                    self.open_round = 0
                if isinstance(line, Audited):
                    if line.config_sha256 != hashlib.sha256(self.config_json.encode()).hexdigest():
                        self.wrong(where, "the audit is of another configuration than the run's")
                    self.audits.append(line)
                if isinstance(line, End) and line.status == "completed" and self.config and self.run_id and begin:
                    self.ended = Ended(
                        self.config,
                        self.run_id,
                        first_code or "",
                        begin.version,
                        sealed.previous,
                        dict(self.rounds),
                        tuple(self.audits),
                    )
            except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
                self.wrong(where, f"it lacks or garbles something ({type(error).__name__})")
        signed = "every line signed by the coordinator" if keys.coordinator else "NOT SIGNED: a simulation has no keys"
        trust = (
            ""
            if not keys.coordinator
            else ", whose certificate is the authority's"
            if self.authority
            else " (name its ca.crt with --ca to know who that is)"
        )
        self.found.checked.append(f"{CHAIN_FILE}: {len(lines)} lines in a chain, begun {begins} times, {signed}{trust}")

    def _begin(self, where: str, line: Begin, at: str) -> _Keys:
        manifest = self.run / "manifest.json"
        try:
            same = sha256_of_file(manifest) == line.manifest_sha256
            if not same:
                self.wrong(manifest, "it is not the one that the run began with")
        except OSError as error:
            self.wrong(manifest, f"cannot be read ({error.strerror})")
        before = line.round
        if before and (before not in self.rounds or self.rounds[before].line.adapter_sha256 != line.adapter_sha256):
            self.wrong(where, f"it resumes from an adapter that no line gives after round {before}")
        if not before:
            self.started = line.adapter_sha256
        self.rounds = {number: one for number, one in self.rounds.items() if number <= before}
        banks = line.banks
        if self.authority and not line.certificate:
            self.wrong(where, "it is not signed, and --ca asks for signatures")
        if len({key.split()[1] for key in (banks or {}).values()}) < len(banks or {}):
            self.wrong(where, "two banks have one key")
        if line.certificate and banks is None:
            self.wrong(where, "it names no keys of banks, and a coordinator's run has them")
        for bank in sorted(set(banks or {}) - set(self.enrolled)) if self.enrolled is not None else ():
            self.wrong(where, f"--enrolled has no key of {bank}")
        for bank, known in sorted((self.enrolled or {}).items()):
            if banks is not None and bank in banks and banks[bank].split()[:2] != known.split()[:2]:
                self.wrong(where, f"the key of {bank} is not the one that --enrolled has")
        return _Keys(self._coordinator(where, line.certificate, at), banks)

    def _coordinator(self, where: str, certificate: str, at: str) -> Any:
        if not certificate:
            return None
        try:
            if self.authority:
                return certified_key(certificate, self.authority, time_of(at))
        except WrongSignature as error:
            self.wrong(where, f"its coordinator's certificate: {error}")
        return certificate_key(certificate)

    def _signed_line(self, where: str, sealed: Sealed, keys: _Keys) -> None:
        if keys.coordinator is None:
            return
        try:
            check(keys.coordinator, LINE, sealed.sha256, sealed.signature)
        except WrongSignature as error:
            self.wrong(where, f"it is not signed by the coordinator: {error}")

    def _round(self, where: str, line: Attempt, keys: _Keys, code: str) -> None:
        number, config = line.round, self.config
        earlier = self.rounds.get(number - 1)
        before = earlier.line.adapter_sha256 if earlier else self.started if number == 1 else None
        if line.start_sha256 != before:
            self.wrong(where, f"round {number} does not start from the adapter of the round before")
        found = Round(line, where, config)
        weighed = line.weights
        for bank in sorted(set(weighed or {}) ^ set(line.accepted)) if weighed is not None else ():
            self.wrong(where, f"{bank} weighs in round {number} and was not accepted, or the other way round")
        if weighed is not None and config is not None and weights_of_line(line, config) != weighed:
            self.wrong(where, f"the weights of round {number} do not follow from configuration and replies")
        for bank, part in line.banks.items():
            request = {**line.request, **part.request}
            expected = {
                "run": line.run, "round": number, "attempt": line.attempt, "adapter-sha256": line.start_sha256, "bank": bank, "code-sha256": code,
            }  # fmt: skip
            expected |= {"config-sha256": hashlib.sha256(self.config_json.encode()).hexdigest()} if config else {}
            for key, value in expected.items():
                if request.get(key) != value:
                    self.wrong(where, f"the request to {bank} has another {key} than the round")
            if keys.coordinator is not None:
                found.asked += self.found.signed(
                    where, f"the request to {bank}", keys.coordinator, REQUEST, request, part.request_signature
                )
            self._reply(where, bank, part, request, keys, found)
        self.rounds = {other: one for other, one in self.rounds.items() if other < number} | {number: found}

    def _reply(self, where: str, bank: str, part: BankPart, request: Mapping[str, Any], keys: _Keys, found: Round) -> None:
        """What a bank has replied. A rejected reply is signed as well, and may speak of another request or bank: for that it was rejected."""
        if part.reply is None:
            if part.code == "":
                self.wrong(where, f"the reply of {bank} is missing")
            return
        if part.code == "":
            expected = {"request": digest(request), "bank": bank, "status": "ok"}
            expected |= {key: request[key] for key in ("run", "round", "attempt")}
            for key, value in expected.items():
                if part.reply.get(key) != value:
                    self.wrong(where, f"the reply of {bank} has another {key} than it answers")
            self._ledger(where, bank, part.reply, found.line.round)
        if keys.banks is not None:
            key = self._bank_key(where, bank, keys.banks)
            found.answered += self.found.signed(where, f"the reply of {bank}", key, REPLY, part.statement, part.reply_signature)

    def _ledger(self, where: str, bank: str, reply: Mapping[str, Any], number: int) -> None:
        """A bank's ledger only grows: two rounds do not have the same line of it."""
        earlier = [
            one.line.banks[bank].head.get("ledger-number", -1)
            for other, one in self.rounds.items()
            if other < number and bank in one.line.accepted
        ]
        if "ledger-number" in reply and earlier and reply["ledger-number"] <= max(earlier):
            self.wrong(where, f"the ledger of {bank} has not grown since an earlier round")

    def _bank_key(self, where: str, bank: str, banks: Mapping[str, str]) -> Any:
        try:
            return public_key_of(banks[bank])
        except (KeyError, WrongSignature):
            self.wrong(where, f"there is no key of {bank}")
            return None
