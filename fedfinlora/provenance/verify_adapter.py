"""Check a released adapter's folder: signature, statement and bill of materials."""

from __future__ import annotations

from pathlib import Path

from fedfinlora.errors import plural
from fedfinlora.model.adapter_folder import CONFIG_FILE, PROVENANCE_FILE, WEIGHTS_FILE
from fedfinlora.provenance.bom import BOM_FILE
from fedfinlora.provenance.findings import Findings, first_names, no_other_kinds
from fedfinlora.provenance.folder import contents_of
from fedfinlora.provenance.model_signature import SIGNATURE_FILE, check_folder
from fedfinlora.provenance.release import read_statement
from fedfinlora.provenance.signatures import WrongSignature


def verify_adapter(folder: Path, ca: bytes | None, public: bytes | None) -> Findings:
    """`ca` is the ca.crt that the reader trusts, `public` the key that must have signed; None = not given."""
    found = Findings()
    if not no_other_kinds(folder, found):
        return found
    signed = (folder / SIGNATURE_FILE).is_file()
    if signed:
        try:
            checked = check_folder(folder, ca, public)
            believed = "" if checked.trusted else ", which no one vouches for: name --ca or --key"
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
    known = {CONFIG_FILE, WEIGHTS_FILE, PROVENANCE_FILE, BOM_FILE}
    for name in () if signed else sorted(set(contents_of(folder).files) - known):
        found.add(folder / name, "it is no part of a release")  # a signature covers every file
    try:
        origin, unknown = read_statement(folder)
        base = origin.base_model
        # A statement may say anything in the place of a number.
        rounds = plural(origin.rounds, "round") if isinstance(origin.rounds, int) else f"{origin.rounds} rounds"
        found.checked.append(
            f"run {origin.run}: {origin.adapter.method} of {base.name} ({base.sha256[:16] or 'hash unknown'}), "
            f"{rounds}, {plural(len(origin.banks), 'bank')} ({', '.join(origin.banks)}), configuration "
            f"{origin.configuration_sha256[:16]}, code {origin.code.source_sha256[:16]}"
        )
        if unknown and not signed:
            found.not_proven(
                folder / BOM_FILE,
                f"version {origin.code.version} wrote it, and this version cannot check {first_names(unknown)}",
            )
    except WrongSignature as error:
        found.wrong.append(str(error))
    except (KeyError, TypeError) as error:
        found.wrong.append(f"{folder / PROVENANCE_FILE}: it lacks or garbles something ({type(error).__name__})")
    return found
