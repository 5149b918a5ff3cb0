"""The federation's own certificate authority, what it issues (server, signing and bank certificates), and the banks'
keys.

Elliptic curves of NIST: P-256 for the authority and the server, P-384 for signatures and for Flower's node
authentication, which wants OpenSSH's form. Private keys are files of mode 0600. A certificate is good for one purpose.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedfinlora.errors import UserError
from fedfinlora.files import unwritable, write_bytes, write_new

WARN_DAYS = 30
"""Certificates that end sooner are warned about."""
CLOCK_SLACK = timedelta(minutes=10)
"""Certificates are good from so long before they were made: other machines' clocks may be behind."""
CA_KEY, CA_CERTIFICATE = "ca.key", "ca.crt"
SERVER_KEY, SERVER_CERTIFICATE = "server.key", "server.crt"
SIGNING_KEY, SIGNING_CERTIFICATE = "signing.key", "signing.crt"
LEAST_PASSPHRASE = 12
"""Characters of a passphrase, at least."""


@dataclass(frozen=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def no_passphrase() -> bytes:
    raise UserError("ca.key is encrypted. Name a file with its passphrase: --passphrase-file FILE.")


def make_authority(folder: Path, days: int, passphrase: bytes | None = None) -> None:
    """Write ca.key, encrypted where a passphrase is given, and ca.crt. UserError for a short passphrase."""
    if passphrase is not None and len(passphrase) < LEAST_PASSPHRASE:
        raise UserError(f"The passphrase of ca.key must have {LEAST_PASSPHRASE} characters or more.")
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("fedfinlora consortium CA")
    certificate = _begun(name, name, key.public_key(), days, is_authority=True).sign(key, hashes.SHA256())
    write_private(folder / CA_KEY, pem_of(key, passphrase))
    write_bytes(folder / CA_CERTIFICATE, certificate.public_bytes(form.Encoding.PEM))


def open_authority(folder: Path, passphrase: Callable[[], bytes] = no_passphrase) -> Authority:
    """The authority of `folder`; `passphrase` is called where ca.key is encrypted. UserError."""
    try:
        content = (folder / CA_KEY).read_bytes()
        certificate = x509.load_pem_x509_certificate((folder / CA_CERTIFICATE).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"The authority in {folder} cannot be read ({error}). Bring ca.key there, or run `coordinator init` first."
        ) from error
    encrypted = b"ENCRYPTED" in content
    try:
        key = form.load_pem_private_key(content, password=passphrase() if encrypted else None)
    except ValueError as error:
        why = "does not open with this passphrase" if encrypted else "cannot be read"
        raise UserError(f"{folder / CA_KEY} {why}.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise UserError(f"{folder / CA_KEY} is not the key of {folder / CA_CERTIFICATE}.")
    return Authority(certificate, key)


def issue_server(folder: Path, hosts: Sequence[str], days: int, authority: Authority | None = None) -> None:
    """Write a new server.key and server.crt, good for these host names and addresses."""
    authority = authority or open_authority(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    certificate = _issued(authority, hosts[0], key.public_key(), days, ExtendedKeyUsageOID.SERVER_AUTH, names)
    (folder / SERVER_KEY).unlink(missing_ok=True)
    write_private(folder / SERVER_KEY, pem_of(key))
    write_bytes(folder / SERVER_CERTIFICATE, certificate)


def issue_signing(folder: Path, days: int, authority: Authority | None = None) -> None:
    """Write signing.crt, good for signatures alone, for signing.key, which is made where it is missing."""
    authority = authority or open_authority(folder)
    file = folder / SIGNING_KEY
    if not file.exists():
        write_private(file, pem_of(ec.generate_private_key(ec.SECP384R1())))
    try:
        key: Any = form.load_pem_private_key(file.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}). Move it away and run `coordinator renew`.") from error
    name = "fedfinlora coordinator"
    certificate = _issued(authority, name, key.public_key(), days, ExtendedKeyUsageOID.CODE_SIGNING)
    write_bytes(folder / SIGNING_CERTIFICATE, certificate)


def issue_bank(file: Path, name: str, public_key: bytes, days: int, authority: Authority) -> None:
    """Write a bank's certificate for its own public key (OpenSSH's form)."""
    key: Any = form.load_ssh_public_key(public_key)
    write_bytes(file, _issued(authority, name, key, days, ExtendedKeyUsageOID.CLIENT_AUTH))


def common_name(certificate: x509.Certificate) -> str:
    """Whom a certificate names; "" where it names none or several."""
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def openssh(public_key: Any) -> bytes:
    """A public key in OpenSSH's form, without a comment: "ecdsa-sha2-nistp384 AAAA…"."""
    return bytes(public_key.public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH))


def _issued(
    authority: Authority,
    name: str,
    key: ec.EllipticCurvePublicKey,
    days: int,
    purpose: x509.ObjectIdentifier,
    alternative: x509.SubjectAlternativeName | None = None,
) -> bytes:
    """A certificate in PEM form: `name`'s `key`, good for one purpose."""
    own = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = _begun(_name(name), authority.certificate.subject, key, days, is_authority=False)
    for extension in (x509.ExtendedKeyUsage([purpose]), own, *([alternative] if alternative else [])):
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(form.Encoding.PEM)


def days_left(certificate: Path) -> float:
    """Days until a certificate ends, below 0 when it has. UserError if it cannot be read."""
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
        write_new(file, content)
    except FileExistsError as error:
        raise UserError(
            f"{file} is already there and is not overwritten. Move it away first if it is to be replaced."
        ) from error
    except OSError as error:
        raise unwritable(file, error) from error


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int, is_authority: bool
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + timedelta(days=days))
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True)
        .add_extension(_usage(signs_certificates=is_authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(words: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, words[:64])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def pem_of(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """A private key in PEM form, encrypted where a passphrase is given."""
    encryption = form.NoEncryption() if passphrase is None else form.BestAvailableEncryption(passphrase)
    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, encryption)
