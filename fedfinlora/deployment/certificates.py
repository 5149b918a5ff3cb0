"""The federation's own certificate authority, the coordinator's server certificate, and the banks' signing keys.

Elliptic curves of NIST (P-256 for TLS, P-384 for Flower's node authentication, which wants OpenSSH's form). Private keys are files of mode 0600
that are never overwritten; certificates say for which host names they are good and until when.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from fedfinlora.errors import UserError
from fedfinlora.runfolder import unwritable, write_bytes

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

WARN_DAYS = 30
"""Certificates that end sooner are warned about."""
CLOCK_SLACK = timedelta(minutes=10)
"""Certificates are good from so long before they were made: other machines' clocks may be behind."""


def make_authority(folder: Path, days: int) -> None:
    """Write ca.key and ca.crt."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("fedfinlora consortium CA")
    certificate = (
        _dated(x509.CertificateBuilder(), days)
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(folder / "ca.key", _pem_of(key))
    write_bytes(folder / "ca.crt", _certificate_pem(certificate))


def issue_server(folder: Path, hosts: Sequence[str], days: int) -> None:
    """Write server.key and server.crt, signed by the authority in `folder`, good for these host names and addresses."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    try:
        authority_key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
        authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"The authority in {folder} cannot be read ({error}). Run `coordinator init` first.") from error
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _dated(x509.CertificateBuilder(), days)
        .subject_name(_name(hosts[0]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)  # type: ignore[arg-type]
        .sign(authority_key, hashes.SHA256())
    )
    (folder / "server.key").unlink(missing_ok=True)
    write_private(folder / "server.key", _pem_of(key))
    write_bytes(folder / "server.crt", _certificate_pem(certificate))


def make_node_key(file: Path, comment: str) -> None:
    """Write a bank's private key to `file` and its public half, in OpenSSH's form, to `file`.pub."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_private(file, private)
    write_bytes(file.with_name(f"{file.name}.pub"), public + f" {comment}\n".encode())


def check_public_key(file: Path) -> bytes:
    """The content of a bank's public key file. UserError for anything else, a private key above all."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}).") from error
    if b"PRIVATE KEY" in content:
        raise UserError(f"{file} is a private key. It must not leave its bank; enroll the file beside it that ends in .pub.")
    try:
        key = serialization.load_ssh_public_key(content)
    except ValueError as error:
        raise UserError(f"{file} is no public key in OpenSSH's form. `bank init` writes one to node.key.pub.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UserError(f"{file} is not an elliptic-curve key, which Flower's node authentication wants.")
    return content


def days_left(certificate: Path) -> float:
    """Days until a certificate ends, below 0 when it has. UserError if it cannot be read."""
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{certificate} is no certificate that can be read ({error}).") from error
    return (found.not_valid_after_utc - datetime.now(UTC)).total_seconds() / 86400


def expiry_words(certificate: Path) -> str:
    """How long a certificate is still good, with a warning where that is short."""
    left = days_left(certificate)
    if left < 0:
        return f"{certificate.name}: ENDED {-left:.0f} days ago"
    return f"{certificate.name}: good for {left:.0f} more days" + (" - RENEW IT SOON" if left < WARN_DAYS else "")


def write_private(file: Path, content: bytes) -> None:
    """Write a new file that its owner alone can read. UserError if it is already there."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except FileExistsError as error:
        raise UserError(
            f"{file} is already there and is not overwritten. Move it away first if it is to be replaced."
        ) from error
    except OSError as error:
        raise unwritable(file, error) from error


def _dated(builder: x509.CertificateBuilder, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return builder.not_valid_before(now - CLOCK_SLACK).not_valid_after(now + timedelta(days=days))


def _name(words: str) -> x509.Name:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, words[:64])])


def _host(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _pem_of(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.PEM)
