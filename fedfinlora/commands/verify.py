"""`verify`: check a run's folder, an adapter's folder or a bank's own record.

Exit status: 0 everything is as it was made; 1 something is wrong; 3 not everything could be proven.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedfinlora.deployment.bank_settings import SETTINGS, read_settings
from fedfinlora.errors import UserError, plural, printable
from fedfinlora.model.adapter_folder import CONFIG_FILE, WEIGHTS_FILE
from fedfinlora.provenance.findings import NOT_ALL_PROVEN, WRONG, Findings
from fedfinlora.provenance.folder import contents_of
from fedfinlora.provenance.lines import CHAIN_FILE
from fedfinlora.provenance.model_signature import SIGNATURE_FILE
from fedfinlora.provenance.release import FINAL
from fedfinlora.provenance.signatures import read_public
from fedfinlora.provenance.verify import verify_run
from fedfinlora.provenance.verify_adapter import verify_adapter
from fedfinlora.provenance.verify_bank import verify_bank
from fedfinlora.run.ended import mode_of
from fedfinlora.run.resuming import resumed_words

QUIET_S = 3.0
"""Seconds before a terminal shows how far it is."""


def verify(folder: Path, authority: Path | None = None, key: Path | None = None, enrolled: Path | None = None) -> int:
    """Print what was checked, wrong and not proven. `authority` is a ca.crt, `key` a public key, `enrolled` a folder of
    banks' keys.
    """
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
        found = verify_adapter(folder, ca, public)
    elif is_run or (folder / "state").is_dir():
        found = _run(folder, ca, public, enrolled)
    else:
        raise UserError(
            f"{folder} is neither a run ({CHAIN_FILE}), an adapter ({CONFIG_FILE}) nor a bank's home ({SETTINGS})."
        )
    for line in found.checked:
        print(printable(line))
    for line in found.unproven:
        print(printable(f"NOT PROVEN  {line}"))
    for line in found.wrong:
        print(printable(f"WRONG  {line}"))
    wrong = plural(len(found.wrong), "thing is", "things are")
    unproven = plural(len(found.unproven), "thing is", "things are")
    ends = {WRONG: f"{wrong} wrong", NOT_ALL_PROVEN: f"nothing is wrong, {unproven} not proven"}
    print(ends.get(found.status, "ok"))
    return found.status


def _has(folder: Path, *names: str) -> bool:
    """Whether there is something of one of these names, be it a link or a FIFO."""
    return any(os.path.lexists(folder / name) for name in names)


def _run(folder: Path, ca: bytes | None, public: bytes | None, enrolled: Path | None) -> Findings:
    if enrolled is not None and not enrolled.is_dir():
        raise UserError(f"--enrolled {enrolled} is not a folder of banks' public keys (BANK.pub).")
    if (mode := mode_of(folder)) != "federated" and not (folder / CHAIN_FILE).is_file():
        raise UserError(
            f"{folder} is a run of mode {mode}: only federated runs keep a chain of who was asked what, so there "
            "is nothing here that could be checked."
        )
    known = (
        {file.stem: read_public(file).decode("utf-8", "replace") for file in sorted(enrolled.glob("*.pub"))}
        if enrolled
        else None
    )
    from fedfinlora.commands.verify_rules import ServerRules

    with _progress() as on_step:
        found = verify_run(folder, ServerRules(folder), ca, known, on_step)
    found.checked += [f"note: {sentence}" for sentence in resumed_words(folder)]
    if ca is not None and known is None:
        found.checked.append(
            "note: the banks' keys are those that the coordinator names. --enrolled FOLDER compares them with the keys "
            "(BANK.pub) that the banks gave you"
        )
    if (folder / FINAL).is_dir() and not contents_of(folder).odd:
        release = verify_adapter(folder / FINAL, ca, public)
        found.checked += [f"adapters/final: {line}" for line in release.checked]
        found.wrong += release.wrong
        found.unproven += release.unproven
    return found


def _bank(home: Path, ca: bytes | None) -> Findings:
    for own in (SETTINGS, "node.key.pub", "ca.crt"):
        if not stat.S_ISREG((home / own).lstat().st_mode if os.path.lexists(home / own) else 0) and (
            own != "ca.crt" or ca is None
        ):
            raise UserError(f"{home / own} is missing or not a regular file.")
    settings, policy_sha256 = read_settings(home / SETTINGS)
    public = read_public(home / "node.key.pub").decode("utf-8", "replace")
    authority = ca or read_public(home / "ca.crt")
    return verify_bank(home, settings.name, authority, public, policy_sha256, Path(settings.data).expanduser())


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What is being done, on a terminal, where it takes longer than QUIET_S."""
    if not sys.stderr.isatty():
        yield lambda words: None
        return
    shown = time.monotonic() + QUIET_S

    def show(words: str) -> None:
        nonlocal shown
        if time.monotonic() >= shown:
            shown = time.monotonic() + 0.5
            print(f"\r\x1b[Kverify: {printable(words)}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
