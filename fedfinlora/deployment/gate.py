"""The gates: no app bundle is unpacked at a bank, nor run at the coordinator, unless the code installed there has let
it in.

A bundle may run if the hash of its files (`app_bundle.code_sha256`) is one that the policy's rule `code` lists; where
it lists none, if they are the files that are installed. The SuperNode takes only bundles that a trusted entity has
signed (`--trusted-entities`): the gate, whose key ends with the SuperNode's process. So a bundle that the gate never
saw has no signature, and one that it refused is not handed on.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedfinlora.deployment.app_bundle import (
    RefusedBundle,
    app_named_by,
    code_sha256,
    first_difference,
    installed_files,
    read_bundle,
)
from fedfinlora.deployment.bank_settings import SETTINGS, read_settings
from fedfinlora.errors import UserError
from fedfinlora.files import write_bytes
from fedfinlora.privacy.history import Event, history_file, record, refuses_unread

log = logging.getLogger("fedfinlora.bank")
ENTITY, TRUSTED = "fedfinlora-gate", "gate.yaml"
REFUSED = {"valid_license": "refused"}
"""In the place of signatures: Flower's own check does not accept it."""
APPS, HASH_DIGITS = "apps", 8
"""Where Flower installs apps in its home, and how much of a bundle's hash is in the name of an app's folder."""


class Gate:
    """The gate of the bank whose folder is `home`; it reads bank.yaml again for each bundle."""

    def __init__(self, home: Path) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._home = home
        self._bank = read_settings(home / SETTINGS)[0].name
        self._key = Ed25519PrivateKey.generate()
        self._folders: dict[str, str] = {}
        """Beginning of a hash (Flower's name of an app's folder) -> hash of the bundle that was let in."""

    def begins(self) -> list[str]:
        """Options that make Flower's SuperNode take only what the gate has signed. Apps that were installed before are
        removed: Flower would run one of them instead of a bundle whose hash begins with the same eight digits.
        """
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
        from flwr.supercore.utils import get_flwr_home

        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(get_flwr_home() / APPS)
        key = self._key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        write_bytes(self._home / TRUSTED, json.dumps({ENTITY: key}, allow_nan=False).encode())
        return ["--trusted-entities", str(self._home / TRUSTED)]

    def judges(
        self, content: bytes, sha256: str, app: tuple[str, str], run: int, round_number: int
    ) -> dict[str, str] | None:
        """The signature that lets a bundle in; None, and a line in the bank's history, if it is refused. `app` is the
        (publisher/name, version) under which it is to run.
        """
        policy_sha256 = ""
        try:
            settings, policy_sha256 = read_settings(self._home / SETTINGS)
            self._check(content, sha256, app, settings.policy.code)
            log.info("the app bundle of run %d is let in: %s", run, sha256)
            return self._signature(content)
        except (RefusedBundle, UserError) as error:
            why = str(error)
            log.error("the app bundle of run %d is refused: %s", run, why)
        except Exception as error:
            why = f"the gate failed ({type(error).__name__}); see supernode.log"
            log.exception("the app bundle of run %d is refused", run)
        self._note(
            Event(str(run), round_number, "refused", code="policy-code", detail=why, policy_sha256=policy_sha256)
        )
        return None

    def _check(self, content: bytes, sha256: str, app: tuple[str, str], listed: tuple[str, ...]) -> None:
        """RefusedBundle that names the first file which is wrong, and the bundle's hash."""
        files = read_bundle(content, sha256)
        code = code_sha256(files)
        if code not in (listed or (code_sha256(installed_files()),)):
            difference = (
                first_difference(files, installed_files())
                or "it is what is installed here, which the policy does not list"
            )
            raise RefusedBundle(f"{difference} (code {code})")
        if app_named_by(files) != app:
            raise RefusedBundle("it is to run under the name of another app")
        if self._folders.setdefault(sha256[:HASH_DIGITS], sha256) != sha256:
            raise RefusedBundle("Flower would take it for another one, whose hash begins alike; start the bank again")

    def _note(self, event: Event) -> None:
        file = history_file(self._home / "state", self._bank)
        try:
            if not refuses_unread(file):
                record(file, event)
        except UserError as error:  # it stays refused
            log.error("%s", error)

    def _signature(self, content: bytes) -> dict[str, str]:
        """What Flower's `_verify_fab` reads."""
        from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign

        now = int(time.time())
        signature = self._key.sign(create_message_to_sign(hashlib.sha256(content).digest(), now))
        reported = {"signed_at": now, "signature": base64.urlsafe_b64encode(signature).decode()}
        return {"valid_license": ENTITY, ENTITY: json.dumps(reported, allow_nan=False)}


def installed_only(start_run: Callable[..., Any]) -> Callable[..., Any]:
    """Flower's way to start a run, with the code that is installed here alone."""
    from fastapi import HTTPException

    def started(request: Any, *others: Any, **more: Any) -> Any:
        content = request.fab.content
        try:
            files = read_bundle(content, hashlib.sha256(content).hexdigest())
            difference = first_difference(files, installed_files())
        except (RefusedBundle, UserError) as error:
            difference = str(error)
        if difference:
            log.error("an app bundle is refused at the coordinator: %s", difference)
            why = (
                "The coordinator runs only the code that is installed where it was started; of this bundle "
                f"{difference}."
            )
            raise HTTPException(status_code=403, detail=why)
        return start_run(request, *others, **more)

    return started


def gated(client_class: type[Any], gate: Gate) -> type[Any]:
    """Flower's client of the SuperLink, which hands on no bundle that the gate has not let in."""
    import httpx
    from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest

    class Gated(client_class):  # type: ignore[misc]
        _app = ("", "")
        """How the run that came last calls its app."""
        _message_id, _round = "", 0
        """Of the message that came last."""

        def PullMessages(self, request: Any) -> Any:
            answer = super().PullMessages(request)
            for message in answer.messages_list:
                self._message_id, self._round = message.metadata.message_id, _whole_number(message.metadata.group_id)
            return answer

        def GetRun(self, request: Any) -> Any:
            answer = super().GetRun(request)
            self._app = (answer.run.fab_id, answer.run.fab_version)
            return answer

        def GetFab(self, request: Any) -> Any:
            answer = super().GetFab(request)
            signature = gate.judges(answer.fab.content, request.hash_str, self._app, request.run_id, self._round)
            answer.fab.hash_str = request.hash_str
            answer.fab.verifications.clear()
            answer.fab.verifications.update(signature or REFUSED)
            if signature is None:
                answer.fab.content = b""
                # Flower leaves this out where it refuses a bundle, and the SuperLink would keep an adapter that no one
                # fetches.
                got = ConfirmMessageReceivedRequest(
                    node=request.node, run_id=request.run_id, message_object_id=self._message_id
                )
                with contextlib.suppress(httpx.HTTPError):
                    self.ConfirmMessageReceived(got)
            return answer

    return Gated


def _whole_number(text: str) -> int:
    """A round as Flower's group id; 0 for anything else.

    >>> _whole_number("12"), _whole_number(""), _whole_number("9" * 99)
    (12, 0, 0)
    """
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
