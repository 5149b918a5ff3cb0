"""A bank's keys and its certificate, as the bank and the coordinator read them.

Flower's node authentication wants keys on P-384 in OpenSSH's form; TLS wants the same key in PEM form.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec

from fedfinlora.deployment.certificates import common_name, openssh, pem_of, write_private
from fedfinlora.errors import UserError
from fedfinlora.files import write_bytes
from fedfinlora.provenance.signatures import read_public


def make_node_key(file: Path, comment: str) -> None:
    """Write a bank's private key to `file` and its public half to `file`.pub, in OpenSSH's form."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    write_private(file, private)
    write_bytes(file.with_name(f"{file.name}.pub"), openssh(key.public_key()) + f" {comment}\n".encode())


def tls_key(node_key: Path) -> bytes:
    """A bank's private key in PEM form, which TLS wants."""
    try:
        key: Any = form.load_ssh_private_key(node_key.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise UserError(f"{node_key} cannot be read ({error}).") from error
    return pem_of(key)


def check_public_key(file: Path) -> bytes:
    """The content of a bank's public key file. UserError for anything else."""
    content = read_public(file)
    try:
        key = form.load_ssh_public_key(content)
    except ValueError as error:
        raise UserError(
            f"{file} is no public key in OpenSSH's form. `bank init` writes one to node.key.pub."
        ) from error
    if isinstance(key, ec.EllipticCurvePublicKey) and not isinstance(key.curve, ec.SECP384R1):
        raise UserError(
            f"{file} is a key on {key.curve.name}; signatures are made with P-384, as `bank init` makes it."
        )
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UserError(f"{file} is not an elliptic-curve key, which Flower's node authentication wants.")
    return content


def check_bank_certificate(file: Path, key: Path, authority: Path, name: str) -> bytes:
    """The content of a bank's certificate. UserError unless it is `name`'s, for the bank's own `key` (OpenSSH's form),
    by `authority` (the ca.crt that it trusts), and not ended.
    """
    try:
        content = file.read_bytes()
        certificate = x509.load_pem_x509_certificate(content)
        trusted = x509.load_pem_x509_certificate(authority.read_bytes())
        own: Any = form.load_ssh_private_key(key.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}, {key} or {authority} cannot be read ({error}).") from error
    try:
        certificate.verify_directly_issued_by(trusted)
    except (InvalidSignature, ValueError, TypeError):
        raise UserError(f"{file} was not issued by the authority of {authority}.") from None
    if certificate.public_key() != own.public_key():
        raise UserError(f"{file} is not for this bank's node.key. Send node.key.pub to the coordinator once more.")
    if common_name(certificate) != name:
        raise UserError(f"{file} names the bank {common_name(certificate)!r}, and this bank is {name!r}.")
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise UserError(f"{file} has ended. Ask the coordinator for a new one (`coordinator renew`).")
    return content
