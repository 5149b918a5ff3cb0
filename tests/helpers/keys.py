"""The keys of a deployment without its processes: a consortium's authority, a coordinator that signs, banks that are
enrolled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedfinlora.deployment.bank_keys import make_node_key
from fedfinlora.deployment.certificates import SIGNING_CERTIFICATE, SIGNING_KEY, issue_signing, make_authority
from fedfinlora.files import write_json
from fedfinlora.provenance.signatures import Signer, load_signer


class Consortium:
    """Keys in a folder: `coordinator` (signing.key, ca.crt, enrolled/BANK.pub) and `banks/BANK/node.key`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "coordinator"
        (self.home / "enrolled").mkdir(parents=True)
        make_authority(self.home, 10)
        issue_signing(self.home, 5)

    @property
    def ca(self) -> Path:
        return self.home / "ca.crt"

    @property
    def signer(self) -> Signer:
        return load_signer(self.home / SIGNING_KEY, self.home / SIGNING_CERTIFICATE)

    def enrolls(self, banks: Iterable[str]) -> None:
        for bank in banks:
            key = self.key_of(bank)
            if not key.exists():
                make_node_key(key, bank)
                (self.home / "enrolled" / f"{bank}.pub").write_bytes(key.with_name("node.key.pub").read_bytes())

    def key_of(self, bank: str) -> Path:
        return self.folder / "banks" / bank / "node.key"

    def nodes(self, nodes: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
        """Node configs, with the keys of each bank, which is enrolled and so gets its number into banks.json."""
        found = {}
        for node, config in nodes.items():
            bank = str(config.get("bank", f"bank-{config.get('partition-id', 0)}"))
            self.enrolls([bank])
            found[node] = {**config, "node-key": str(self.key_of(bank)), "authority": str(self.ca)}
        names = {
            str(config.get("bank", f"bank-{config.get('partition-id', 0)}")): str(node)
            for node, config in nodes.items()
        }
        write_json(self.home / "banks.json", names)
        return found

    def serves(self, monkeypatch: pytest.MonkeyPatch) -> Consortium:
        """This process is a ServerApp of the coordinator from here on."""
        monkeypatch.setenv("FEDFINLORA_ENROLLED", str(self.home / "banks.json"))
        monkeypatch.setenv("FEDFINLORA_SIGNING", str(self.home / SIGNING_KEY))
        return self
