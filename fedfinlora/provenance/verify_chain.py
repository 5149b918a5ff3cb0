"""Walk through provenance.jsonl line by line: each round follows from the one before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedfinlora.config.schema import Config
from fedfinlora.config.values import build
from fedfinlora.errors import UserError, plural
from fedfinlora.provenance.compared import Difference
from fedfinlora.provenance.findings import ChainFile, Ended, Findings, Round, time_of
from fedfinlora.provenance.folder import sha256_of_file
from fedfinlora.provenance.lines import (
    CHAIN_FILE,
    FIRST,
    Attempt,
    Audited,
    Begin,
    End,
    Saved,
    Sealed,
    UnknownLine,
    read_values,
    sealed_of,
)
from fedfinlora.provenance.signatures import LINE, WrongSignature, certificate_key, certified_key, check
from fedfinlora.provenance.verify_attempt import Asker, check_attempt

Placed = tuple[tuple[int, int, int], Sealed]
"""(number of a line, its offset and length in bytes; the line)."""


class ChainCheck:
    """provenance.jsonl, and what it says once each of its lines was taken."""

    def __init__(
        self,
        run: Path,
        authority: bytes | None,
        enrolled: Mapping[str, str] | None,
        compare: Callable[[Round, Attempt], list[Difference]],
        found: Findings,
    ) -> None:
        """`compare` says what in rounds.jsonl does not follow from a round's replies. OSError."""
        self._compare = compare
        self.run, self.authority, self.enrolled, self.found = run, authority, enrolled, found
        self.file = ChainFile(run / CHAIN_FILE)
        self.rounds: dict[int, Round] = {}
        """In their order."""
        self.started: str | None = None
        """SHA-256 of the adapter that the first round starts from."""
        self.run_id: str | None = None
        self.audits: list[Audited] = []
        self.open_round = 0
        """The last attempt's round if no later line says that it was closed."""
        self.ended: Ended | None = None
        """At the last line that says that the run was completed."""
        self.begins: list[Begin] = []
        self.differences: dict[int, list[Difference]] = {}
        """Round -> what `compare` has found, where that is anything."""
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}
        """Names of banks, to hold equal ones once."""
        self._asker = Asker()
        self._ledgers: dict[str, list[tuple[int, int]]] = {}
        """Bank -> (round, number of the ledger's line), both growing."""
        self._count = 0

    @property
    def config(self) -> Config | None:
        """As the last `begin` has it."""
        return self._asker.config

    def lines(self) -> Iterator[Placed]:
        """Every line that is whole, follows the one before and is of a known kind."""
        previous, number = FIRST, 0
        for place, line, is_whole in self.file.lines():
            number = place[0]
            where = self.file.where(number)
            if not is_whole:
                self.found.add(self.file.path, "its last line is cut off")
                break
            try:
                values = read_values(line)
            except WrongSignature as error:
                self.found.add(where, str(error))
                break
            if values.get("previous") != previous:
                self.found.add(where, "it does not follow the line before it")
                break
            previous = values["sha256"]
            try:
                sealed = sealed_of(values)
            except UnknownLine as error:
                self.found.add(where, str(error))
                continue
            if not self._count and not isinstance(sealed.line, Begin):
                self.found.add(where, "the chain does not begin with a line of kind begin")
            self._count += 1
            yield place, sealed
        if not number:
            self.found.add(self.file.path, "it has no line")

    def take(self, place: tuple[int, int, int], sealed: Sealed) -> None:
        """Check the next line, and remember what it says."""
        line, where = sealed.line, self.file.where(place[0])
        try:
            if isinstance(line, Begin):
                self._begin(where, line, sealed.at)
            self._signed_line(where, sealed)
            if line.run != self.run_id:
                self.found.add(where, "it is of another run")
            if isinstance(line, Attempt) and self.begins:
                self._round(place, line)
            if isinstance(line, Saved) and line.round == self.open_round:
                self.open_round = 0
            if isinstance(line, Audited):
                if line.config_sha256 != self._asker.config_sha256:
                    self.found.add(where, "the audit is of another configuration than the run's")
                self.audits.append(line)
            if isinstance(line, End) and line.status == "completed" and self.config and self.run_id and self.begins:
                first, last = self.begins[0], self.begins[-1]
                self.ended = Ended(
                    self.config, self.run_id, first.code_sha256, last.version, sealed.previous, dict(self.rounds),
                    tuple(self.audits)
                )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
            self.found.add(where, f"it lacks or garbles something ({type(error).__name__})")

    def sum_up(self) -> None:
        is_signed = self._asker.coordinator is not None
        signed = "every line signed by the coordinator" if is_signed else "NOT SIGNED: a simulation has no keys"
        trust = (
            ""
            if not is_signed
            else ", whose certificate is the authority's"
            if self.authority
            else " (name its ca.crt with --ca to know who that is)"
        )
        self.found.checked.append(
            f"{CHAIN_FILE}: {plural(self._count, 'line')} in a chain, begun {plural(len(self.begins), 'time')}, "
            f"{signed}{trust}"
        )

    def _begin(self, where: str, line: Begin, at: str) -> None:
        self.begins.append(line)
        self._check_manifest(line)
        before = line.round
        if before and (before not in self.rounds or self.rounds[before].adapter_sha256 != line.adapter_sha256):
            self.found.add(where, f"it resumes from an adapter that no line gives after round {before}")
        if not before:
            self.started = line.adapter_sha256
        self._forget(before)
        banks = line.banks
        if self.authority and not line.certificate:
            self.found.add(where, "it is not signed, and --ca asks for signatures")
        if len({key.split()[1] for key in (banks or {}).values()}) < len(banks or {}):
            self.found.add(where, "two banks have one key")
        if line.certificate and banks is None:
            self.found.add(where, "it names no keys of banks, and a coordinator's run has them")
        for bank in sorted(set(banks or {}) - set(self.enrolled)) if self.enrolled is not None else ():
            self.found.add(where, f"--enrolled has no key of {bank}")
        for bank, known in sorted((self.enrolled or {}).items()):
            if banks is not None and bank in banks and banks[bank].split()[:2] != known.split()[:2]:
                self.found.add(where, f"the key of {bank} is not the one that --enrolled has")
        config_sha256 = hashlib.sha256(line.config.encode()).hexdigest()
        self._asker = Asker(self._coordinator(where, line.certificate, at), banks, line.code_sha256, config_sha256)
        self._asker.config = build(json.loads(line.config))
        self.run_id = self.run_id or line.run

    def _check_manifest(self, line: Begin) -> None:
        manifest = self.run / "manifest.json"
        try:
            if sha256_of_file(manifest) != line.manifest_sha256:
                self.found.add(manifest, "it is not the one that the run began with")
        except OSError as error:
            self.found.add(manifest, f"cannot be read ({error.strerror})")

    def _coordinator(self, where: str, certificate: str, at: str) -> Any:
        if not certificate:
            return None
        try:
            if self.authority:
                return certified_key(certificate, self.authority, time_of(at))
        except WrongSignature as error:
            self.found.add(where, f"its coordinator's certificate: {error}")
        return certificate_key(certificate)

    def _signed_line(self, where: str, sealed: Sealed) -> None:
        if self._asker.coordinator is None:
            return
        try:
            check(self._asker.coordinator, LINE, sealed.sha256, sealed.signature)
        except WrongSignature as error:
            self.found.add(where, f"it is not signed by the coordinator: {error}")

    def _forget(self, last: int) -> None:
        while self.rounds and (number := next(reversed(self.rounds))) > last:
            del self.rounds[number]
            self.differences.pop(number, None)
        for lines in self._ledgers.values():
            while lines and lines[-1][0] > last:
                lines.pop()

    def _round(self, place: tuple[int, int, int], line: Attempt) -> None:
        number, where = line.round, self.file.where(place[0])
        self._forget(number - 1)
        earlier = self.rounds.get(number - 1)
        before = earlier.adapter_sha256 if earlier else self.started if number == 1 else None
        if line.start_sha256 != before:
            self.found.add(where, f"round {number} does not start from the adapter of the round before")
        banks, accepted = (
            self._names.setdefault(names, names) for names in (tuple(sorted(line.banks)), tuple(line.accepted))
        )
        found = Round(number, self.file, place, self.config, len(self.begins), banks, accepted, line.adapter_sha256)
        check_attempt(where, line, self._asker, found, self.found)
        for bank in line.accepted:
            self._ledger(where, bank, line.banks[bank].head, number)
        if wrong := self._compare(found, line):
            self.differences[number] = wrong
        self.rounds[number] = found
        self.open_round = number

    def _ledger(self, where: str, bank: str, reply: Mapping[str, Any], number: int) -> None:
        """A bank's ledger only grows: two rounds do not have the same line of it."""
        if "ledger-number" not in reply:
            return
        lines = self._ledgers.setdefault(bank, [])
        if lines and reply["ledger-number"] <= lines[-1][1]:
            self.found.add(where, f"the ledger of {bank} has not grown since an earlier round")
        else:
            lines.append((number, reply["ledger-number"]))
