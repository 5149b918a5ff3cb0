"""Check a run's folder from provenance.jsonl alone, offline: who asked what, who answered what, and that each adapter follows from it.

`verify_run` goes on after what it finds wrong, and names the file each time. Without an authority it shows that nothing was changed since; with the
consortium's ca.crt it shows who said it; with the deltas (strategy.keep_deltas) it computes each round again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fedfinlora.adapter_folder import WEIGHTS_FILE
from fedfinlora.config import Config
from fedfinlora.config_values import build, to_json
from fedfinlora.errors import UserError
from fedfinlora.privacy.card import privacy_card
from fedfinlora.provenance.chain import CHAIN_FILE, FIRST, NO_DELTA, delta_file, files_of, is_covered, read_line, start_file
from fedfinlora.provenance.signatures import (
    LINE,
    REPLY,
    REQUEST,
    WrongSignature,
    certified_key,
    check,
    digest,
    key_in,
    openssh_text,
    public_key_of,
)
from fedfinlora.runfolder import read_config, read_json, read_lines

Step = Callable[[Config, Any, Sequence[tuple[str, Mapping[str, Any], Any]]], tuple[Any, str]]
"""(configuration, state before the round, (bank, figures, delta) of each accepted bank by name) -> (state after it, SHA-256 of its adapter)."""
NUMBERS_IN_BOTH = ("rows", "steps", "tokens", "answer_tokens", "skipped_rows")
"""Figures that rounds.jsonl has as the bank sent them."""


@dataclass
class Findings:
    """What was looked at, and what is wrong."""

    checked: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Each names a file."""


@dataclass
class _Keys:
    """Whose signatures are to be found, as the last `begin` says."""

    coordinator: Any = None
    banks: Mapping[str, str] | None = None


@dataclass
class _Round:
    """A round that counts."""

    line: dict[str, Any]
    where: str
    config: Config | None
    asked: int = 0
    """Requests whose signature was checked."""
    answered: int = 0
    """Replies whose signature was checked."""


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
    return _Check(run, authority, enrolled, step, first_state).all()


class _Check:
    def __init__(
        self, run: Path, authority: bytes | None, enrolled: Mapping[str, str] | None, step: Step | None, first_state: Any
    ) -> None:
        self.run, self.authority, self.enrolled, self.step, self.first_state = run, authority, enrolled, step, first_state
        self.found = Findings()
        self.file = run / CHAIN_FILE
        self.rounds: dict[int, _Round] = {}
        self.started: str | None = None
        """SHA-256 of the adapter that the first round starts from."""

    def all(self) -> Findings:
        lines = self._lines()
        self._walk(lines)
        self._rounds_file()
        self._recompute()
        self._adapters()
        self._files(lines)
        self._card()
        return self.found

    def wrong(self, where: Path | str, what: str) -> None:
        self.found.wrong.append(f"{where}: {what}")

    def _lines(self) -> list[tuple[str, dict[str, Any]]]:
        """(where, values) of every line that is whole and follows the one before."""
        try:
            content = self.file.read_bytes()
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

    def _walk(self, lines: Sequence[tuple[str, dict[str, Any]]]) -> None:
        keys, config, run_id, code = _Keys(), None, None, ""
        begins = 0
        for where, line in lines:
            try:
                if line["kind"] == "begin":
                    begins += 1
                    keys, config, code = self._begin(where, line), build(json.loads(line["config"])), line["code_sha256"]
                    run_id = run_id or line["run"]
                self._signed_line(where, line, keys)
                if line["run"] != run_id:
                    self.wrong(where, "it is of another run")
                if line["kind"] == "round":
                    self._round(where, line, keys, config, code)
            except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
                self.wrong(where, f"it lacks or garbles something ({type(error).__name__})")
        if lines and run_id is not None:
            self._identity(run_id, config)
        signed = "every line signed by the coordinator" if keys.coordinator else "NOT SIGNED: a simulation has no keys"
        trust = (
            ""
            if not keys.coordinator
            else ", whose certificate is the authority's"
            if self.authority
            else " (name its ca.crt with --ca to know who that is)"
        )
        self.found.checked.append(f"{CHAIN_FILE}: {len(lines)} lines in a chain, begun {begins} times, {signed}{trust}")
        if self.authority and lines and not keys.coordinator:
            self.wrong(self.file, "it is not signed, and --ca asks for signatures")

    def _begin(self, where: str, line: Mapping[str, Any]) -> _Keys:
        manifest = self.run / "manifest.json"
        try:
            same = hashlib.sha256(manifest.read_bytes()).hexdigest() == line["manifest_sha256"]
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

    def _round(self, where: str, line: dict[str, Any], keys: _Keys, config: Config | None, code: str) -> None:
        number = line["round"]
        before = (
            self.rounds[number - 1].line["adapter_sha256"]
            if number - 1 in self.rounds
            else self.started
            if number == 1
            else None
        )
        if line["start_sha256"] != before:
            self.wrong(where, f"round {number} does not start from the adapter of the round before")
        found = _Round(line, where, config)
        weighed, accepted = (
            set(line.get("weights") or {}),
            {bank for bank, entry in line["banks"].items() if entry["code"] == ""},
        )
        if weighed and weighed != accepted:
            self.wrong(
                where,
                f"{', '.join(sorted(weighed ^ accepted))} weighs in round {number} and was not accepted, or the other way round",
            )
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
            if "reply" not in entry:
                if entry["code"] == "":
                    self.wrong(where, f"the reply of {bank} is missing")
                continue
            if entry["reply"].get("request") != digest(request):
                self.wrong(where, f"the reply of {bank} answers another request")
            if keys.banks is not None:
                key = self._bank_key(where, bank, keys.banks)
                statement = {name: entry[name] for name in ("reply", "figures", "delta-sha256")}
                found.answered += self._check(
                    where, f"the reply of {bank}", key, REPLY, statement, entry.get("reply_signature", "")
                )
        self.rounds = {other: one for other, one in self.rounds.items() if other < number} | {number: found}

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

    def _identity(self, run_id: str, config: Config | None) -> None:
        """config.yaml and state/run.json are those of the chain."""
        identity = self.run / "state" / "run.json"
        try:
            if read_json(identity).get("run_id") != run_id:
                self.wrong(identity, f"it is of another run than {CHAIN_FILE}")
        except (UserError, AttributeError) as error:
            self.wrong(identity, str(error))
        try:
            own = read_config(self.run)
            if config is not None and digest(_numbers_of(own)) != digest(_numbers_of(config)):
                self.wrong(self.run / "config.yaml", f"it is not the configuration in {CHAIN_FILE}")
        except UserError as error:
            self.wrong(self.run / "config.yaml", str(error))

    def _rounds_file(self) -> None:
        """rounds.jsonl says of each round what the chain says."""
        file = self.run / "rounds.jsonl"
        try:
            lines = {line["round"]: line for line in read_lines(file)}
            content = file.read_bytes() if file.is_file() else b""
        except (UserError, OSError, KeyError, TypeError) as error:
            self.wrong(file, str(error))
            return
        if content and not content.endswith(b"\n"):
            self.wrong(file, "its last line is cut off")
        for number in sorted({*lines, *self.rounds}):
            if number not in lines:
                self.wrong(file, f"round {number} is missing")
            elif number not in self.rounds:
                self.wrong(self.file, f"round {number} of rounds.jsonl is missing")
            else:
                self._same_round(file, lines[number], self.rounds[number].line)

    def _same_round(self, file: Path, line: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
        number = kept["round"]
        try:
            if line["adapter_sha256"] != kept["adapter_sha256"]:
                self.wrong(file, f"round {number} has another adapter than {CHAIN_FILE}")
            entries = {entry["bank"]: entry for entry in line["banks"]}
            if sorted(entries) != sorted(kept["banks"]):
                self.wrong(file, f"round {number} names other banks than {CHAIN_FILE}")
                return
            for bank, entry in entries.items():
                figures = kept["banks"][bank].get("figures", {}) if entry["status"] == "ok" else {}
                differing = [name for name in NUMBERS_IN_BOTH if name in figures and figures[name] != entry[name]]
                if entry["code"] != kept["banks"][bank]["code"]:
                    differing.append("code")
                for name in differing:
                    self.wrong(file, f"round {number}: {name} of {bank} is not what {CHAIN_FILE} has")
        except (KeyError, TypeError, AttributeError) as error:
            self.wrong(file, f"round {number} lacks or garbles something ({type(error).__name__})")

    def _recompute(self) -> None:
        """Each round again from the kept deltas, as far as there are all."""
        config = next((one.config for one in self.rounds.values()), None)
        kept = bool(config and config.strategy.keep_deltas)
        state = self._first(config) if kept else None
        for number, one in sorted(self.rounds.items()):
            words = [f"round {number}: {len(one.line['banks'])} banks asked"]
            if one.asked or one.answered:
                words.append(f"{one.asked} requests and {one.answered} replies signed")
            accepted = [bank for bank, entry in sorted(one.line["banks"].items()) if entry["code"] == ""]
            if state is not None and config is not None and self.step is not None:
                state = self._again(number, one, config, state, accepted)
                words.append(
                    f"aggregate and step computed again from {len(accepted)} deltas"
                    if state is not None
                    else "NOT computed again"
                )
            else:
                words.append("hashes only: its deltas were not kept" if not kept else "NOT computed again")
            self.found.checked.append(f"{', '.join(words)}, adapter {one.line['adapter_sha256'][:16]}")

    def _first(self, config: Config | None) -> Any:
        vector = self._vector(start_file(self.run), self.started)
        if vector is None or self.first_state is None:
            return None
        try:
            return self.first_state(config, vector, next(iter(self.rounds.values())).line["request"].get("layout-id", ""))
        except UserError as error:
            self.found.checked.append(f"not computed again: {error}")
            return None

    def _again(self, number: int, one: _Round, config: Config, state: Any, accepted: Sequence[str]) -> Any:
        replies = []
        for bank in accepted:
            entry = one.line["banks"][bank]
            delta = self._vector(delta_file(self.run, number, bank), entry["delta-sha256"])
            if delta is None:
                return None
            replies.append((bank, entry["figures"], delta))
        assert self.step is not None
        try:
            following, found = self.step(config, state, replies)
        except (UserError, ValueError, KeyError, TypeError) as error:
            self.wrong(one.where, f"round {number} cannot be computed again ({type(error).__name__})")
            return None
        if found != one.line["adapter_sha256"]:
            self.wrong(one.where, f"round {number}: the kept deltas give another adapter, {found[:16]}")
            return None
        return following

    def _vector(self, file: Path, sha256: str | None) -> Any:
        try:
            content = file.read_bytes()
        except OSError as error:
            self.wrong(file, f"cannot be read ({error.strerror})")
            return None
        if hashlib.sha256(content).hexdigest() != (sha256 or NO_DELTA):
            self.wrong(file, f"it is not what {CHAIN_FILE} says")
            return None
        return np.frombuffer(content, "<f4").astype(np.float32)

    def _adapters(self) -> None:
        """The saved adapter of each round, where it is kept, holds just the round's vector."""
        checked, kept = 0, 0
        for number, one in sorted(self.rounds.items()):
            folder = next((found for found in (self.run / "adapters").glob("round_*") if _number_of(found) == number), None)
            if folder is None or one.config is None:
                continue
            kept += 1
            checked += self._adapter(folder / WEIGHTS_FILE, one.line["adapter_sha256"], one.config)
        final, rounds = self.run / "adapters" / "final" / WEIGHTS_FILE, sorted(self.rounds.items())
        if final.is_file() and rounds and (config := rounds[-1][1].config) and config.peft.method != "lora_xs":
            found = self._vector_sha256(final, config)
            if found and found not in [one.line["adapter_sha256"] for _, one in rounds]:
                self.wrong(final, f"it is no adapter that {CHAIN_FILE} has")
        if kept:
            self.found.checked.append(f"adapters: {checked} of {kept} saved adapters are their round's, number for number")

    def _adapter(self, file: Path, sha256: str, config: Config) -> bool:
        found = self._vector_sha256(file, config)
        if found and found != sha256:
            self.wrong(file, f"it is not the adapter in {CHAIN_FILE}")
        return found == sha256

    def _vector_sha256(self, file: Path, config: Config) -> str:
        """Of the vector that was saved there; "" where it cannot be read off."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            self.wrong(file, f"it is missing or damaged ({type(error).__name__})")
            return ""
        if config.peft.method == "lora_xs":  # saved as the LoRA that it equals: R cannot be read off bit by bit
            return ""
        trained = [name for name in sorted(tensors) if not (config.peft.freeze_a and ".lora_A." in name)]
        return hashlib.sha256(b"".join(np.ascontiguousarray(tensors[name], "<f4").tobytes() for name in trained)).hexdigest()

    def _files(self, lines: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Every file that the last line names is as it was."""
        last = lines[-1][1] if lines else {}
        if last.get("kind") != "end":
            for name in ("result.json", "adapters/final"):
                if (self.run / name).exists():
                    self.wrong(self.file, f"its last line is missing: {name} says that the run has ended")
            self.found.checked.append(f"files: {CHAIN_FILE} has no last line, as of a run that was broken off or still goes on")
            return
        named, here = last["files"], files_of(self.run)
        for name in sorted({*named, *here}):
            if name not in here:
                self.wrong(self.run / name, "it is missing")
            elif name not in named:
                self.wrong(self.run / name, "it was not there when the run ended")
            elif named[name] != here[name]:
                self.wrong(self.run / name, "it is not as it was when the run ended")
        others = sorted(
            {
                path.relative_to(self.run).parts[0]
                for path in self.run.rglob("*")
                if path.is_file() and not is_covered(path.relative_to(self.run).as_posix())
            }
            - {CHAIN_FILE, "privacy.json"}
        )
        not_covered = f"; not covered: {', '.join(others)}" if others else ""
        self.found.checked.append(f"files: {len(set(named) & set(here))} of {len(named)} are there{not_covered}")

    def _card(self) -> None:
        """privacy.json follows from configuration and rounds."""
        file, audited = self.run / "privacy.json", self.run / "audit.json"
        try:
            config, lines = read_config(self.run), read_lines(self.run / "rounds.jsonl")
            expected = privacy_card(config, lines, read_json(audited) if audited.is_file() else None)
            if bool(expected) != file.is_file():
                self.wrong(file, "it is missing" if expected else "this run has no privacy card")
            elif expected and digest(read_json(file)) != digest(expected):
                self.wrong(file, "it does not follow from config.yaml and rounds.jsonl")
        except UserError as error:
            if not any(str(error).startswith(str(self.run / name)) for name in ("config.yaml", "rounds.jsonl")):
                self.wrong(file, str(error))
        except (KeyError, TypeError, ValueError):
            self.wrong(file, "it does not follow from config.yaml and rounds.jsonl")


def _numbers_of(config: Config) -> dict[str, Any]:
    from fedfinlora.runfolder import deciding_values

    return deciding_values(config)


def _number_of(folder: Path) -> int:
    digits = folder.name.rpartition("_")[2]
    return int(digits) if digits.isdigit() else -1


def verify_bank(home: Path, name: str, authority: bytes, public_key: str) -> Findings:
    """Check what a bank keeps of requests and answers: each request is signed by a coordinator of the authority, each answer by the bank."""
    found = Findings()
    file = home / "state" / "signed" / f"{name}.jsonl"
    asked: dict[str, Mapping[str, Any]] = {}
    answers = 0
    try:
        lines = file.read_bytes().split(b"\n")
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
    runs = sorted({str(one["run"]) for one in asked.values()})
    found.checked.append(
        f"{file}: {len(asked)} requests signed by the coordinator, {answers} answers signed by {name} ({openssh_text(public_key_of(public_key))[-16:]})"
    )
    found.checked += [
        f"run {run}: rounds {', '.join(str(one['round']) for one in asked.values() if one['run'] == run)}" for run in runs
    ]
    return found
