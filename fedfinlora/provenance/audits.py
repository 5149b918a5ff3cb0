"""An audit becomes part of a run's chain: audit.json alone could be written by anyone who can write to the folder.

The privacy card and the release take an audit's sentence from the chain (`bound_audit`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedfinlora.errors import UserError
from fedfinlora.provenance.chain import AUDIT_FILE, REPORT_FILE, Chain
from fedfinlora.provenance.folder import file_bytes, sha256_of_file
from fedfinlora.provenance.lines import CHAIN_FILE, FIRST, Audited, Begin, Sealed, UnknownLine, read_line
from fedfinlora.provenance.signatures import LINE, Signer, WrongSignature, certificate_key, check, openssh_text


def bind_audit(run: Path, sentence: str, signer: Signer | None) -> bool:
    """Enter audit.json and report.html into the run's chain. False where it has none. UserError as `check_may_sign`,
    and where a server trains in the folder.
    """
    if not (run / CHAIN_FILE).is_file():
        return False
    begin = begun(run)
    check_may_sign(run, begin, signer)
    files = {name: sha256_of_file(run / name) for name in (AUDIT_FILE, REPORT_FILE) if (run / name).is_file()}
    config = hashlib.sha256(begin.config.encode()).hexdigest()
    Chain(run, signer if begin.certificate else None).append(Audited(begin.run, config, sentence, files))
    return True


def begun(run: Path) -> Begin:
    """The last `begin` of a run's chain. UserError where there is none."""
    begins = [sealed.line for sealed in _sealed(run) if isinstance(sealed.line, Begin)]
    if not begins:
        raise UserError(f"{run / CHAIN_FILE} has no line of kind begin: `python -m fedfinlora verify {run}` says more.")
    return begins[-1]


def check_may_sign(run: Path, begin: Begin, signer: Signer | None) -> None:
    """UserError unless lines may be added: by anyone where the run is not signed, else by its coordinator."""
    if not begin.certificate:
        return
    if signer is None:
        raise UserError(
            f"{run} is signed by its coordinator, so an audit becomes part of it by the coordinator's key only: name "
            "its signing.key with --signing-key."
        )
    if openssh_text(signer.key.public_key()) != openssh_text(certificate_key(begin.certificate)):
        raise UserError(
            f"{run} is signed with another key than the given one: name the signing.key of its coordinator with "
            "--signing-key."
        )


def bound_audit(run: Path, signer: Signer | None = None) -> Mapping[str, Any] | None:
    """The last audit in a run's chain, for its privacy card; `signer`, if given, must have signed it. UserError where
    the chain is damaged, or the line is not signed.
    """
    audits = (
        [sealed for sealed in _sealed(run) if isinstance(sealed.line, Audited)] if (run / CHAIN_FILE).is_file() else []
    )
    if not audits:
        return None
    last = audits[-1]
    if signer is not None:
        try:
            check(signer.key.public_key(), LINE, last.sha256, last.signature)
        except WrongSignature as error:
            raise UserError(f"{run / CHAIN_FILE}: its audit is not signed by the coordinator ({error}).") from error
    return as_audit(last.line)


def as_audit(line: Any) -> dict[str, Any]:
    """What `privacy_card` needs of an audit."""
    return {"sentence": line.sentence}


def _sealed(run: Path) -> Iterable[Sealed]:
    """The lines of a chain. UserError where it does not hang together."""
    file, previous = run / CHAIN_FILE, FIRST
    try:
        lines = file_bytes(file).split(b"\n")[:-1]
        for line in lines:
            sealed = read_line(line)
            if sealed.previous != previous:
                raise WrongSignature("a line does not follow the one before it")
            previous = sealed.sha256
            yield sealed
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}).") from error
    except (WrongSignature, UnknownLine) as error:
        raise UserError(f"{file} is damaged: {error}. `python -m fedfinlora verify {run}` says more.") from error
