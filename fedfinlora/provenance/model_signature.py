"""model.sig: a folder's signature in the OpenSSF model-signing format (github.com/sigstore/model-transparency,
specification 1.0).

A Sigstore bundle around a DSSE envelope, whose payload is an in-toto statement with the SHA-256 of every file.
`model_signing verify certificate` or `verify key` reads it, and what its `sign` commands write with a P-384 key is read
here. That package itself brings a client of Sigstore's servers and seventeen packages along.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedfinlora.files import write_bytes
from fedfinlora.provenance.folder import contents_of, sha256_of_file
from fedfinlora.provenance.signatures import (
    Signer,
    WrongSignature,
    certified_key,
    check_bytes,
    check_signing_certificate,
    key_in,
    openssh_text,
    public_key_of,
)

SIGNATURE_FILE = "model.sig"
IGNORED = (SIGNATURE_FILE,)
"""Every other file is signed, those of git too, which the format lets a signer skip."""
STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "https://model_signing/signature/v1.0"
PAYLOAD_TYPE, MEDIA_TYPE = "application/vnd.in-toto+json", "application/vnd.dev.sigstore.bundle.v0.3+json"
LARGEST_SIGNATURE = 16 * 2**20
"""Bytes of a model.sig that is read at most."""


def sign_folder(folder: Path, signer: Signer) -> None:
    """Write model.sig over every other file of a folder."""
    payload = json.dumps(_statement(folder.name, file_hashes(folder)), indent=2, allow_nan=False).encode()
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {**_material(signer), "tlogEntries": []},
        "dsseEnvelope": {
            "payload": _base64(payload), "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": _base64(signer.sign_bytes(_pae(payload))), "keyid": ""}],
        },
    }  # fmt: skip
    write_bytes(folder / SIGNATURE_FILE, json.dumps(bundle, allow_nan=False).encode())


@dataclass(frozen=True)
class Checked:
    """A signature that fits its folder."""

    who: str
    """Whose key it is, in words."""
    trusted: bool
    """Whether the reader named the key; otherwise the signature says only that nothing changed since."""


def check_folder(folder: Path, authority: bytes | None = None, key: bytes | None = None) -> Checked:
    """WrongSignature unless model.sig is right and every file is as it was signed, none missing and none more.

    `authority` is a ca.crt, `key` a public key that the reader trusts; with neither, a certificate in the signature is
    believed.
    """
    file = folder / SIGNATURE_FILE
    try:
        if file.stat().st_size > LARGEST_SIGNATURE:
            raise WrongSignature(f"{file} is too large to be a signature")
        bundle = json.loads(file.read_bytes())
        envelope, material = bundle["dsseEnvelope"], bundle["verificationMaterial"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        (signature,) = envelope["signatures"]
        raw = base64.b64decode(signature["sig"], validate=True)
        if (bundle["mediaType"], envelope["payloadType"]) != (MEDIA_TYPE, PAYLOAD_TYPE):
            raise WrongSignature(f"{file} is of another format")
    except OSError as error:
        raise WrongSignature(f"{file} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise WrongSignature(f"{file} is damaged ({type(error).__name__})") from error
    public, who, trusted = _key_of(file, material, authority, key)
    try:
        check_bytes(public, _pae(payload), raw)
    except WrongSignature as error:
        raise WrongSignature(f"{file}: {error}") from error
    _compare(folder, _signed_hashes(file, payload))
    return Checked(who, trusted)


def file_hashes(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file below a folder but the signature. WrongSignature for what is no file."""
    contents = contents_of(folder)
    for name, what in contents.odd.items():
        raise WrongSignature(f"{folder / name} is {what}, which is not signed")
    try:
        return {name: sha256_of_file(folder / name) for name in contents.files if name not in IGNORED}
    except OSError as error:
        raise WrongSignature(f"{error.filename} cannot be read ({error.strerror})") from error


def _statement(name: str, hashes: Mapping[str, str]) -> dict[str, Any]:
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": _root(hashes.values())}}],
        "predicateType": PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": sorted(IGNORED),
            },
            "resources": [{"name": path, "algorithm": "sha256", "digest": found} for path, found in hashes.items()],
        },
    }  # fmt: skip


def _root(hashes: Iterable[str]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(found) for found in hashes)).hexdigest()


def _signed_hashes(file: Path, payload: bytes) -> dict[str, str]:
    """Path -> SHA-256 as it was signed."""
    try:
        statement = json.loads(payload)
        resources = statement["predicate"]["resources"]
        found = {str(one["name"]): str(one["digest"]) for one in resources}
        algorithms = {one["algorithm"] for one in resources}
        (subject,) = statement["subject"]
        if (statement["_type"], statement["predicateType"]) != (STATEMENT, PREDICATE) or algorithms - {"sha256"}:
            raise WrongSignature(f"{file} has another kind of statement, or hashes other than SHA-256")
        if subject["digest"]["sha256"] != _root(one["digest"] for one in resources) or len(found) != len(resources):
            raise WrongSignature(f"{file} contradicts itself")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WrongSignature(f"{file} is damaged ({type(error).__name__})") from error
    return found


def _compare(folder: Path, signed: Mapping[str, str]) -> None:
    here = file_hashes(folder)
    for name in sorted({*here, *signed}):
        if name not in here:
            raise WrongSignature(f"{folder / name} is missing")
        if name not in signed:
            raise WrongSignature(f"{folder / name} was not there when the folder was signed")
        if here[name] != signed[name]:
            raise WrongSignature(f"{folder / name} is not as it was signed")


def _material(signer: Signer) -> dict[str, Any]:
    """The certificate, or the hash of the public key."""

    if not signer.certificate:
        return {"publicKey": {"hint": _hint(signer.key.public_key())}}
    certificate = x509.load_pem_x509_certificate(signer.certificate.encode()).public_bytes(Encoding.DER)
    return {"x509CertificateChain": {"certificates": [{"rawBytes": _base64(certificate)}]}}


def _key_of(file: Path, material: Any, authority: bytes | None, key: bytes | None) -> tuple[Any, str, bool]:
    """(public key, its holder in words, whether the reader named it)."""

    try:
        if "x509CertificateChain" not in material:
            if key is None:
                raise WrongSignature(f"{file} is signed with a bare key: name its public key with --key FILE")
            public = public_key_of(key)
            if material["publicKey"].get("hint") not in (None, "", _hint(public)):
                raise WrongSignature(f"{file} is signed with another key than the one named")
            return public, f"the key {_hint(public)[:16]}", True
        raw = base64.b64decode(material["x509CertificateChain"]["certificates"][0]["rawBytes"], validate=True)
        certificate = x509.load_der_x509_certificate(raw)
        signed_from = certificate.not_valid_before_utc
        who = f"{certificate.subject.rfc4514_string()}, certificate {certificate.serial_number:x}"
        if key is not None and openssh_text(public_key_of(key)) != openssh_text(key_in(certificate)):
            raise WrongSignature(f"{file} is signed with another key than the one named")
        if authority is None:
            check_signing_certificate(certificate, signed_from)
            return key_in(certificate), who, key is not None
        # When it was signed is not known; as in model-signing, a certificate that has ended since stays good for what
        # it signed.
        return (
            certified_key(certificate.public_bytes(Encoding.PEM), authority, max(signed_from, _good_from(authority))),
            who,
            True,
        )
    except WrongSignature as error:
        raise error if str(file) in str(error) else WrongSignature(f"{file}: {error}") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, binascii.Error) as error:
        raise WrongSignature(f"{file} is damaged ({type(error).__name__})") from error


def _good_from(authority: bytes) -> datetime:

    try:
        return x509.load_pem_x509_certificate(authority).not_valid_before_utc
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)


def _hint(key: Any) -> str:

    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _pae(payload: bytes) -> bytes:
    """What DSSE signs (github.com/secure-systems-lab/dsse, protocol 1.0)."""
    return b" ".join([f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)}".encode(), payload])


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
