"""Check a run's folder from provenance.jsonl alone, offline: who asked what, who answered what, and that each adapter follows from it.

`verify_run` goes on after what it finds wrong, and names the file each time. Without an authority it shows that nothing was changed since; with the
consortium's ca.crt it shows who said it; with the deltas (strategy.keep_deltas) it computes each round again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedfinlora.config import Config
from fedfinlora.config_values import build, to_json
from fedfinlora.errors import UserError
from fedfinlora.provenance.chain import CHAIN_FILE, FIRST, read_line
from fedfinlora.provenance.findings import Ended, Findings, Round, no_other_kinds
from fedfinlora.provenance.folder import file_bytes, sha256_of_file
from fedfinlora.provenance.signatures import (
    LINE,
    REPLY,
    REQUEST,
    WrongSignature,
    certified_key,
    check,
    digest,
    key_in,
    public_key_of,
)
from fedfinlora.provenance.verify_deltas import Step, compute_again
from fedfinlora.provenance.verify_files import check_adapters, check_card, check_files, check_identity
from fedfinlora.provenance.verify_release import check_release
from fedfinlora.provenance.verify_rounds import check_rounds_file, weights_of_line


@dataclass
class _Keys:
    """Whose signatures are to be found, as the last `begin` says."""

    coordinator: Any = None
    banks: Mapping[str, str] | None = None


def verify_run(
    run: Path,
    authority: bytes | None = None,
    enrolled: Mapping[str, str] | None = None,
    step: Step | None = None,
    first_state: Any = None,
) -> Findings:
    """Check the run in a folder. `authority` is the ca.crt that the reader trusts, `enrolled` the banks' public keys that the reader knows
    (OpenSSH's form), `step` and `first_state` ((configuration, adapter, layout id) -> state) compute a round again.
    """
    found = Findings()
    if not no_other_kinds(run, found):
        return found
    chain = _Chain(run, authority, enrolled, found)
    lines: list[tuple[str, dict[str, Any]]] = []
    with naming(run / CHAIN_FILE, found):
        lines = chain.lines()
        chain.walk(lines)
    if chain.run_id is not None:
        with naming(run / "config.yaml", found):
            check_identity(run, chain.run_id, chain.config, found)
    with naming(run / "rounds.jsonl", found):
        check_rounds_file(run, chain.rounds, found)
    with naming(run / "deltas", found):
        compute_again(run, chain.rounds, chain.started, step, first_state, found)
    with naming(run / "adapters", found):
        check_adapters(run, chain.rounds, found)
    with naming(run, found):
        check_files(run, lines, found)
    with naming(run / "privacy.json", found):
        check_card(run, found)
    if chain.ended is not None:
        with naming(run / "adapters" / "final", found):
            check_release(run, chain.ended, found)
    return found


@contextmanager
def naming(where: Path, found: Findings) -> Iterator[None]:
    """What a damaged or forged file makes of a check is one thing more that is wrong, and the next check goes on."""
    try:
        yield
    except UserError as error:
        found.add(where, str(error))
    except (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RecursionError, TypeError, ValueError) as error:
        found.add(where, f"it cannot be checked: something in it is damaged or not of a run ({type(error).__name__})")


class _Chain:
    """provenance.jsonl, line by line; what it says is then held against the other files."""

    def __init__(self, run: Path, authority: bytes | None, enrolled: Mapping[str, str] | None, found: Findings) -> None:
        self.run, self.authority, self.enrolled, self.found = run, authority, enrolled, found
        self.file = run / CHAIN_FILE
        self.rounds: dict[int, Round] = {}
        self.started: str | None = None
        """SHA-256 of the adapter that the first round starts from."""
        self.run_id: str | None = None
        self.config: Config | None = None
        """As the last `begin` has it."""
        self.ended: Ended | None = None
        """At the last line that says that the run was completed."""

    def wrong(self, where: Path | str, what: str) -> None:
        self.found.add(where, what)

    def lines(self) -> list[tuple[str, dict[str, Any]]]:
        """(where, values) of every line that is whole and follows the one before."""
        try:
            content = file_bytes(self.file)
        except OSError as error:
            self.wrong(self.file, f"cannot be read ({error.strerror})")
            return []
        if content and not content.endswith(b"\n"):
            self.wrong(self.file, "its last line is cut off")
        found, previous = [], FIRST
        for number, line in enumerate(content.split(b"\n")[:-1], 1):
            where = f"{self.file}, line {number}"
            try:
                values = read_line(line)
            except WrongSignature as error:
                self.wrong(where, str(error))
                break
            if values.get("previous") != previous:
                self.wrong(where, "it does not follow the line before it")
                break
            previous = values["sha256"]
            found.append((where, values))
        if not found:
            self.wrong(self.file, "it has no line")
        return found

    def walk(self, lines: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Check the lines in their order, and remember the rounds that count."""
        keys, code, first_code = _Keys(), "", None
        begins = 0
        for where, line in lines:
            try:
                if line["kind"] == "begin":
                    begins += 1
                    keys, self.config, code = self._begin(where, line), build(json.loads(line["config"])), line["code_sha256"]
                    self.run_id = self.run_id or line["run"]
                    first_code = code if first_code is None else first_code
                self._signed_line(where, line, keys)
                if line["run"] != self.run_id:
                    self.wrong(where, "it is of another run")
                if line["kind"] == "round":
                    self._round(where, line, keys, code)
                if line["kind"] == "end" and line["status"] == "completed" and self.config and self.run_id:
                    self.ended = Ended(self.config, self.run_id, first_code or "", line["previous"], dict(self.rounds))
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

    def _begin(self, where: str, line: Mapping[str, Any]) -> _Keys:
        manifest = self.run / "manifest.json"
        try:
            same = sha256_of_file(manifest) == line["manifest_sha256"]
            if not same:
                self.wrong(manifest, "it is not the one that the run began with")
        except OSError as error:
            self.wrong(manifest, f"cannot be read ({error.strerror})")
        before = line["round"]
        if before and (before not in self.rounds or self.rounds[before].line["adapter_sha256"] != line["adapter_sha256"]):
            self.wrong(where, f"it goes on from an adapter that no line gives after round {before}")
        if not before:
            self.started = line["adapter_sha256"]
        self.rounds = {number: one for number, one in self.rounds.items() if number <= before}
        banks = line["banks"]
        if self.authority and not line["certificate"]:
            self.wrong(where, "it is not signed, and --ca asks for signatures")
        if len({key.split()[1] for key in (banks or {}).values()}) < len(banks or {}):
            self.wrong(where, "two banks have one key")
        if line["certificate"] and banks is None:
            self.wrong(where, "it names no keys of banks, and a coordinator's run has them")
        for bank in sorted(set(banks or {}) - set(self.enrolled)) if self.enrolled is not None else ():
            self.wrong(where, f"--enrolled has no key of {bank}")
        for bank, known in sorted((self.enrolled or {}).items()):
            if banks is not None and bank in banks and banks[bank].split()[:2] != known.split()[:2]:
                self.wrong(where, f"the key of {bank} is not the one that --enrolled has")
        return _Keys(self._coordinator(where, line), banks)

    def _coordinator(self, where: str, line: Mapping[str, Any]) -> Any:
        from cryptography import x509

        if not line["certificate"]:
            return None
        try:
            if self.authority:
                return certified_key(
                    line["certificate"], self.authority, datetime.strptime(line["at"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
                )
            return key_in(x509.load_pem_x509_certificate(line["certificate"].encode()))
        except WrongSignature as error:
            self.wrong(where, f"its coordinator's certificate: {error}")
            return key_in(x509.load_pem_x509_certificate(line["certificate"].encode()))

    def _signed_line(self, where: str, line: Mapping[str, Any], keys: _Keys) -> None:
        if keys.coordinator is None:
            return
        try:
            check(keys.coordinator, LINE, line["sha256"], line.get("signature", ""))
        except WrongSignature as error:
            self.wrong(where, f"it is not signed by the coordinator: {error}")

    def _round(self, where: str, line: dict[str, Any], keys: _Keys, code: str) -> None:
        number, config = line["round"], self.config
        before = (
            self.rounds[number - 1].line["adapter_sha256"]
            if number - 1 in self.rounds
            else self.started
            if number == 1
            else None
        )
        if line["start_sha256"] != before:
            self.wrong(where, f"round {number} does not start from the adapter of the round before")
        found = Round(line, where, config)
        weighed = line.get("weights")
        for bank in sorted(set(weighed or {}) ^ set(found.accepted)) if weighed is not None else ():
            self.wrong(where, f"{bank} weighs in round {number} and was not accepted, or the other way round")
        if weighed is not None and config is not None and weights_of_line(line, config) != weighed:
            self.wrong(where, f"the weights of round {number} do not follow from configuration and replies")
        for bank, entry in line["banks"].items():
            request = {**line["request"], **entry["request"]}
            expected = {
                "run": line["run"],
                "round": number,
                "attempt": line["attempt"],
                "adapter-sha256": line["start_sha256"],
                "bank": bank,
                "code-sha256": code,
            }
            expected |= {"config-sha256": hashlib.sha256(to_json(config).encode()).hexdigest()} if config else {}
            for key, value in expected.items():
                if request.get(key) != value:
                    self.wrong(where, f"the request to {bank} has another {key} than the round")
            if keys.coordinator is not None:
                found.asked += self._check(
                    where, f"the request to {bank}", keys.coordinator, REQUEST, request, entry.get("request_signature", "")
                )
            self._reply(where, bank, entry, request, keys, found)
        self.rounds = {other: one for other, one in self.rounds.items() if other < number} | {number: found}

    def _reply(
        self, where: str, bank: str, entry: Mapping[str, Any], request: Mapping[str, Any], keys: _Keys, found: Round
    ) -> None:
        """What a bank has said. A rejected reply is signed as well, and may speak of another request or bank: for that it was rejected."""
        if "reply" not in entry:
            if entry["code"] == "":
                self.wrong(where, f"the reply of {bank} is missing")
            return
        if entry["code"] == "":
            expected = {"request": digest(request), "bank": bank, "status": "ok"}
            expected |= {key: request[key] for key in ("run", "round", "attempt")}
            for key, value in expected.items():
                if entry["reply"].get(key) != value:
                    self.wrong(where, f"the reply of {bank} has another {key} than it answers")
            self._ledger(where, bank, entry["reply"], found.line["round"])
        if keys.banks is not None:
            key = self._bank_key(where, bank, keys.banks)
            statement = {name: entry[name] for name in ("reply", "figures", "delta-sha256")}
            found.answered += self._check(
                where, f"the reply of {bank}", key, REPLY, statement, entry.get("reply_signature", "")
            )

    def _ledger(self, where: str, bank: str, reply: Mapping[str, Any], number: int) -> None:
        """A bank's ledger only grows: two rounds do not have the same line of it."""
        earlier = [
            one.line["banks"][bank]["reply"].get("ledger-number", -1)
            for other, one in self.rounds.items()
            if other < number and bank in one.accepted
        ]
        if "ledger-number" in reply and earlier and reply["ledger-number"] <= max(earlier):
            self.wrong(where, f"the ledger of {bank} has not grown since an earlier round")

    def _bank_key(self, where: str, bank: str, banks: Mapping[str, str]) -> Any:
        try:
            return public_key_of(banks[bank])
        except (KeyError, WrongSignature):
            self.wrong(where, f"there is no key of {bank}")
            return None

    def _check(self, where: str, what: str, key: Any, purpose: str, statement: Mapping[str, Any], signature: str) -> bool:
        try:
            if key is not None:
                check(key, purpose, statement, signature)
            return key is not None
        except WrongSignature as error:
            self.wrong(where, f"{what}: {error}")
            return False
