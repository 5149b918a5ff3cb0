"""Signatures on what parties say: ECDSA on P-384 with SHA-384 (FIPS 186-5), over a purpose and canonical JSON.

The purpose precedes the bytes, so a signed reply is never a signed request. A coordinator's public key comes in a
certificate of the consortium's authority, a bank's is the one that was enrolled.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedfinlora.errors import UserError

REQUEST, REPLY, LINE = "fedfinlora request 1", "fedfinlora reply 1", "fedfinlora provenance 1"
"""Purposes."""


class WrongSignature(Exception):
    """Something is not signed as it should be; the message says what in a few words, without its content."""


def canonical(values: Any) -> bytes:
    """JSON with sorted keys and without spaces, UTF-8; NaN and infinities as texts.

    >>> canonical({"b": 1, "a": [0.5, float("nan")]})
    b'{"a":[0.5,"nan"],"b":1}'
    """
    try:
        return plain_canonical(values)
    except (ValueError, TypeError):
        return plain_canonical(_plain(values))


def plain_canonical(values: Any) -> bytes:
    """The same of dicts, lists and finite numbers alone: four times as fast. ValueError or TypeError for all else."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _plain(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    return str(values) if isinstance(values, float) and not math.isfinite(values) else values


def digest(values: Any) -> str:
    """SHA-256 of the canonical bytes, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(values)).hexdigest()


@dataclass(frozen=True)
class Signer:
    """Whoever holds a private key."""

    key: EllipticCurvePrivateKey
    certificate: str = ""
    """PEM, of the consortium's authority; "" for a bank, whose public key is enrolled."""

    def sign(self, purpose: str, values: Any) -> str:
        """The signature in base64."""
        return base64.b64encode(self.sign_bytes(_signed_bytes(purpose, values))).decode()

    def sign_bytes(self, content: bytes) -> bytes:
        """DER, as other programs expect it."""

        return self.key.sign(content, ec.ECDSA(hashes.SHA384()))


def check(public_key: EllipticCurvePublicKey, purpose: str, values: Any, signature: str) -> None:
    """WrongSignature unless the holder of the key signed just this for this purpose."""
    try:
        content = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError) as error:
        raise WrongSignature("the signature is garbled") from error
    check_bytes(public_key, _signed_bytes(purpose, values), content)


def check_bytes(public_key: EllipticCurvePublicKey, content: bytes, signature: bytes) -> None:
    """WrongSignature unless the holder of the key signed these bytes."""

    try:
        public_key.verify(signature, content, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise WrongSignature("the signature is of another key, or what was signed has been changed") from error


def _signed_bytes(purpose: str, values: Any) -> bytes:
    return purpose.encode() + b"\0" + canonical(values)


def load_signer(key: Path, certificate: Path | None = None) -> Signer:
    """The holder of a private key file. UserError where it cannot be used."""

    try:
        content = key.read_bytes()
        load = serialization.load_ssh_private_key if b"OPENSSH" in content[:40] else serialization.load_pem_private_key
        found = load(content, password=None)
        pem = certificate.read_text("ascii") if certificate else ""
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{key} is no private key that can be used: it must be on P-384 and have no password."
        ) from error
    if not _is_p384(found):
        raise UserError(f"{key} is not a key on the curve P-384.")
    return Signer(found, pem)  # type: ignore[arg-type]


def public_key_of(text: str | bytes) -> EllipticCurvePublicKey:
    """A public key in OpenSSH's form or PEM. WrongSignature for anything else."""

    content = text.encode() if isinstance(text, str) else text
    try:
        load = serialization.load_pem_public_key if content.startswith(b"-----") else serialization.load_ssh_public_key
        found = load(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise WrongSignature("the public key is garbled") from error
    if not _is_p384(found):
        raise WrongSignature("the public key is not on the curve P-384")
    return found  # type: ignore[return-value]


def read_public(file: Path) -> bytes:
    """The content of a certificate's or public key's file. UserError where it cannot be read, or is a private key."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}).") from error
    if b"PRIVATE KEY" in content:
        raise UserError(
            f"{file} is a private key, which must not leave its bank or coordinator: name the public one, which ends "
            "in .pub or .crt."
        )
    return content


def openssh_text(key: EllipticCurvePublicKey) -> str:
    """One line in OpenSSH's form, without a comment: equal keys have equal lines."""

    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def certified_key(certificate: str | bytes, authority: bytes, at: datetime | None = None) -> EllipticCurvePublicKey:
    """The public key in a coordinator's signing certificate. WrongSignature unless the authority issued it, for
    signing, and it is good at the time `at` (None = now).
    """

    pem = certificate.encode() if isinstance(certificate, str) else certificate
    try:
        found, issuer = x509.load_pem_x509_certificate(pem), x509.load_pem_x509_certificate(authority)
    except ValueError as error:
        raise WrongSignature("the certificate is missing or garbled") from error
    try:
        found.verify_directly_issued_by(issuer)
        if not issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise WrongSignature("the authority's certificate is not an authority's")
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
        raise WrongSignature("the certificate is of another authority") from error
    check_signing_certificate(found, at or datetime.now(UTC))
    return key_in(found)


def check_signing_certificate(certificate: Any, at: datetime) -> None:
    """WrongSignature unless a certificate is good at that time and for signing: those of banks and of the server are
    for connections.
    """

    if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        raise WrongSignature("the certificate is not good at this time")
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise WrongSignature("the certificate is not for signing") from error
    if ExtendedKeyUsageOID.CODE_SIGNING not in usage:
        raise WrongSignature("the certificate is not for signing")


def certificate_key(pem: str) -> EllipticCurvePublicKey:
    """The public key in a certificate, whoever issued it. WrongSignature for what is none."""

    try:
        return key_in(x509.load_pem_x509_certificate(pem.encode()))
    except ValueError as error:
        raise WrongSignature("the certificate is garbled") from error


def key_in(certificate: Any) -> EllipticCurvePublicKey:
    """A certificate's public key. WrongSignature if it is of another kind than ours."""
    key = certificate.public_key()
    if not _is_p384(key):
        raise WrongSignature("the certificate's key is not on the curve P-384")
    return key  # type: ignore[no-any-return]


def _is_p384(key: Any) -> bool:

    kinds = EllipticCurvePrivateKey | EllipticCurvePublicKey
    return isinstance(key, kinds) and isinstance(key.curve, ec.SECP384R1)
