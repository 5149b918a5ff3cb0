"""Check one round in provenance.jsonl: what each bank was asked and has answered, and who signed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedfinlora.config.schema import Config
from fedfinlora.provenance.evidence import NO_DELTA
from fedfinlora.provenance.findings import Findings, Round
from fedfinlora.provenance.lines import Attempt, BankPart
from fedfinlora.provenance.signatures import REPLY, REQUEST, WrongSignature, digest, public_key_of


@dataclass
class Asker:
    """Who asks and by what, as the last `begin` says."""

    coordinator: Any = None
    """Its public key; None in a simulation."""
    banks: Mapping[str, str] | None = None
    """Bank -> its public key in OpenSSH's form; None in a simulation."""
    code_sha256: str = ""
    config_sha256: str = ""
    """Of the configuration as it is written there."""
    config: Config | None = None
    """None where it cannot be read."""
    _keys: dict[str, Any] = field(default_factory=dict)

    def key_of(self, bank: str) -> Any:
        """A bank's public key, read once. KeyError or WrongSignature."""
        if bank not in self._keys:
            self._keys[bank] = public_key_of((self.banks or {})[bank])
        return self._keys[bank]


def check_attempt(where: str, line: Attempt, asker: Asker, one: Round, found: Findings) -> None:
    """Name what is wrong in a round's line, and count the checked signatures in `one`."""
    _check_close(where, line, asker.config, found)
    expected = {
        "run": line.run, "round": line.round, "attempt": line.attempt, "adapter-sha256": line.start_sha256,
        "code-sha256": asker.code_sha256,
    }  # fmt: skip
    expected |= {"config-sha256": asker.config_sha256} if asker.config else {}
    by_drift = asker.config is not None and asker.config.strategy.sync == "drift"
    for bank, part in line.banks.items():
        request = {**line.request, **part.request}
        for key, value in {**expected, "bank": bank}.items():
            is_unsent = by_drift and key == "adapter-sha256" and request.get(key) == NO_DELTA
            if request.get(key) != value and not is_unsent:
                found.add(where, f"the request to {bank} has another {key} than the round")
        if not by_drift and request.get("silent"):
            found.add(where, f"the request to {bank} asks for no update, and only strategy.sync=drift does that")
        if asker.coordinator is not None:
            what = f"the request to {bank}"
            one.asked += found.signed(where, what, asker.coordinator, REQUEST, request, part.request_signature)
        _check_reply(where, bank, part, request, asker, one, found)


def _check_close(where: str, line: Attempt, config: Config | None, found: Findings) -> None:
    """A round is closed with strategy.quorum replies, and each of those averaged has a weight; with the server's own
    noise there is neither.
    """
    if config is None:
        return
    number, accepted = line.round, line.accepted
    if config.privacy.mode == "bank":
        if line.weights is not None:
            found.add(where, f"round {number} has weights, and under privacy=bank none is made")
        return
    if len(accepted) < config.strategy.quorum:
        moved = (
            ", yet its adapter is another than the round's before" if line.adapter_sha256 != line.start_sha256 else ""
        )
        what = f"round {number} has {len(accepted)} accepted replies{moved if not accepted else ''}"
        found.add(where, f"{what}: with fewer than strategy.quorum={config.strategy.quorum} no round is closed")
    if line.weights is None:
        found.add(where, f"round {number} has no weights: only under privacy=bank there are none")
        return
    for bank in sorted(set(line.weights) ^ set(accepted)):
        found.add(where, f"{bank} weighs in round {number} and was not accepted, or the other way round")


def _check_reply(
    where: str, bank: str, part: BankPart, request: Mapping[str, Any], asker: Asker, one: Round, found: Findings
) -> None:
    """A rejected reply is signed as well, and may speak of another request."""
    if part.reply is None:
        if part.code == "":
            found.add(where, f"the reply of {bank} is missing")
        return
    if part.code == "":
        expected = {"request": digest(request), "bank": bank, "status": "ok"}
        expected |= {key: request[key] for key in ("run", "round", "attempt", "layout-id")}
        for key, value in expected.items():
            if part.reply.get(key) != value:
                found.add(where, f"the reply of {bank} has another {key} than it answers")
    elif part.code == "signature" and part.reply.get("request") == digest(request):
        found.add(where, f"the reply of {bank} was rejected as one to another request, and it answers this one")
    elif part.reply.get("status") == "error" and part.code not in ("signature", part.reply.get("code")):
        found.add(where, f"the code of {bank} is {part.code}, and its reply says {part.reply.get('code')}")
    if asker.banks is not None:
        try:
            key = asker.key_of(bank)
        except (KeyError, WrongSignature):
            found.add(where, f"there is no key of {bank}")
            return
        one.answered += found.signed(where, f"the reply of {bank}", key, REPLY, part.statement, part.reply_signature)
