"""A coordinator's folder."""

from __future__ import annotations

import getpass
import os
import shlex
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfinlora.deployment.certificates import (
    LEAST_PASSPHRASE,
    Authority,
    open_authority,
)
from fedfinlora.deployment.flower_link import Link, flower_environment
from fedfinlora.errors import UserError
from fedfinlora.files import read_json, write_json
from fedfinlora.system.web import client_for

CONNECTION = "coordinator"

LOOPBACK = "127.0.0.1"

SETTINGS = "coordinator.json"

PASSPHRASE_FILE = "FEDFINLORA_CA_PASSPHRASE_FILE"
"""In the environment: a file whose first line opens ca.key."""


@dataclass(frozen=True)
class Coordinator:
    home: Path

    @property
    def settings(self) -> Mapping[str, Any]:
        """host, port and names. UserError before `init`."""
        file = self.home / SETTINGS
        if not file.is_file():
            raise UserError(
                f"There is no coordinator in {self.home}. Run `python -m fedfinlora coordinator init` first."
            )
        found: Mapping[str, Any] = read_json(file)
        return found

    @property
    def environment(self) -> dict[str, str]:
        return flower_environment(self.home / "flwr") | {
            # Whole adapters come and go in several threads: what is freed goes back to the system.
            "MALLOC_ARENA_MAX": "2",
            "MALLOC_MMAP_THRESHOLD_": str(2**20),
            "MALLOC_TRIM_THRESHOLD_": str(2**20),
        }

    @property
    def banks_file(self) -> Path:
        """Name -> node id of the registered banks."""
        return self.home / "banks.json"

    def link(self, run: Path) -> Link:
        """The running SuperLink, to start and follow runs."""
        return Link(run, self.environment, None, CONNECTION)

    def healthy(self) -> bool:
        import httpx

        context = ssl.create_default_context(cafile=str(self.home / "ca.crt"))
        try:
            with client_for(f"https://{self._address}", 5.0, verify=context) as client:
                return client.get(f"https://{self._address}/health").is_success
        except httpx.HTTPError:
            return False

    @property
    def _address(self) -> str:
        return f"{LOOPBACK}:{self.settings['control_port']}"

    def authority(self, place: AuthorityPlace | None) -> Authority:
        """Opened where it is kept."""
        place = place or AuthorityPlace()
        return open_authority(place.folder or Path(str(self.settings["authority"])), place.passphrase)


@dataclass(frozen=True)
class AuthorityPlace:
    """Where the authority's private key is kept, and how it is opened."""

    folder: Path | None = None
    """None: in the coordinator's folder."""
    passphrase_file: Path | None = None
    """Its first line opens ca.key; None: PASSPHRASE_FILE in the environment, else it is asked for on a terminal."""
    encrypt: bool = False
    """Whether a new ca.key is encrypted though no file has the passphrase: it is then asked for."""

    def passphrase(self) -> bytes:
        """UserError where it is named nowhere and there is no terminal."""
        named = str(self.passphrase_file or os.environ.get(PASSPHRASE_FILE, ""))
        if named:
            try:
                return Path(named).read_bytes().split(b"\n")[0].rstrip(b"\r")
            except OSError as error:
                raise UserError(f"The passphrase of ca.key cannot be read from {named} ({error.strerror}).") from error
        if not sys.stdin.isatty():
            raise UserError(
                "The passphrase of ca.key is asked for on a terminal, or read from --passphrase-file or "
                f"${PASSPHRASE_FILE}."
            )
        return getpass.getpass("passphrase of ca.key: ").encode()

    def new_passphrase(self) -> bytes | None:
        """None where a new ca.key is not to be encrypted."""
        if not (self.encrypt or self.passphrase_file or PASSPHRASE_FILE in os.environ):
            return None
        found = self.passphrase()
        from_file = self.passphrase_file or PASSPHRASE_FILE in os.environ
        if not from_file and getpass.getpass(f"once more, {LEAST_PASSPHRASE} characters or more: ").encode() != found:
            raise UserError("The two passphrases differ. Nothing was made.")
        return found


def register(coordinator: Coordinator) -> None:
    """Register every enrolled key that the SuperLink does not know yet."""
    forget_revoked(coordinator)
    known, ids = nodes_of(coordinator), node_ids(coordinator.home)
    for name in enrolled(coordinator.home):
        if name not in known:
            key = coordinator.home / "enrolled" / f"{name}.pub"
            ids[name] = str(tell(coordinator, "supernode", "register", str(key), CONNECTION, "--name", name)["node-id"])
            write_json(coordinator.banks_file, ids)
            print(f"bank {name} is registered", flush=True)


def forget_revoked(coordinator: Coordinator) -> None:
    """Take the nodes of revoked banks from the SuperLink."""
    ids, known = node_ids(coordinator.home), nodes_of(coordinator)
    for name in sorted(set(ids) - set(enrolled(coordinator.home))):
        if name in known:
            tell(coordinator, "supernode", "unregister", str(known[name]["node-id"]), CONNECTION)
        del ids[name]
        write_json(coordinator.banks_file, ids)


def nodes_of(coordinator: Coordinator) -> dict[str, dict[str, Any]]:
    """Name -> what the SuperLink says of each registered bank."""
    answer = coordinator.link(coordinator.home).flwr("supernode", "ls", CONNECTION)
    by_id = {str(node["node-id"]): node for node in answer.get("nodes", [])}
    return {name: by_id[node] for name, node in node_ids(coordinator.home).items() if node in by_id}


def node_ids(home: Path) -> dict[str, str]:
    """Name -> node id of the registered banks."""
    file = Coordinator(home).banks_file
    return dict(read_json(file)) if file.is_file() else {}


def tell(coordinator: Coordinator, *words: str) -> dict[str, Any]:
    """Print a Flower command, run it, and return its answer."""
    print(shlex.join(["flwr", *words]), flush=True)
    answer: dict[str, Any] = coordinator.link(coordinator.home).flwr(*words)
    return answer


def enrolled(home: Path) -> list[str]:
    """Names of the enrolled banks, sorted."""
    return sorted(file.stem for file in (home / "enrolled").glob("*.pub"))
