"""`verify`: check a run's folder, an adapter's folder or a bank's own record of what it was asked; 0 = as it was made, 1 = not."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfinlora.adapter_folder import CONFIG_FILE, WEIGHTS_FILE
from fedfinlora.checkpoint import adapter_checksum
from fedfinlora.config import Config
from fedfinlora.deployment.policy import SETTINGS, read_settings
from fedfinlora.errors import UserError, printable
from fedfinlora.provenance.chain import CHAIN_FILE
from fedfinlora.provenance.findings import Findings, no_other_kinds
from fedfinlora.provenance.folder import contents_of
from fedfinlora.provenance.model_signature import SIGNATURE_FILE, check_folder
from fedfinlora.provenance.release import BOM_FILE, FINAL, PROVENANCE_FILE, read_statement
from fedfinlora.provenance.signatures import WrongSignature, read_public
from fedfinlora.provenance.verify import verify_run
from fedfinlora.provenance.verify_bank import verify_bank
from fedfinlora.resuming import resumed_words
from fedfinlora.wire import Figures, Reply


def verify(folder: Path, authority: Path | None = None, key: Path | None = None, enrolled: Path | None = None) -> int:
    """Print what was checked and what is wrong, a line each. `authority` is a ca.crt, `key` a public key, `enrolled` a folder of banks' keys."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Name a run, an adapter (RUN/adapters/final) or a bank's home.")
    ca, public = (read_public(file) if file else None for file in (authority, key))
    is_bank = _has(folder, SETTINGS)
    is_adapter = _has(folder, CONFIG_FILE, WEIGHTS_FILE, SIGNATURE_FILE)
    is_run = _has(folder, CHAIN_FILE, "config.yaml")
    if is_bank + is_adapter + is_run > 1:  # else a file more would decide what is not looked at
        raise UserError(
            f"{folder} has files of a bank's home, an adapter and a run, or of two of them: it is not as it was made."
        )
    if is_bank:
        found = _bank(folder, ca)
    elif is_adapter:
        found = _adapter(folder, ca, public)
    elif is_run or (folder / "state").is_dir():
        found = _run(folder, ca, public, enrolled)
    else:
        raise UserError(f"{folder} is neither a run ({CHAIN_FILE}), an adapter ({CONFIG_FILE}) nor a bank's home ({SETTINGS}).")
    for line in found.checked:
        print(printable(line))
    for line in found.wrong:
        print(printable(f"WRONG  {line}"))
    print(f"{len(found.wrong)} things are wrong" if found.wrong else "ok")
    return 1 if found.wrong else 0


def _has(folder: Path, *names: str) -> bool:
    """Whether there is something of one of these names, be it a link or a FIFO."""
    return any(os.path.lexists(folder / name) for name in names)


def _run(folder: Path, ca: bytes | None, public: bytes | None, enrolled: Path | None) -> Findings:
    if enrolled is not None and not enrolled.is_dir():
        raise UserError(f"--enrolled {enrolled} is not a folder of banks' public keys (BANK.pub).")
    known = (
        {file.stem: read_public(file).decode("utf-8", "replace") for file in sorted(enrolled.glob("*.pub"))}
        if enrolled
        else None
    )
    found = verify_run(folder, ca, known, _step, _first_state)
    found.checked += [f"note: {sentence}" for sentence in resumed_words(folder)]
    if (folder / FINAL).is_dir() and not contents_of(folder).odd:
        release = _adapter(folder / FINAL, ca, public)
        found.checked += [f"adapters/final: {line}" for line in release.checked]
        found.wrong += release.wrong
    return found


def _adapter(folder: Path, ca: bytes | None, public: bytes | None) -> Findings:
    found = Findings()
    if not no_other_kinds(folder, found):
        return found
    signed = (folder / SIGNATURE_FILE).is_file()
    if signed:
        try:
            checked = check_folder(folder, ca, public)
            believed = "" if checked.trusted else ", which nobody vouches for: name --ca or --key"
            found.checked.append(f"signed by {checked.who}{believed}")
        except WrongSignature as error:
            found.wrong.append(str(error))
    else:
        found.checked.append("NOT SIGNED")
        if ca is not None or public is not None:
            found.wrong.append(f"{folder / SIGNATURE_FILE}: it is missing, and --ca or --key asks for it")
    if not (folder / PROVENANCE_FILE).is_file():
        found.checked.append(f"{PROVENANCE_FILE} is not there: nothing says where the adapter comes from")
        if (folder / BOM_FILE).is_file():
            found.wrong.append(f"{folder / PROVENANCE_FILE}: it is missing")
        if not signed:
            found.wrong.append(f"{folder}: nothing here can be checked")
        return found
    for name in (
        () if signed else sorted(set(contents_of(folder).files) - {CONFIG_FILE, WEIGHTS_FILE, PROVENANCE_FILE, BOM_FILE})
    ):
        found.add(folder / name, "it is no part of a release")  # a signature covers every file
    try:
        origin = read_statement(folder)
        base = origin.base_model
        found.checked.append(
            f"run {origin.run}: {origin.adapter.method} of {base.name} ({base.sha256[:16] or 'hash unknown'}), {origin.rounds} rounds, "
            f"{len(origin.banks)} banks ({', '.join(origin.banks)}), configuration {origin.configuration_sha256[:16]}, "
            f"code {origin.code.source_sha256[:16]}"
        )
    except WrongSignature as error:
        found.wrong.append(str(error))
    except (KeyError, TypeError) as error:
        found.wrong.append(f"{folder / PROVENANCE_FILE}: it lacks or garbles something ({type(error).__name__})")
    return found


def _bank(home: Path, ca: bytes | None) -> Findings:
    for own in (SETTINGS, "node.key.pub", "ca.crt"):
        if not stat.S_ISREG((home / own).lstat().st_mode if os.path.lexists(home / own) else 0) and (
            own != "ca.crt" or ca is None
        ):
            raise UserError(f"{home / own} is missing or not a regular file.")
    name = read_settings(home / SETTINGS)[0].name
    public = read_public(home / "node.key.pub").decode("utf-8", "replace")
    return verify_bank(home, name, ca or read_public(home / "ca.crt"), public)


def _first_state(config: Config, adapter: Any, layout_id: str) -> Any:
    """The server's state before the first round. UserError where it begins with another run's moments and that run is not here."""
    from server_app.rounds import RoundState
    from server_app.strategies.fedadam import public_state

    return RoundState(0, adapter, public_state(config.strategy, layout_id))


def _step(config: Config, state: Any, replies: Sequence[tuple[str, Mapping[str, Any], Any]]) -> tuple[Any, str]:
    from server_app.rounds import take_step

    made = [Reply(bank, delta, _figures(figures), 0.0) for bank, figures, delta in replies]
    following, _ = take_step(made, state, config.strategy, config.num_server_rounds)
    return following, adapter_checksum(following.adapter)


def _figures(told: Mapping[str, Any]) -> Figures:
    """As the server read them."""
    from fedfinlora.wire import NOT_TOLD

    values: dict[str, Any] = {name: told.get(name, NOT_TOLD[name]) for name in NOT_TOLD}
    values |= {name: float(value) for name, value in values.items() if isinstance(value, str)}
    return Figures(**values)
